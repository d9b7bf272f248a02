"""The files of a run, which checkpoints count as complete, and resuming as if the run had never stopped."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import distilling, logged, loss_options, pictures, same, samples, segmenter, supervised, weights

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor
from afdcd_hf.training import checkpoints
from afdcd_hf.training.checkpoints import check_complete, checkpoint_to_resume, last_complete_checkpoint, mark_complete
from afdcd_hf.training.stopping import NonFiniteLossError

SAVING = {"save_strategy": "steps", "save_steps": 1}
SCORING = {"eval_strategy": "steps", "eval_steps": 1}


# Complete checkpoints


def checkpoint(folder: Path, step: int) -> Path:
    """A folder with two files and its marker."""
    path = folder / f"checkpoint-{step}"
    (path / "part").mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    (path / "part" / "state").write_text("x")
    mark_complete(path, {"format": 2, "step": step})
    return path


FAULTS = {
    "part/state is missing": lambda folder: shutil.rmtree(folder / "part"),
    "model.safetensors has 6 bytes instead of 7": lambda folder: (folder / "model.safetensors").write_text("weight"),
    "model.safetensors is damaged": lambda folder: (folder / "model.safetensors").write_text("wEights"),
    "it has no checkpoint.json": lambda folder: (folder / "checkpoint.json").unlink(),
    "checkpoint.json is damaged": lambda folder: (folder / "checkpoint.json").write_text('{"files": {"a'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_incomplete_checkpoint_is_skipped_with_a_warning_and_refused_if_given_by_path(tmp_path, caplog, fault):
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10" and not caplog.text
    FAULTS[fault](tmp_path / "checkpoint-10")
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-9"
    assert f"skipping {tmp_path / 'checkpoint-10'}: " in caplog.text and fault in caplog.text
    if "no checkpoint.json" in fault:  # plain transformers may have written it
        check_complete(tmp_path / "checkpoint-10")
        assert "checkpoint-10 cannot be checked: it has no checkpoint.json" in caplog.text
    else:
        message = rf"checkpoint-10 is not complete: .*{fault}.*Resume from last"
        with pytest.raises(ValueError, match=message):
            check_complete(tmp_path / "checkpoint-10")


def test_without_any_marker_the_newest_checkpoint_with_its_last_file_is_used(tmp_path, caplog):
    """A run killed between removing the older checkpoint and marking the new one leaves this state."""
    last = checkpoint(tmp_path, 2)
    (last / "checkpoint.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .* is complete.*give its path: .*checkpoint-2"):
        last_complete_checkpoint(tmp_path)
    (last / "trainer_state.json").write_text("{}")
    assert last_complete_checkpoint(tmp_path) == last and "checkpoint-2, whose last file exists" in caplog.text


def test_a_missing_checkpoint_is_an_error_and_leftovers_of_a_killed_run_are_removed(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in .*another output_dir"):
        last_complete_checkpoint(tmp_path / "no")
    checkpoint(tmp_path, 5)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*checkpoint-6; .* has checkpoint-5"):
        check_complete(tmp_path / "checkpoint-6")
    for name in ("_saving-model-a1b2c3", "_saving-notes", "_mine"):
        (tmp_path / name).mkdir()
    assert checkpoint_to_resume(supervised(tmp_path).args, None) is None
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "_saving-notes", "_mine"}


# Files

# Uses random masks, dropout, shuffling, augmentation and batch norm; an epoch has two steps.
WHOLE = {"max_steps": 4, "loss_kwargs": loss_options(mask="random"), **SAVING, **SCORING}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A distillation of four steps with a checkpoint after each and the student saved at the end."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = distilling(folder, **WHOLE)
    trainer.train()
    trainer.save_model()
    return trainer, folder


def test_the_saved_folder_holds_only_the_student_and_loads_with_equal_weights(saved):
    trainer, folder = saved
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "training_args.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth")) or name.startswith("distillation")]
    assert json.loads((folder / "training_args.json").read_text())["loss"] == "kd+af_dcd"
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in ("model.safetensors", "training_args.json")]
    assert modes[0] == modes[1]  # equal permissions for settings and weights
    AfDcdImageProcessor.from_pretrained(folder)
    assert same(weights(AfDcdForSemanticSegmentation.from_pretrained(folder)), weights(trainer.student))


def test_a_checkpoint_holds_student_and_loss_weights_and_its_marker_lists_every_file(saved):
    trainer, folder = saved[0], saved[1] / "checkpoint-4"
    assert same(load_file(folder / "model.safetensors"), weights(trainer.student))
    assert same(load_file(folder / "distillation.safetensors"), weights(trainer.loss_module))
    marker = json.loads((folder / "checkpoint.json").read_text())
    expected = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "checkpoint.json"}
    assert {name: file["bytes"] for name, file in marker["files"].items()} == expected
    assert "training_args.bin" not in expected
    assert (marker["step"], marker["processes"], marker["images_per_step"]) == (4, 1, 4)
    AfDcdForSemanticSegmentation.from_pretrained(folder)


@pytest.mark.parametrize("name", ["write_student", "atomic_write"])
def test_if_a_checkpoint_cannot_be_written_the_previous_one_is_kept(tmp_path, monkeypatch, name):
    trainer, original = supervised(tmp_path, **SAVING), getattr(checkpoints, name)

    def full(*args, **options):
        if trainer.state.global_step >= 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat Exception raised")
        return original(*args, **options)

    monkeypatch.setattr(checkpoints, name, full)
    message = r"checkpoint-2 could not be written: .*write failed \(.* are free there\)\.[^\n]*newest is .*checkpoint-1"
    with pytest.raises(OSError, match=message):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint_to_resume(trainer.args, "last") == str(tmp_path / "checkpoint-1")


def test_a_trained_student_is_saved_elsewhere_if_its_folder_cannot_be_written(saved, tmp_path, monkeypatch):
    original = checkpoints.write_student

    def write(folder, *args):
        if tmp_path / "run" in folder.parents:
            raise OSError(28, "No space left on device")
        original(folder, *args)

    monkeypatch.setattr(checkpoints, "write_student", write)
    monkeypatch.setattr(checkpoints.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match="run could not be written: No space left.* is saved in .*afdcd-run-.* instead"):
        saved[0].save_model(str(tmp_path / "run"))
    (rescued,) = tmp_path.glob("afdcd-run-*")
    assert same(load_file(rescued / "model.safetensors"), weights(saved[0].student))


@pytest.mark.parametrize("options", [{}, SAVING], ids=["saved at the end", "in a checkpoint"])
def test_weights_that_became_non_finite_in_the_last_step_are_not_saved(tmp_path, options):
    trainer = supervised(tmp_path, **options)
    step = trainer.create_optimizer().step

    def diverging(*args, **options):
        step(*args, **options)
        if trainer.state.global_step == 1:
            trainer.student.head.classifier.weight.data[0] = float("nan")

    trainer.optimizer.step = diverging
    with pytest.raises(NonFiniteLossError, match="^step 2: 1 of .* are not finite, head.classifier.weight"):
        trainer.train()
        trainer.save_model()
    assert [path.name for path in tmp_path.iterdir()] == (["checkpoint-1"] if options else [])


# Resuming


@pytest.mark.parametrize("step", [1, 2, 4], ids=["amid an epoch", "between epochs", "finished"])
def test_a_resumed_distillation_matches_the_uninterrupted_one_bit_for_bit(saved, tmp_path, step):
    torch.manual_seed(99)
    checkpoint = shutil.copytree(saved[1] / f"checkpoint-{step}", tmp_path / "before" / f"checkpoint-{step}")
    state, marker = checkpoint / "process_0.safetensors", json.loads((checkpoint / "checkpoint.json").read_text())
    save_file({**load_file(state), "generator.0": torch.get_rng_state()}, state)  # written by earlier versions
    mark_complete(checkpoint, marker)
    resumed = distilling(tmp_path, segmenter(5), **WHOLE)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(resumed.model), weights(saved[0].model))
    for term in ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast", "learning_rate", "eval_mean_iou"):
        assert logged(resumed, term) == logged(saved[0], term)


def test_the_queues_of_cirkd_are_in_the_checkpoint_and_a_resumed_run_matches_the_uninterrupted_one(tmp_path):
    cirkd = {"num_classes": 4, "pixel_queue": 7, "region_queue": 5, "pixels_per_image": 2, "pixel_draws": 16}
    options = {"loss": "cirkd", "loss_kwargs": {"cirkd": {**cirkd, "region_draws": 8}}, "max_steps": 3, **SAVING}
    whole, resumed = distilling(tmp_path, **options), distilling(tmp_path, segmenter(5), **options)
    whole.train()
    stored = load_file(tmp_path / "checkpoint-2" / "distillation.safetensors")
    assert stored["pixels.vectors"].abs().sum() > 0 and stored["regions.appended"].sum() > 0
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(resumed.model), weights(whole.model))


def test_a_checkpoint_that_does_not_fit_the_run_is_refused_with_what_differs(saved, tmp_path):
    checkpoint = saved[1] / "checkpoint-1"
    plain = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")  # as plain transformers would have written it
    for name in ("checkpoint.json", "distillation.safetensors"):
        (plain / name).unlink()
    of_student = r"do not fit this student\..*Missing.* \"auxiliary_head\.features"
    for folder, trainer, message in (
        (checkpoint, distilling(tmp_path, loss_kwargs=loss_options(projector="enhanced")), "do not fit .*projector"),
        (checkpoint, distilling(tmp_path, segmenter(auxiliary_head=True)), of_student),
        (plain, distilling(tmp_path), "distillation.safetensors is missing.*save_only_model"),
        (checkpoint, distilling(tmp_path, learning_rate=5.0), r"learning_rate 0.05 \(now 5.0\).*resume with the same"),
        (checkpoint, distilling(tmp_path, optim="adamw_torch"), r"optim 'sgd' \(now 'adamw_torch'\), optim_args"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            trainer.train(str(folder))


def test_a_checkpoint_with_only_the_student_cannot_be_resumed_and_a_loss_without_weights_has_no_file(tmp_path):
    options = {"max_steps": 1, "save_only_model": True, "loss": "kd", "loss_kwargs": None, **SAVING}
    distilling(tmp_path, **options).train()
    assert not (tmp_path / "checkpoint-1" / "distillation.safetensors").exists()
    with pytest.raises(ValueError, match="checkpoint-1 holds the student only .*without optimizer"):
        distilling(tmp_path, **options).train(resume_from_checkpoint=True)


def test_settings_that_make_a_resumed_run_differ_are_logged(saved, tmp_path, caplog):
    marker = shutil.copytree(saved[1] / "checkpoint-2", tmp_path / "checkpoint-2") / "checkpoint.json"
    stored = json.loads(marker.read_text())
    stored["settings"] |= {"crop_size": [32, 32], "data_dir": "a"}  # as a recipe's options are stored
    stored["settings"]["loss"] = "/elsewhere/kd+af_dcd"  # the path of one's own loss may change
    del stored["settings"]["adam_beta1"], stored["settings"]["distill_every"]  # as if an older version had written it
    marker.write_text(json.dumps(stored))
    other = {"seed": 1, "per_device_train_batch_size": 2, "train_dataset": samples(10), "max_steps": 3}
    other |= {"max_grad_norm": 0.5, "distill_every": 2, "adam_beta1": 0.5, "logging_steps": 2, "save_steps": 7}
    with caplog.at_level("WARNING", logger="afdcd_hf"):
        trainer = distilling(tmp_path, warmup_steps=1, task_loss="dice", **other)
        trainer.checkpoints.options = {"crop_size": [48, 48], "data_dir": "b", "flip_probability": 0.0}
        trainer.train(resume_from_checkpoint=str(marker.parent))
    (message,) = [text for record in caplog.records if "was" in (text := record.getMessage())]
    assert message.startswith(f"{marker.parent}: ") and message.endswith(": the result will differ.")
    assert set(message.removeprefix(f"{marker.parent}: ").removesuffix(": the result will differ.").split("; ")) == {
        "images_per_step was 4, now 2", "training_samples was 8, now 10", "seed was 42, now 1",
        "data_seed was 42, now 1", "max_steps was 4, now 3", "warmup_steps was 0.0, now 1.0",
        "task_loss was cross_entropy, now dice", "max_grad_norm was 0.0, now 0.5",
        "crop_size was [32, 32], now [48, 48]",
        f"loss_kwargs was {WHOLE['loss_kwargs']}, now {loss_options()}",
    }  # fmt: skip


def test_the_best_student_is_restored_at_the_end(tmp_path):
    # with greater_is_better=False, the best is not the last
    best_last = {"load_best_model_at_end": True, "greater_is_better": False}
    trainer = distilling(tmp_path / "run", max_steps=4, **best_last, **SAVING, **SCORING)
    args = supervised(tmp_path).args
    assert args.metric_for_best_model == "mean_iou" and args.greater_is_better is True
    trainer.train()
    scores = logged(trainer, "eval_mean_iou")
    best = scores.index(min(scores)) + 1
    assert trainer.state.best_global_step == best < 4 and len(set(scores)) > 1
    assert same(weights(trainer.student), load_file(tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors"))
    assert trainer.evaluate(pictures())["eval_mean_iou"] == trainer.state.best_metric == min(scores)
    (tmp_path / "run").rename(tmp_path / "renamed")
    resumed = distilling(tmp_path / "renamed", max_steps=4, **best_last, **SAVING, **SCORING)
    resumed.train(resume_from_checkpoint="last")
    assert same(weights(resumed.student), weights(trainer.student))
