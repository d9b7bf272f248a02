"""What a training writes, which checkpoints count as complete, and that it goes on from there as if never stopped."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, loss_options, pictures, same, samples, segmenter, supervised, weights

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor
from afdcd_hf.training import checkpoints, saving
from afdcd_hf.training.checkpoints import (
    check_whole,
    checkpoint_to_resume,
    fault_of,
    last_whole_checkpoint,
    mark_complete,
)
from afdcd_hf.training.guard import NonFiniteLossError

SAVING = {"save_strategy": "steps", "save_steps": 1}
SCORING = {"eval_strategy": "steps", "eval_steps": 1}


# Which are complete


def checkpoint(folder: Path, step: int) -> Path:
    """A folder with two files and its marker."""
    path = folder / f"checkpoint-{step}"
    (path / "part").mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    (path / "part" / "state").write_text("x")
    mark_complete(path, {"format": 2, "step": step})
    return path


def marked(content: str):
    return lambda folder: (folder / "checkpoint.json").write_text(content)


FAULTS = {
    "part/state is missing": lambda folder: shutil.rmtree(folder / "part"),
    "model.safetensors has 6 bytes instead of 7": lambda folder: (folder / "model.safetensors").write_text("weight"),
    "model.safetensors is damaged": lambda folder: (folder / "model.safetensors").write_text("wEights"),
    "it has no checkpoint.json": lambda folder: (folder / "checkpoint.json").unlink(),
    "checkpoint.json is damaged": marked('{"files": {"model'),
    "checkpoint.json is damaged ": marked('{"files": {"a": 1}}'),
    "it holds step 4, so its folder was renamed": marked('{"step": 4, "files": {}}'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_torn_checkpoint_is_skipped_with_a_warning_and_refused_where_it_is_named(tmp_path, caplog, fault):
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-10" and not caplog.text
    FAULTS[fault](tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-9"
    assert f"skipping {tmp_path / 'checkpoint-10'}: " in caplog.text and fault.strip() in caplog.text
    if "no checkpoint.json" in fault:  # it may be plain transformers'
        check_whole(tmp_path / "checkpoint-10")
        assert "checkpoint-10 cannot be checked: it has no checkpoint.json" in caplog.text
    else:
        message = rf"checkpoint-10 is not complete: .*{fault.strip()}.*checkpoint-9 is complete"
        with pytest.raises(ValueError, match=message):
            check_whole(tmp_path / "checkpoint-10")


def test_without_any_marker_the_newest_checkpoint_with_its_last_file_is_used(tmp_path, caplog):
    """As a run leaves it that was killed after the older one had been removed, and before the new one was marked."""
    last = checkpoint(tmp_path, 2)
    (last / "checkpoint.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .* is complete .*name it: .*checkpoint-2"):
        last_whole_checkpoint(tmp_path)
    (last / "trainer_state.json").write_text("{}")
    assert last_whole_checkpoint(tmp_path) == last and "checkpoint-2 has its last file and is used" in caplog.text


def test_a_checkpoint_that_is_not_there_is_an_error_and_leftovers_of_a_killed_run_go(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in .*another output_dir"):
        last_whole_checkpoint(tmp_path / "no")
    checkpoint(tmp_path, 5)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*checkpoint-6; .* has checkpoint-5"):
        check_whole(tmp_path / "checkpoint-6")
    for name in ("_saving-model-a1b2c3", "_saving-notes", "_mine"):
        (tmp_path / name).mkdir()
    assert checkpoint_to_resume(supervised(tmp_path).args, None) is None
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5", "_saving-notes", "_mine"}


# What is written

# Random masks, dropout, shuffling, augmentation and batch norm are all at work; an epoch has two steps.
WHOLE = {"max_steps": 4, "loss_kwargs": loss_options(mask="random"), **SAVING}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A distillation of four steps with a checkpoint after each, whose student was saved at the end."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = distilling(folder, **WHOLE)
    trainer.train()
    trainer.save_model()
    return trainer, folder


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A supervised training of three steps with a checkpoint and a score after each."""
    folder = tmp_path_factory.mktemp("labels")
    trainer = supervised(folder, max_steps=3, **SAVING, **SCORING)
    trainer.train()
    return trainer, folder


def test_the_saved_folder_holds_the_student_alone_and_loads_with_equal_logits(saved):
    trainer, folder = saved
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "training_args.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    assert "distillation.safetensors" not in names
    assert load_file(folder / "model.safetensors").keys() == segmenter().state_dict().keys()
    assert json.loads((folder / "training_args.json").read_text())["loss"] == "kd+af_dcd"
    modes = [stat.S_IMODE((folder / name).stat().st_mode) for name in ("model.safetensors", "training_args.json")]
    assert modes[0] == modes[1]  # who may read the settings may read the weights
    AfDcdImageProcessor.from_pretrained(folder)
    loaded = AfDcdForSemanticSegmentation.from_pretrained(folder)
    pixel_values = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trainer.student.eval()(pixel_values=pixel_values).logits
        assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)


def test_a_checkpoint_holds_the_student_and_the_loss_weights_and_marks_every_file(saved):
    trainer, folder = saved[0], saved[1] / "checkpoint-4"
    assert same(load_file(folder / "model.safetensors"), weights(trainer.student))
    assert same(load_file(folder / "distillation.safetensors"), weights(trainer.loss_module))
    marker = json.loads((folder / "checkpoint.json").read_text())
    expected = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "checkpoint.json"}
    assert {name: file["bytes"] for name, file in marker["files"].items()} == expected
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(expected)
    assert "training_args.bin" not in expected
    assert marker["step"] == 4 and marker["processes"] == 1 and marker["images_per_step"] == 4
    assert marker["versions"]["torch"] == torch.__version__
    AfDcdForSemanticSegmentation.from_pretrained(folder)


@pytest.mark.parametrize("when", ["model", "optimizer", "process", "marker"])
def test_where_a_checkpoint_cannot_be_written_the_one_before_stays_and_the_error_says_so(tmp_path, monkeypatch, when):
    trainer = supervised(tmp_path, **SAVING)
    place, name = {
        "model": (saving, "write_student"),
        "optimizer": (trainer, "_save_optimizer_and_scheduler"),
        "process": (saving, "save_tensors"),
        "marker": (checkpoints, "written_whole"),
    }[when]
    original = getattr(place, name)

    def full(*args, **options):
        if trainer.state.global_step >= 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat Exception raised")
        return original(*args, **options)

    monkeypatch.setattr(place, name, full)
    message = (
        r"checkpoint-2 could not be written: .*file write failed \(.* are free there\)\..*newest is .*checkpoint-1"
    )
    with pytest.raises(OSError, match=message) as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert checkpoint_to_resume(trainer.args, "last") == str(tmp_path / "checkpoint-1")


def test_a_trained_student_that_its_folder_cannot_take_is_saved_elsewhere(labels, tmp_path, monkeypatch):
    original = saving.write_student

    def write(folder, *args):
        if tmp_path / "run" in folder.parents:
            raise OSError(28, "No space left on device")
        original(folder, *args)

    monkeypatch.setattr(saving, "write_student", write)
    monkeypatch.setattr(saving.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match="run could not be written: No space left.* is saved in .*afdcd-run-.* instead"):
        labels[0].save_model(str(tmp_path / "run"))
    (rescued,) = tmp_path.glob("afdcd-run-*")
    assert same(load_file(rescued / "model.safetensors"), weights(labels[0].student))


@pytest.mark.parametrize("at_the_end", [True, False], ids=["saved at the end", "in a checkpoint"])
def test_weights_that_became_non_finite_in_the_last_step_are_not_saved(tmp_path, at_the_end):
    trainer = supervised(tmp_path, **({} if at_the_end else SAVING))
    step = trainer.create_optimizer().step

    def diverging(*args, **options):
        step(*args, **options)
        if trainer.state.global_step == 1:
            trainer.student.head.classifier.weight.data[0] = float("nan")

    trainer.optimizer.step = diverging
    with pytest.raises(NonFiniteLossError, match="^step 2: 1 of .* are not finite, head.classifier.weight"):
        trainer.train()
        trainer.save_model()
    assert fault_of(tmp_path / "checkpoint-1") is None if not at_the_end else not list(tmp_path.iterdir())
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "checkpoint-2").exists()


# A run that is continued


@pytest.mark.parametrize("step", [1, 2], ids=["amid an epoch", "between epochs"])
def test_a_resumed_distillation_ends_as_the_uninterrupted_one_to_the_bit(saved, tmp_path, step):
    torch.manual_seed(99)
    resumed = distilling(tmp_path, segmenter(5), **WHOLE)
    resumed.train(resume_from_checkpoint=str(saved[1] / f"checkpoint-{step}"))
    assert same(weights(resumed.model), weights(saved[0].model))
    for term in ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast", "learning_rate"):
        assert logged(resumed, term) == logged(saved[0], term)


@pytest.mark.parametrize("step", [1, 3], ids=["amid an epoch", "finished"])
def test_a_resumed_supervised_training_ends_as_the_uninterrupted_one_to_the_bit(labels, tmp_path, step):
    resumed = supervised(tmp_path, segmenter(5), max_steps=3, **SCORING)
    resumed.train(resume_from_checkpoint=str(labels[1] / f"checkpoint-{step}"))
    assert resumed.state.global_step == 3 and same(weights(resumed.student), weights(labels[0].student))
    assert logged(resumed, "eval_mean_iou") == logged(labels[0], "eval_mean_iou")


def test_the_memory_of_cirkd_is_in_the_checkpoint_and_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    cirkd = {"num_classes": 4, "pixel_queue": 7, "region_queue": 5, "pixels_per_image": 2, "pixel_draws": 16}
    options = {"loss": "cirkd", "loss_kwargs": {"cirkd": {**cirkd, "region_draws": 8}}, "max_steps": 3, **SAVING}
    whole = distilling(tmp_path, **options)
    start = weights(whole.loss_module)
    whole.train()
    stored = load_file(tmp_path / "checkpoint-2" / "distillation.safetensors")
    assert stored["pixels.vectors"].abs().sum() > 0 and stored["regions.appended"].sum() > 0
    resumed = distilling(tmp_path, segmenter(5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(resumed.model), weights(whole.model))
    assert not torch.equal(weights(whole.loss_module)["head.0.weight"], start["head.0.weight"])


def test_a_checkpoint_that_does_not_fit_the_run_is_refused_with_what_differs(saved, tmp_path):
    checkpoint = saved[1] / "checkpoint-1"
    plain = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")  # as plain transformers would have written it
    for name in ("checkpoint.json", "distillation.safetensors"):
        (plain / name).unlink()
    for folder, trainer, error, message in (
        (checkpoint, distilling(tmp_path, loss_kwargs=loss_options(projector="enhanced")), ValueError,
         "do not fit this distillation loss.*projector"),
        (checkpoint, distilling(tmp_path, segmenter(auxiliary_head=True)), ValueError,
         r"do not fit this student\..*Missing.* \"auxiliary_head\.features"),
        (plain, distilling(tmp_path), FileNotFoundError, "distillation.safetensors is missing.*save_only_model"),
        (checkpoint, distilling(tmp_path, learning_rate=5.0), ValueError,
         r"written with learning_rate 0.05 \(now 5.0\).*resume with the same"),
        (checkpoint, distilling(tmp_path, optim="adamw_torch"), ValueError,
         r"written with optim 'sgd' \(now 'adamw_torch'\), optim_args"),
        (checkpoint, distilling(tmp_path, weight_decay=0.5), ValueError, "written with weight_decay"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            trainer.train(str(folder))


def test_a_checkpoint_of_the_student_alone_cannot_be_resumed_and_one_without_loss_weights_has_no_file(tmp_path):
    options = {"max_steps": 1, "save_only_model": True, "loss": "kd", "loss_kwargs": None, **SAVING}
    distilling(tmp_path, **options).train()
    assert not (tmp_path / "checkpoint-1" / "distillation.safetensors").exists()
    with pytest.raises(ValueError, match="checkpoint-1 holds the student only .*without optimizer"):
        distilling(tmp_path, **options).train(resume_from_checkpoint=True)


def test_what_makes_a_continuation_differ_is_said(labels, tmp_path, caplog):
    other = {"seed": 1, "per_device_train_batch_size": 2, "train_dataset": samples(10), "max_steps": 4}
    with caplog.at_level("WARNING", logger="afdcd_hf"):
        trainer = supervised(tmp_path, warmup_steps=1, task_loss="dice", **other)
        trainer.train(resume_from_checkpoint=str(labels[1] / "checkpoint-2"))
    for words in ("images_per_step was 4, now 2", "training_samples was 8, now 10", "seed was 42, now 1"):
        assert words in caplog.text
    assert "max_steps was 3, now 4: the run changes" in caplog.text and "warmup_steps was" in caplog.text
    assert "task_loss was cross_entropy, now dice" in caplog.text and "processes" not in caplog.text


# The best


@pytest.mark.parametrize("make", [supervised, distilling])
def test_the_best_student_is_restored_at_the_end(tmp_path, make):
    # with greater_is_better=False the best is not simply the last
    trainer = make(tmp_path, max_steps=4, load_best_model_at_end=True, greater_is_better=False, **SAVING, **SCORING)
    assert make(tmp_path).args.metric_for_best_model == "mean_iou" and make(tmp_path).args.greater_is_better is True
    trainer.train()
    scores = logged(trainer, "eval_mean_iou")
    best = scores.index(min(scores)) + 1
    assert trainer.state.best_global_step == best < 4 and len(set(scores)) > 1
    assert same(weights(trainer.student), load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors"))
    assert trainer.evaluate(pictures())["eval_mean_iou"] == trainer.state.best_metric == min(scores)
