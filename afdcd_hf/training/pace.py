"""Trainings that last for a given time instead of a number of steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from .scale_out import images_per_step

PACE_NAME = "pace.safetensors"


class Pace:
    """What `max_seconds` changes in a trainer; mixed into `SegmentationTrainer` in front of its timing.

    The share of the time that is gone takes the place of the share of the steps: in the learning rate's schedule, which
    stays that of `max_steps` steps, and in `distill_until`. The training ends with the step whose end is nearest to the
    time, so that it misses it by half a step at most, however fast the machine is at the moment. Evaluations and saving
    do not count, a resumed run goes on with the seconds that were left, and all processes follow the first one's clock.

    `state.max_steps` is the number of steps that is expected from the speed so far.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._seconds = self._seconds_before = 0.0  # up to the last step; and those before a resumption
        if self.args.max_seconds is not None:
            self.add_callback(PaceCallback(self._look_at_clock))

    @property
    def share_done(self) -> float:
        """Of the training, 0 to 1: of its steps or, with `max_seconds`, of its time; 0 before there is one."""
        if self.args.max_seconds is not None:
            return min(self._seconds / self.args.max_seconds, 1.0)
        return self.state.global_step / self.state.max_steps if self.state.max_steps else 0.0

    def train(self, *args, **kwargs):
        """As in transformers; ends after `max_seconds` of training steps, where the arguments say so."""
        self._seconds = self._seconds_before = 0.0
        return super().train(*args, **kwargs)

    def set_initial_training_values(self, *args, **kwargs):
        """As in transformers; the passes over the data are not counted where time is."""
        epochs, *others = super().set_initial_training_values(*args, **kwargs)
        return (epochs if self.args.max_seconds is None else sys.maxsize, *others)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """As in transformers; with `max_seconds`, a schedule that follows the clock.

        Raises:
            ValueError: If the schedule is not a function of the step alone.
        """
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.args.max_seconds is None:
            return scheduler
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"max_seconds needs a schedule that is a function of the step, which "
                f"{type(scheduler).__name__} is not: use an lr_scheduler_type such as polynomial, cosine or linear."
            )

        def at_clock(multiplier: Callable[[float], float]) -> Callable[[int], float]:
            return lambda step: multiplier(self.share_done * num_training_steps)

        scheduler.lr_lambdas = [at_clock(multiplier) for multiplier in scheduler.lr_lambdas]
        return scheduler

    def _look_at_clock(self, state: TrainerState) -> None:
        """Once a step, when its work is done and before it is counted: when will the training end?"""
        before = self._seconds
        self._seconds = self._agreement.number_of_first(self._seconds_so_far())
        steps, left = state.global_step + 1, self.args.max_seconds - self._seconds
        mean = self._seconds / steps
        next_step = min(self._seconds - before, mean)  # the last one may have been held up
        more = max(1, round(left / mean)) if left > next_step / 2 else 0  # or one more would end too late by more
        state.max_steps = steps + more

    def _seconds_so_far(self) -> float:
        return self._seconds_before + self.timer.seconds_in_steps

    def _extra_state(self) -> dict[str, dict[str, Tensor]]:
        state = super()._extra_state()
        if self.args.max_seconds is not None:
            state[PACE_NAME] = {"seconds": torch.tensor(self._seconds_so_far(), dtype=torch.float64)}
        return state

    def _init_training_state(self, max_steps: int, per_epoch: int, epochs: int, checkpoint: str | None, trial: Any):
        """As in transformers; a resumed run has used a part of its time, and none is trained where nothing is left."""
        progress = super()._init_training_state(max_steps, per_epoch, epochs, checkpoint, trial)
        if checkpoint is not None:
            self._seconds = self._seconds_before = _seconds_of(Path(checkpoint), self.args.max_seconds)
            if self.args.max_seconds is not None and self._seconds >= self.args.max_seconds:
                self.state.max_steps = self.state.global_step
                return sys.maxsize, 0  # passes that are done: all
        return progress

    def _finalize_training(self, trial: Any, num_train_samples: float, start_time: float):
        """As in transformers, which derives samples per second from the planned number of samples."""
        if self.args.max_seconds is not None:
            num_train_samples = self.state.max_steps * images_per_step(self.args)
        return super()._finalize_training(trial, num_train_samples, start_time)


class PaceCallback(TrainerCallback):
    """Looks at the clock right after each step of the optimizer, before the schedule moves on.

    Args:
        look: gets the state of the run, whose present step is not counted yet.
    """

    def __init__(self, look: Callable[[TrainerState], None]):
        self._look = look

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Called by the Trainer."""
        self._look(state)


def _seconds_of(checkpoint: Path, max_seconds: float | None) -> float:
    """Seconds of training before a checkpoint; 0.0 where time does not matter."""
    path = checkpoint / PACE_NAME
    timed = path.is_file()
    if timed != (max_seconds is not None):
        way, other = ("with", "none") if timed else ("without", f"{max_seconds:g}")
        raise ValueError(
            f"{checkpoint} was written {way} max_seconds, and this run has {other}: their schedules differ. Resume it "
            f"{way} max_seconds."
        )
    return load_file(path)["seconds"].item() if timed else 0.0
