"""What a training writes, and that it goes on from there as if it had never stopped."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, loss_options, pictures, same, samples, segmenter, supervised, weights, with_scores

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_the_saved_folder_holds_the_student_alone(tmp_path):
    trainer = distilling(tmp_path)
    trainer.train()
    trainer.save_model()
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "training_args.json"} <= files(tmp_path)
    assert not [name for name in files(tmp_path) if name.endswith((".bin", ".pt", ".pth"))]
    assert "distillation.safetensors" not in files(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == segmenter().state_dict().keys()
    assert json.loads((tmp_path / "training_args.json").read_text())["loss"] == "kd+af_dcd"
    AfDcdImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("make", [supervised, distilling])
def test_the_saved_folder_loads_with_equal_logits(tmp_path, make):
    trainer = make(tmp_path)
    trainer.train()
    trainer.save_model()
    loaded = AfDcdForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = trainer.student.eval()(pixel_values=pixel_values).logits
        assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)


def test_a_checkpoint_holds_the_student_and_beside_it_the_loss_weights(tmp_path):
    trainer = distilling(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-2"
    assert same(load_file(checkpoint / "model.safetensors"), weights(trainer.student))
    assert same(load_file(checkpoint / "distillation.safetensors"), weights(trainer.loss_module))
    assert "training_args.bin" not in files(checkpoint)
    AfDcdForSemanticSegmentation.from_pretrained(checkpoint)


def test_a_loss_without_weights_writes_no_file_for_them(tmp_path):
    options = {"loss": "kd", "loss_kwargs": None, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    distilling(tmp_path, **options).train()
    assert "distillation.safetensors" not in files(tmp_path / "checkpoint-1")
    resumed = distilling(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2


@pytest.mark.parametrize("step", [3, 4], ids=["amid an epoch", "between epochs"])
def test_a_resumed_distillation_ends_as_the_uninterrupted_one_to_the_bit(tmp_path, step):
    # Random masks, dropout, shuffling, augmentation and batch norm are all at work; an epoch has two steps.
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": step, "loss_kwargs": loss_options(mask="random")}
    whole = distilling(tmp_path / "run", **options)
    whole.train()
    torch.manual_seed(99)
    resumed = distilling(tmp_path / "run", segmenter(5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
    assert same(weights(resumed.student), weights(whole.student))
    assert same(weights(resumed.loss_module), weights(whole.loss_module))
    for term in ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast", "learning_rate"):
        assert logged(resumed, term) == logged(whole, term)


def test_a_resumed_supervised_training_ends_as_the_uninterrupted_one_to_the_bit(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 1}
    whole = supervised(tmp_path, **options)
    whole.train()
    resumed = supervised(tmp_path, segmenter(5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(resumed.student), weights(whole.student))
    assert logged(resumed, "eval_mean_iou") == logged(whole, "eval_mean_iou")


def test_resuming_without_the_loss_weights_is_an_error(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    distilling(tmp_path, **options).train()
    checkpoint = tmp_path / "checkpoint-1"
    for name in ("checkpoint.json", "distillation.safetensors"):  # as plain transformers would have written it
        (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match="distillation.safetensors is missing.*save_only_model"):
        distilling(tmp_path, **options).train(resume_from_checkpoint=str(checkpoint))


def test_resuming_with_another_loss_is_an_error_that_names_the_weights(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    distilling(tmp_path, **options).train()
    other = distilling(tmp_path, **options, loss_kwargs=loss_options(projector="enhanced"))
    with pytest.raises((RuntimeError, ValueError), match="projector"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize("make", [supervised, distilling])
def test_the_best_student_is_restored_at_the_end(tmp_path, make):
    trainer = make(
        tmp_path,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        greater_is_better=False,  # the best is then not simply the last
    )
    trainer.train()
    scores = logged(trainer, "eval_mean_iou")
    best = scores.index(min(scores)) + 1
    assert trainer.state.best_global_step == best < 4 and len(set(scores)) > 1
    assert same(weights(trainer.student), load_file(tmp_path / f"checkpoint-{best}" / "model.safetensors"))
    assert trainer.evaluate(pictures())["eval_mean_iou"] == trainer.state.best_metric == min(scores)


def test_the_best_is_by_default_the_highest_mean_iou(tmp_path):
    args = supervised(tmp_path).args
    assert args.metric_for_best_model == "mean_iou" and args.greater_is_better is True


def test_a_student_that_does_not_fit_the_checkpoint_is_an_error_that_names_the_weights(tmp_path):
    supervised(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    with_auxiliary_head = supervised(tmp_path, segmenter(auxiliary_head=True), max_steps=2)
    with pytest.raises(ValueError, match=r"do not fit this student. Missing: auxiliary_head\..* unexpected: none"):
        with_auxiliary_head.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_of_the_student_alone_cannot_be_resumed(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    supervised(tmp_path, **options).train()
    with pytest.raises(ValueError, match="checkpoint-2 holds the student only .*without optimizer"):
        supervised(tmp_path, **options).train(resume_from_checkpoint=True)


def test_what_makes_a_continuation_differ_is_said(tmp_path, caplog):
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    supervised(tmp_path, **options).train()
    other = {"seed": 1, "per_device_train_batch_size": 2, "train_dataset": samples(10)}
    with caplog.at_level("WARNING", logger="afdcd_hf"):
        supervised(tmp_path, **options, **other).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for words in ("images per step were 4, now 2", "training samples were 8, now 10", "seed were 42, now 1"):
        assert words in caplog.text
    assert "checkpoint-2 is not the newest" in caplog.text and "processes" not in caplog.text


@pytest.mark.parametrize("limit", [1, 2])
def test_the_newest_and_the_best_checkpoint_are_kept(tmp_path, limit):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 5}
    trainer = supervised(tmp_path, **options, save_total_limit=limit, greater_is_better=False)
    with_scores(trainer, 0.5, 0.1, 0.4, 0.3, 0.2).train()  # the second is the best
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    # In the end transformers itself removes all but the best where only one is wanted.
    assert kept == (["checkpoint-2"] if limit == 1 else ["checkpoint-2", "checkpoint-5"])


def test_the_best_checkpoint_is_found_again_where_the_folder_was_moved(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    supervised(tmp_path / "here", **options).train()
    (tmp_path / "here").rename(tmp_path / "there")
    resumed = supervised(tmp_path / "there", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_model_checkpoint == str(
        tmp_path / "there" / f"checkpoint-{resumed.state.best_global_step}"
    )
