"""An exponential moving average of the student's weights: what is evaluated and saved instead of the raw ones."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import TrainerCallback


class AveragedWeights:
    """A copy of a model whose weights follow the trained ones: `average ← d·average + (1 - d)·weights`.

    After step t, d is the smaller of `decay` and (1 + t) / (10 + t), so that the random initialisation is forgotten
    within the first steps, and short runs get an average over about their last tenth. As d depends on t alone, the
    average needs no counter in a checkpoint.

    Batch norm's running mean and variance are averaged like the weights, so that they belong to them; integer buffers
    are copied. Half-precision weights are averaged in float32: at d = 0.9998, steps would be lost in them. (torch's
    AveragedModel copies the first step, and timm's ModelEmaV3 has another d.)

    On several processes each averages for itself: weights are equal there after every step, so the averages are too.

    Args:
        model: the model that is trained.
        decay: upper limit of d, between 0 and 1.

    Attributes:
        model: the averaged model, in eval mode and without gradients.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for tensor in _tensors(self.model):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Forget everything and start from the model as it is now."""
        for average, tensor in zip(_tensors(self.model), _tensors(model), strict=True):
            average.data = tensor.detach().to(average.dtype, copy=True)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (1, 2, ...)."""
        averages, current = [], []
        for average, tensor in zip(_tensors(self.model), _tensors(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                current.append(tensor.to(average.dtype))
            else:
                average.copy_(tensor)
        torch._foreach_lerp_(averages, current, 1 - min(self.decay, (1 + step) / (10 + step)))


class AveragingCallback(TrainerCallback):
    """Keeps the average up to date.

    Args:
        average: the averaged weights.
        student: gives the model that is trained.
    """

    def __init__(self, average: AveragedWeights, student: Callable[[], nn.Module]):
        self.average = average
        self.student = student

    def on_train_begin(self, args, state, control, **kwargs):
        """A training that is not resumed starts from the weights as they are; a resumed one has read its average."""
        self.average.model.to(args.device)
        if state.global_step == 0:
            self.average.restart(self.student())

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Called right after the optimizer's step, which is not counted yet."""
        self.average.update(self.student(), state.global_step + 1)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
