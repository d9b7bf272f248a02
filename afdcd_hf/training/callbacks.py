"""What happens beside learning, step by step: averaging weights, keeping to a time, random numbers."""

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
from .distributed import rank_seed
from .progress import StepTimer


class AveragedWeights(TrainerCallback):
    """A copy of a model, in eval mode, whose weights follow the trained ones: `average ← d·average + (1 - d)·weights`.

    After step t, d is the smaller of `decay` and (1 + t) / (10 + t): it depends on t alone, so a checkpoint needs no
    counter. Batch norm's statistics are averaged too, integer buffers copied. Half-precision weights are averaged in
    float32, or steps would be lost. (torch's AveragedModel copies the first step, timm's ModelEmaV3 has another d.)
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self._trained = decay, model
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for tensor in _tensors(self.model):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()

    @torch.no_grad()
    def restart(self) -> None:
        """Forget everything and start from the model as it is now."""
        for average, tensor in zip(_tensors(self.model), _tensors(self._trained), strict=True):
            average.data = tensor.detach().to(average.dtype, copy=True)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (1, 2, ...)."""
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
        if state.global_step == 0:  # a resumed training has read its average
            self.restart()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.update(state.global_step + 1)  # this step is not counted yet


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class TimeBudget(TrainerCallback):
    """Ends a training with the step whose end is nearest to `seconds` of steps; its learning rate follows the clock.

    Evaluations and saving do not count, a resumed run has the seconds that were left, and all processes follow the
    first one's clock. `state.max_steps` becomes the number of steps expected from the speed so far.
    """

    def __init__(self, seconds: float, timer: StepTimer):
        self.seconds, self.timer = seconds, timer
        self.begin(0.0)

    def begin(self, used: float) -> None:
        """A training begins, of which earlier calls have used so many seconds."""
        self.used = self._before = used

    @property
    def share_used(self) -> float:
        """Of the time, 0 to 1."""
        return min(self.used / self.seconds, 1.0)

    def on_train_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        """The schedule, written for `max_steps`, follows the clock; ValueError where it looks at more than the step."""
        if self.used >= self.seconds:
            state.max_steps = state.global_step
        scheduler = getattr(lr_scheduler, "scheduler", lr_scheduler)  # accelerate may have wrapped it
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"max_seconds needs a schedule that is a function of the step, which "
                f"{type(scheduler).__name__} is not: use an lr_scheduler_type such as polynomial, cosine or linear."
            )

        def at_clock(multiplier: Callable[[Any], float], step: int) -> float:
            return multiplier(self.share_used * args.max_steps)

        scheduler.lr_lambdas = [partial(at_clock, multiplier) for multiplier in scheduler.lr_lambdas]

    def on_optimizer_step(self, args, state, control, **kwargs):
        seconds, before = self._before + self.timer.seconds_in_steps, self.used
        if args.world_size > 1:
            clock = torch.tensor(seconds, dtype=torch.float64, device=args.device)
            seconds = broadcast(clock, from_process=0).item()
        self.used = seconds
        steps, left = state.global_step + 1, self.seconds - self.used  # this step is not counted yet
        mean = self.used / steps
        next_step = min(self.used - before, mean)  # the last one may have been held up
        more = max(1, round(left / mean)) if left > next_step / 2 else 0  # or one more would end too late by more
        state.max_steps = steps + more


class Randomness(TrainerCallback):
    """Augmentation that differs between epochs, which accelerate tells to samplers but not to our samples; dropout and
    random masks that differ between ranks, which the Trainer seeds alike."""

    def __init__(self, samples: Any):
        self.samples = samples

    def on_train_begin(self, args, state, control, **kwargs):
        if args.world_size > 1:  # of a resumed run the Trainer then restores the states, where the rank has saved one
            torch.manual_seed(rank_seed(args.seed, args.process_index))

    def on_epoch_begin(self, args, state, control, **kwargs):
        if isinstance(self.samples, TrainingSamples):
            self.samples.set_epoch(int(state.epoch or 0))
