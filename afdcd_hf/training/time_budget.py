"""Trainings that last for a given time instead of a number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import TrainerCallback

from .timing import StepTimer


class TimeBudget(TrainerCallback):
    """Ends a training after `seconds` of training steps, and tells which share of them is over.

    The training ends with the step whose end is nearest to the time, so that it misses it by half a step at most,
    however fast the machine is at the moment. Evaluations and saving do not count, a resumed run has the seconds that
    were left, and all processes follow the first one's clock. `state.max_steps` becomes the number of steps that is
    expected from the speed so far.

    Args:
        seconds: the time to train for.
        timer: of the steps.

    Attributes:
        used: seconds of training steps up to the last one, before a resumption too.
    """

    def __init__(self, seconds: float, timer: StepTimer):
        self.seconds = seconds
        self.timer = timer
        self.begin(0.0)

    def begin(self, used: float) -> None:
        """A training begins, of which earlier calls have used so many seconds."""
        self.used = self._before = used

    @property
    def share_used(self) -> float:
        """Of the time, 0 to 1."""
        return min(self.used / self.seconds, 1.0)

    def on_train_begin(self, args, state, control, **kwargs):
        """A run whose time is over has no further step."""
        if self.used >= self.seconds:
            state.max_steps = state.global_step

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Once a step, when its work is done and before it is counted: when will the training end?"""
        seconds, before = self._before + self.timer.seconds_in_steps, self.used
        if args.world_size > 1:
            clock = torch.tensor(seconds, dtype=torch.float64, device=args.device)
            seconds = broadcast(clock, from_process=0).item()
        self.used = seconds
        steps, left = state.global_step + 1, self.seconds - self.used
        mean = self.used / steps
        next_step = min(self.used - before, mean)  # the last one may have been held up
        more = max(1, round(left / mean)) if left > next_step / 2 else 0  # or one more would end too late by more
        state.max_steps = steps + more

    def pace(self, scheduler: LRScheduler, num_steps: int) -> None:
        """Let a schedule written for `num_steps` steps follow the clock.

        Raises:
            ValueError: the schedule is not a function of the step alone.
        """
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"max_seconds needs a schedule that is a function of the step, which "
                f"{type(scheduler).__name__} is not: use an lr_scheduler_type such as polynomial, cosine or linear."
            )

        def at_clock(multiplier: Callable[[Any], float]) -> Callable[[int], float]:
            return lambda step: multiplier(self.share_used * num_steps)

        scheduler.lr_lambdas = [at_clock(multiplier) for multiplier in scheduler.lr_lambdas]
