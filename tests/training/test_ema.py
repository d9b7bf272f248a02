"""The averaged weights: their arithmetic, that they are what is scored and saved, and that they resume exactly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, pictures, same, segmenter, supervised, weights

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor, evaluate_segmenter
from afdcd_hf.training.ema import AveragedWeights
from afdcd_hf.training.training_args import SegmentationTrainingArguments

MAKERS = pytest.mark.parametrize("make", [supervised, distilling])


def changed(model, step):
    """The same weights after some made-up training step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else 1
            tensor.add_(noise)
    return model


def test_the_average_follows_the_recurrence_with_a_decay_that_grows_to_its_limit():
    model = segmenter()
    average = AveragedWeights(model, 0.5)
    expected = {name: tensor.double() for name, tensor in weights(model).items()}
    # (1 + t) / (10 + t) while that is below the limit of 0.5, which it reaches at t = 8
    for step, decay in {1: 2 / 11, 2: 3 / 12, 7: 8 / 17, 8: 0.5, 100: 0.5}.items():
        changed(model, step)
        average.update(model, step)
        now = weights(model)
        for name in expected:
            if now[name].is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * now[name].double()
            else:
                expected[name] = now[name].double()  # batch norm's counter
    for name, tensor in weights(average.model).items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=2e-6)


def test_the_average_of_half_precision_weights_is_kept_in_float32():
    model = segmenter().to(torch.bfloat16)
    average = AveragedWeights(model, 0.9999)
    before = weights(average.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.25)
    average.update(model, 10**6)
    for name, parameter in average.model.named_parameters():
        assert parameter.dtype == torch.float32 and not parameter.requires_grad
        assert not torch.equal(parameter, before[name])  # a step of 2.5e-5 is lost in bfloat16


def test_restarting_takes_over_the_network_as_it_is():
    model = segmenter()
    average = AveragedWeights(model, 0.9)
    changed(model, 1)
    average.restart(model)
    assert same(weights(average.model), weights(model))
    changed(model, 2)
    assert not same(weights(average.model), weights(model))  # a copy, not the same memory


@MAKERS
def test_the_average_is_scored_and_saved_and_the_raw_weights_lie_beside_it(tmp_path, make):
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    trainer = make(tmp_path, max_steps=3, ema_decay=0.9, **options)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    saved = load_file(checkpoint / "model.safetensors")
    assert same(saved, weights(trainer.average.model)) and trainer.evaluated_student is trainer.average.model
    assert same(load_file(checkpoint / "raw_student.safetensors"), weights(trainer.student))
    assert not same(saved, weights(trainer.student))
    loaded = AfDcdForSemanticSegmentation.from_pretrained(checkpoint)
    scores = evaluate_segmenter(loaded, pictures(), processor=AfDcdImageProcessor(), progress=False)
    assert logged(trainer, "eval_mean_iou") == [scores["mean_iou"]]
    trainer.save_model(str(tmp_path / "last"))
    assert same(load_file(tmp_path / "last" / "model.safetensors"), saved)
    assert not (tmp_path / "last" / "raw_student.safetensors").exists()


def test_the_average_is_the_recurrence_over_the_steps_of_a_training(tmp_path):
    recorded = []
    trainer = supervised(tmp_path, max_steps=3, ema_decay=0.9)
    expected = {name: p.detach().clone() for name, p in trainer.student.named_parameters()}
    trainer.optimizer = trainer.create_optimizer()
    trainer.optimizer.register_step_post_hook(lambda *_: recorded.append(weights(trainer.student)))
    trainer.train()
    assert len(recorded) == 3
    for step, now in enumerate(recorded, start=1):
        for name in expected:
            expected[name] = torch.lerp(expected[name], now[name], 1 - (1 + step) / (10 + step))
    for name, parameter in trainer.average.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6)


def test_averaging_leaves_the_training_itself_as_it_was(tmp_path):
    plain = distilling(tmp_path)
    plain.train()
    averaged = distilling(tmp_path, ema_decay=0.9)
    averaged.train()
    assert same(weights(plain.model), weights(averaged.model))
    assert plain.average is None and plain.evaluated_student is plain.student


@MAKERS
def test_a_resumed_training_ends_with_the_same_average_and_weights_to_the_bit(tmp_path, make):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "ema_decay": 0.9}
    whole = make(tmp_path, **options)
    whole.train()
    resumed = make(tmp_path, segmenter(5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(resumed.student), weights(whole.student))
    assert same(weights(resumed.average.model), weights(whole.average.model))


@MAKERS
def test_the_best_average_is_restored_at_the_end(tmp_path, make):
    every = {name: "steps" for name in ("eval_strategy", "save_strategy")} | {"eval_steps": 1, "save_steps": 1}
    best = {"load_best_model_at_end": True, "greater_is_better": False}
    trainer = make(tmp_path, max_steps=3, ema_decay=0.5, **every, **best)
    trainer.train()
    saved = load_file(tmp_path / f"checkpoint-{trainer.state.best_global_step}" / "model.safetensors")
    assert same(weights(trainer.evaluated_student), saved) and same(weights(trainer.student), saved)
    assert trainer.evaluate(pictures())["eval_mean_iou"] == trainer.state.best_metric


def test_a_second_training_averages_afresh(tmp_path):
    trainer = supervised(tmp_path, max_steps=1, ema_decay=0.9)
    trainer.train()
    start = weights(trainer.student)
    trainer.train()
    expected = torch.lerp(start["head.classifier.bias"], weights(trainer.student)["head.classifier.bias"], 9 / 11)
    torch.testing.assert_close(weights(trainer.average.model)["head.classifier.bias"], expected)


def test_resuming_with_an_average_that_was_not_saved_is_an_error_and_so_is_dropping_one(tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    supervised(tmp_path / "plain", **options).train()
    supervised(tmp_path / "averaged", ema_decay=0.9, **options).train()
    with pytest.raises(FileNotFoundError, match="raw_student.safetensors is missing.*written without ema_decay"):
        supervised(tmp_path, ema_decay=0.9, **options).train(str(tmp_path / "plain" / "checkpoint-1"))
    with pytest.raises(ValueError, match="written with ema_decay.*resume it with the same ema_decay"):
        supervised(tmp_path, **options).train(str(tmp_path / "averaged" / "checkpoint-1"))


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5, -0.1, float("nan")])
def test_a_decay_outside_of_zero_to_one_is_refused(tmp_path, decay):
    with pytest.raises(ValueError, match="ema_decay=.* must be .*above 0, below 1"):
        SegmentationTrainingArguments(output_dir=str(tmp_path), use_cpu=True, ema_decay=decay)
