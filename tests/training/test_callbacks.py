"""Averaged weights and time budgets."""

from __future__ import annotations

from itertools import accumulate, chain, repeat

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, passes_of, pictures, same, segmenter, supervised, weights

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor, evaluate_segmenter
from afdcd_hf.training.callbacks import AveragedWeights

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}

# Averaged weights


def test_half_precision_weights_are_averaged_in_float32():
    model = segmenter().to(torch.bfloat16)
    average, before = AveragedWeights(model, 0.9998), weights(model)["head.classifier.weight"].float()
    with torch.no_grad():
        model.head.classifier.weight.add_(1)
    average.update(10**6)
    change = average.model.head.classifier.weight - before
    torch.testing.assert_close(change, torch.full_like(change, 2e-4), rtol=0.01, atol=0)
    average.restart()
    assert all(torch.equal(tensor, weights(model)[name]) for name, tensor in weights(average.model).items())


@pytest.mark.parametrize("make", [supervised, distilling])
def test_the_average_is_scored_saved_resumed_and_restored_as_best_while_the_raw_weights_keep_training(tmp_path, make):
    options = {"max_steps": 4, "ema_decay": 0.3, **EVERY_STEP}  # `ema_decay` is reached at the third step
    whole = make(tmp_path, **options)
    recorded = []
    expected = dict(weights(whole.student))
    whole.optimizer = whole.create_optimizer()
    whole.optimizer.register_step_post_hook(lambda *_: recorded.append(weights(whole.student)))
    whole.train()
    for step, now in enumerate(recorded, start=1):
        share = 1 - min(0.3, (1 + step) / (10 + step))
        expected = {name: torch.lerp(expected[name], now[name], share) for name in now if now[name].ndim}
    for name, parameter in whole.average.model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-6)
    checkpoint = tmp_path / "checkpoint-4"
    saved = load_file(checkpoint / "model.safetensors")
    assert same(saved, weights(whole.average.model)) and whole.evaluated_student is whole.average.model
    assert same(load_file(checkpoint / "raw_student.safetensors"), weights(whole.student))
    loaded = AfDcdForSemanticSegmentation.from_pretrained(checkpoint)
    scores = evaluate_segmenter(loaded, pictures(), processor=AfDcdImageProcessor(), progress=False)
    assert logged(whole, "eval_mean_iou")[-1] == scores["mean_iou"]
    whole.save_model(str(tmp_path / "last"))
    assert same(load_file(tmp_path / "last" / "model.safetensors"), saved)
    assert not (tmp_path / "last" / "raw_student.safetensors").exists()

    best = {"load_best_model_at_end": True, "greater_is_better": False}
    resumed = make(tmp_path, segmenter(5), **options, **best)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(load_file(checkpoint / "model.safetensors"), saved)  # rewritten, bit-for-bit
    assert same(load_file(checkpoint / "raw_student.safetensors"), weights(whole.student))
    at_best = load_file(tmp_path / f"checkpoint-{resumed.state.best_global_step}" / "model.safetensors")
    assert same(weights(resumed.evaluated_student), at_best) and same(weights(resumed.student), at_best)

    plain = make(tmp_path / "plain", max_steps=4)
    plain.train()
    assert same(weights(plain.model), weights(whole.model)) and plain.evaluated_student is plain.student


def test_adding_or_dropping_ema_decay_when_resuming_is_an_error(tmp_path):
    options = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    supervised(tmp_path / "plain", **options).train()
    supervised(tmp_path / "averaged", ema_decay=0.9, **options).train()
    with pytest.raises(FileNotFoundError, match="raw_student.safetensors is missing.*written without ema_decay"):
        supervised(tmp_path, ema_decay=0.9, **options).train(str(tmp_path / "plain" / "checkpoint-1"))
    with pytest.raises(ValueError, match="written with ema_decay.*resume it with the same ema_decay"):
        supervised(tmp_path, **options).train(str(tmp_path / "averaged" / "checkpoint-1"))


# Time budgets


def steps_last(trainer, *durations: float):
    """Fake the durations of the trainer's steps, repeating the last one."""
    times, usual = accumulate(chain(durations, repeat(durations[-1]))), trainer.budget.on_optimizer_step

    def fake(*args, **kwargs):
        trainer.timer.seconds_in_steps = next(times)
        usual(*args, **kwargs)

    trainer.budget.on_optimizer_step = fake
    return trainer


@pytest.mark.parametrize(
    ("durations", "limit", "steps"),
    [
        ([3.0], 10.0, 3),  # 9 s is nearer to 10 s than 12 s
        ([1.0], 0.1, 1),  # at least one step
        ([1.0, 1.0, 4.0, 1.0], 7.6, 5),  # one slow step does not predict the next
    ],
)
def test_training_stops_after_the_step_that_ends_nearest_to_the_time_budget(tmp_path, durations, limit, steps):
    often = {"eval_strategy": "steps", "eval_steps": 100, "save_strategy": "steps", "save_steps": 100}
    batches = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}  # one optimizer step of the clock
    trainer = steps_last(supervised(tmp_path, max_steps=2, max_seconds=limit, **often, **batches), *durations)
    trainer.train()  # 2 steps per epoch
    assert trainer.state.global_step == trainer.state.max_steps == steps and trainer.share_done > 0.8
    assert (tmp_path / f"checkpoint-{steps}").is_dir() and logged(trainer, "eval_mean_iou")
    summary = trainer.state.log_history[-1]
    assert summary["train_samples_per_second"] == pytest.approx(steps * 4 / summary["train_runtime"], rel=0.01)


@pytest.mark.parametrize(("kind", "warmup_steps"), [("polynomial", 0), ("cosine", 2)])
def test_the_learning_rate_follows_the_share_of_time_used(tmp_path, kind, warmup_steps):
    schedule = {"lr_scheduler_type": kind, "warmup_steps": warmup_steps}
    by_steps = supervised(tmp_path, max_steps=8, **schedule)
    by_steps.train()
    expected = logged(by_steps, "learning_rate")
    # half the speed at first: the schedule's 8 steps are 8 s, and the steps begin at 0, 2, 4, 5, 6 and 7 s
    timed = steps_last(supervised(tmp_path, max_steps=8, max_seconds=8.0, **schedule), 2.0, 2.0, 1.0)
    timed.train()
    assert logged(timed, "learning_rate") == pytest.approx([expected[step] for step in (0, 2, 4, 5, 6, 7)], rel=1e-6)


def test_the_teacher_stops_running_after_its_share_of_the_time(tmp_path):
    teacher = segmenter(1, channels=48)
    trainer = distilling(tmp_path, teacher=teacher, max_steps=50, max_seconds=9.0, distill_until=0.5)
    steps_last(trainer, 2.0, 2.0, 2.0, 1.0)
    calls = passes_of(teacher)
    assert trainer.share_done == 0.0
    trainer.train()
    assert trainer.state.global_step == 6 and len(calls) == 3  # at 0, 2 and 4 s of 9


def test_a_resumed_run_continues_with_the_remaining_time(tmp_path, monkeypatch):
    options = {"max_steps": 6, "max_seconds": 6.0, "save_strategy": "steps", "save_steps": 2}
    whole = steps_last(supervised(tmp_path / "whole", **options), 1.0)
    whole.train()
    resumed = steps_last(supervised(tmp_path / "resumed", segmenter(7), **options), 2.0)  # a slower machine
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert whole.state.global_step == 6 and resumed.state.global_step == 4
    rates = logged(whole, "learning_rate")
    assert logged(resumed, "learning_rate") == pytest.approx([*rates[:3], rates[4]])
    finished = supervised(tmp_path / "finished", segmenter(7), **options)
    finished.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert finished.state.global_step == 6 and same(weights(finished.model), weights(whole.model))
    with pytest.raises(ValueError, match=r"written with max_seconds 'given' \(now None\)"):
        supervised(tmp_path / "a").train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    monkeypatch.setattr(type(finished.args), "process_index", 1)  # a process that the checkpoint's run did not have
    finished.checkpoints.begin(str(tmp_path / "whole" / "checkpoint-6"))
    assert finished.budget.used == pytest.approx(6.0)


def test_the_real_clock_ends_training_and_a_schedule_that_depends_on_scores_is_refused(tmp_path):
    trainer = supervised(tmp_path, max_steps=1_000_000, max_seconds=0.5, eval_strategy="steps", eval_steps=10)
    trainer.train()
    (summary,) = logged(trainer, "train_seconds_in_steps")
    # on any machine: it ends at most half a step early, and a step is not longer than the whole run
    assert trainer.state.global_step < 100_000 and summary > 0.99 * 2 / 3 * 0.5
    scored = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match="ReduceLROnPlateau is not: use an lr_scheduler_type such as polynomial"):
        supervised(tmp_path, max_seconds=3.0, **scored).train()
