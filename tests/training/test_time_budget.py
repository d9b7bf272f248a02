"""Trainings of a given time: where they end, how rate and teacher follow the clock, and that they go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import distilling, logged, passes_of, run_two_processes, segmenter, supervised, weights

from afdcd_hf.cli.process_group import leave_process_group
from afdcd_hf.training.timing import StepTimer


class ToldTimer(StepTimer):
    """Believes that steps take so many seconds, the last number again and again."""

    durations: tuple[float, ...] = (1.0,)

    def reset(self):
        super().reset()
        self.begun = 0

    def start(self):
        super().start()
        self.begun += 1

    def lap(self, part):
        super().lap(part)
        self.seconds_in_steps = sum(self.durations[min(step, len(self.durations) - 1)] for step in range(self.begun))


def steps_last(trainer, *durations: float):
    """Let the trainer's clock say that its steps take so long."""
    trainer.timer.__class__, trainer.timer.durations = ToldTimer, durations
    return trainer


@pytest.mark.parametrize(
    ("durations", "limit", "steps"),
    [
        ([1.0], 5.0, 5),
        ([3.0], 10.0, 3),  # 9 s are nearer to 10 than 12 are
        ([3.0], 11.0, 4),
        ([1.0], 0.1, 1),  # at least one
        ([1.0, 1.0, 4.0, 1.0], 7.6, 5),  # a step that was held up says nothing of the next
    ],
)
def test_a_training_ends_with_the_step_whose_end_is_nearest_to_the_time(tmp_path, durations, limit, steps):
    trainer = steps_last(supervised(tmp_path, max_steps=2, max_seconds=limit), *durations)
    trainer.train()  # of 2 steps an epoch
    assert trainer.state.global_step == trainer.state.max_steps == steps


def test_it_ends_early_too_and_scores_and_saves_its_last_step(tmp_path):
    often = {"eval_strategy": "steps", "eval_steps": 100, "save_strategy": "steps", "save_steps": 100}
    trainer = steps_last(supervised(tmp_path, max_steps=40_000, max_seconds=3.0, **often), 1.0)
    trainer.train()
    assert trainer.state.global_step == 3 and (tmp_path / "checkpoint-3").is_dir()
    summary = trainer.state.log_history[-1]
    assert summary["train_samples_per_second"] == pytest.approx(3 * 4 / summary["train_runtime"], rel=0.01)


@pytest.mark.parametrize("warmup_steps", [0, 2])
@pytest.mark.parametrize("kind", ["polynomial", "cosine", "linear"])
def test_the_learning_rate_is_that_of_the_share_of_the_time(tmp_path, kind, warmup_steps):
    schedule = {"lr_scheduler_type": kind, "warmup_steps": warmup_steps}
    by_steps = supervised(tmp_path, max_steps=8, **schedule)
    by_steps.train()
    expected = logged(by_steps, "learning_rate")
    # twice as slow in its first half: 8 steps of the schedule are 8 s, and these four steps begin at 0, 2, 4 and 5 s
    timed = steps_last(supervised(tmp_path, max_steps=8, max_seconds=8.0, **schedule), 2.0, 2.0, 1.0)
    timed.train()
    assert logged(timed, "learning_rate") == pytest.approx([expected[step] for step in (0, 2, 4, 5, 6, 7)], rel=1e-6)


def test_the_teacher_leaves_when_its_share_of_the_time_is_over(tmp_path):
    teacher = segmenter(1, channels=48)
    trainer = distilling(tmp_path, teacher=teacher, max_steps=50, max_seconds=9.0, distill_until=0.5)
    steps_last(trainer, 2.0, 2.0, 2.0, 1.0)
    calls = passes_of(teacher)
    trainer.train()
    assert trainer.state.global_step == 6 and len(calls) == 3  # at 0, 2 and 4 s of 9


def test_accumulated_batches_are_one_step_of_the_clock(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = steps_last(supervised(tmp_path, max_steps=50, max_seconds=5.0, **options), 1.0)
    trainer.train()
    assert trainer.state.global_step == 5 and len(logged(trainer, "learning_rate")) == 5


def test_a_resumed_run_has_the_time_that_was_left(tmp_path):
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
    assert finished.state.global_step == 6
    assert all(torch.equal(weights(finished.model)[name], value) for name, value in weights(whole.model).items())


def test_a_checkpoint_with_a_clock_and_one_without_are_not_confused(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 1}
    steps_last(supervised(tmp_path / "timed", max_seconds=2.0, **saved), 1.0).train()
    supervised(tmp_path / "counted", **saved).train()
    with pytest.raises(ValueError, match="written with max_seconds, and this run has none"):
        supervised(tmp_path / "a", **saved).train(resume_from_checkpoint=str(tmp_path / "timed/checkpoint-1"))
    with pytest.raises(ValueError, match="written without max_seconds, and this run has 2"):
        run = supervised(tmp_path / "b", max_seconds=2.0, **saved)
        run.train(resume_from_checkpoint=str(tmp_path / "counted/checkpoint-1"))


def test_a_second_training_begins_at_zero(tmp_path):
    trainer = steps_last(supervised(tmp_path, max_seconds=3.0), 1.0)
    assert trainer.share_done == 0.0
    trainer.train()
    assert trainer.share_done == 1.0
    trainer.train()
    assert trainer.state.global_step == 3


def test_the_real_clock_ends_a_training(tmp_path):
    trainer = supervised(tmp_path, max_steps=1_000_000, max_seconds=1.5, eval_strategy="steps", eval_steps=10)
    trainer.train()
    (summary,) = logged(trainer, "train_seconds_in_steps")
    # however slow the machine: it ends early by half a step at most, and a step is no longer than all of them
    assert trainer.state.global_step < 100_000 and summary > 0.99 * 2 / 3 * 1.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seconds": 0.0}, "max_seconds=0.0 must be above 0"),
        ({"max_seconds": float("nan")}, "max_seconds=nan must be a finite number, above 0"),
        ({"max_seconds": 3.0, "max_steps": -1}, "max_seconds needs max_steps > 0, not -1"),
    ],
)
def test_a_time_that_cannot_be_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        supervised(tmp_path, **options)


def test_a_schedule_that_looks_at_scores_is_refused(tmp_path):
    scored = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match="ReduceLROnPlateau is not: use an lr_scheduler_type such as polynomial"):
        supervised(tmp_path, max_seconds=3.0, **scored).train()


def test_the_clock_of_the_steps_stands_still_between_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("afdcd_hf.training.timing.time.perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"))
    for _ in range(2):
        timer.start()
        for part, seconds in (("data", 1.0), ("student", 2.0)):
            now[0] += seconds
            timer.lap(part)
        timer.stop()
        now[0] += 7.0  # an evaluation
        timer.lap("loss")  # which computes losses, too
        timer.take()  # a line of the log takes nothing away
    assert timer.seconds_in_steps == 6.0
    timer.reset()
    assert timer.seconds_in_steps == 0.0


@pytest.mark.slow
def test_processes_follow_the_clock_of_the_first(tmp_path):
    run_two_processes(__file__, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["steps"] == 4 and first["teacher"] == 2


def _train_on_this_rank(folder: Path) -> None:
    teacher = segmenter(1, channels=48)
    options = {"total_batch_size": 4, "max_steps": 9, "max_seconds": 8.0, "distill_until": 0.5}
    trainer = distilling(folder / "run", teacher=teacher, **options)
    steps_last(trainer, 2.0 if trainer.args.process_index == 0 else 0.3)
    calls = passes_of(teacher)
    trainer.train()
    seen = {"steps": trainer.state.global_step, "teacher": len(calls), "rates": logged(trainer, "learning_rate")}
    seen["weights"] = sum(p.double().sum().item() for p in trainer.model.parameters())
    (folder / f"{trainer.args.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    _train_on_this_rank(Path(sys.argv[1]))
    leave_process_group()
