"""Callbacks for averaged weights, time budgets and random seeds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from ..data.samples import TrainingSamples
from .datasets import parts_of
from .distributed import rank_seed
from .progress import StepTimer


class AveragedWeights(TrainerCallback):
    """Exponential moving average of a model's weights, as a copy in eval mode: `average ← d·average + (1 - d)·weights`.

    After step t, d is the smaller of `decay` and (1 + t) / (10 + t). It depends on t alone, so a checkpoint needs no
    counter. Batch norm statistics are averaged too, integer buffers copied. Half precision is averaged in float32, or
    small updates would be lost. (torch's AveragedModel copies the first step; timm's ModelEmaV3 uses another d.)
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self._trained = decay, model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for tensor in _tensors(self.model):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()

    @torch.no_grad()
    def restart(self) -> None:
        """Restart the average from the model's current weights."""
        for average, tensor in zip(_tensors(self.model), _tensors(self._trained), strict=True):
            average.data = tensor.detach().to(average.dtype, copy=True)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after optimizer step `step` (1, 2, ...) to the average."""
        averages, current = [], []
        for average, tensor in zip(_tensors(self.model), _tensors(self._trained), strict=True):
            if average.is_floating_point():
                averages.append(average)
                current.append(tensor.to(average.dtype))
            else:
                average.copy_(tensor)
        torch._foreach_lerp_(averages, current, 1 - min(self.decay, (1 + step) / (10 + step)))

    def on_train_begin(self, args, state, control, **kwargs):
        self.model.to(args.device)
        if state.global_step == 0:  # a resumed run has loaded its average
            self.restart()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.update(state.global_step + 1)  # this step is not counted yet


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class TimeBudget(TrainerCallback):
    """Ends training with the step whose end is nearest to the time budget; the learning rate follows the clock.

    Evaluations and saving do not count. A resumed run continues with the remaining time, and all processes follow the
    clock of rank 0. `state.max_steps` becomes the number of steps expected from the speed so far.
    """

    def __init__(self, seconds: float, timer: StepTimer):
        self.seconds, self.timer = seconds, timer
        self.begin(0.0)

    def begin(self, used: float) -> None:
        """Start a run of which earlier calls have used `used` seconds."""
        self.used = self._used_before = used

    @property
    def share_used(self) -> float:
        """Share of the time used so far, 0 to 1."""
        return min(self.used / self.seconds, 1.0)

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        """Make the schedule over `max_steps` follow the clock; ValueError if it depends on more than the step."""
        if self.used >= self.seconds:
            state.max_steps = state.global_step
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)  # accelerate may have wrapped it
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"max_seconds needs a schedule that is a function of the step, which "
                f"{type(scheduler).__name__} is not: use an lr_scheduler_type such as polynomial, cosine or linear."
            )

        def by_clock(multiplier: Callable[[Any], float], step: int) -> float:
            return multiplier(self.share_used * args.max_steps)

        scheduler.lr_lambdas = [partial(by_clock, multiplier) for multiplier in scheduler.lr_lambdas]

    def on_optimizer_step(self, args, state, control, **kwargs):
        seconds, before = self._used_before + self.timer.seconds_in_steps, self.used
        if args.world_size > 1:
            clock = torch.tensor(seconds, dtype=torch.float64, device=args.device)
            seconds = broadcast(clock, from_process=0).item()
        self.used = seconds
        steps, left = state.global_step + 1, self.seconds - self.used  # this step is not counted yet
        mean = self.used / steps
        next_step = min(self.used - before, mean)  # the last step may have been unusually slow
        more = max(1, round(left / mean)) if left > next_step / 2 else 0  # else stopping now is nearer to the budget
        state.max_steps = steps + more


class Randomness(TrainerCallback):
    """Makes augmentation differ between epochs (accelerate passes the epoch to samplers, not to our samples), and
    dropout and random masks between ranks (the Trainer seeds all ranks alike)."""

    def __init__(self, samples: Any):
        self.samples = samples

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:  # a resumed run then restores the rank's saved state, if there is one
            torch.manual_seed(rank_seed(args.seed, args.process_index))

    def on_epoch_begin(self, args, state, control, **kwargs):
        for part in parts_of(self.samples):
            if isinstance(part, TrainingSamples):
                part.set_epoch(int(state.epoch or 0))
