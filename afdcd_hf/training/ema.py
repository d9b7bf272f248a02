"""An exponential moving average of the student's weights: what is evaluated and saved instead of the raw ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

RAW_STUDENT_NAME = "raw_student.safetensors"


class AveragedWeights:
    """A copy of a network whose weights follow the trained ones: `average ← d·average + (1 - d)·weights`.

    After step t, d is the smaller of `decay` and (1 + t) / (10 + t), so that the random initialisation is forgotten
    within the first steps, and short runs get an average over about their last tenth. As d depends on t alone, the
    average needs no counter in a checkpoint.

    Batch norm's running mean and variance are averaged like the weights, so that they belong to them; integer buffers
    are copied. Half-precision weights are averaged in float32: at d = 0.9998, steps would be lost in them.

    On several processes each averages for itself: weights are equal there after every step, so the averages are too.

    Args:
        model: the network that is trained.
        decay: upper limit of d, between 0 and 1.

    Attributes:
        model: the averaged network, in eval mode and without gradients.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        for tensor in _tensors(self.model):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Forget everything and start from the network as it is now."""
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
        torch._foreach_lerp_(averages, current, 1 - self.decay_at(step))

    def decay_at(self, step: int) -> float:
        """The decay d with which step `step` is taken in."""
        return min(self.decay, (1 + step) / (10 + step))


class WeightAveraging:
    """What `ema_decay` changes in a trainer; mixed into `SegmentationTrainer` in front of its saving and loading.

    A checkpoint's `model.safetensors` is the average, so that it loads with `from_pretrained` and is what was scored;
    the raw weights, with which the optimizer goes on, lie beside it in `raw_student.safetensors`.

    Attributes:
        average: the averaged weights; None without `ema_decay`.
    """

    average: AveragedWeights | None = None

    @property
    def evaluated_student(self) -> nn.Module:
        """The network that is evaluated and saved: the student or, with `ema_decay`, its averaged copy."""
        return self.student if self.average is None else self.average.model

    def _start_average(self) -> None:
        if self.args.ema_decay is None:
            return
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("ema_decay needs whole weights on every process, which FSDP and DeepSpeed do not keep.")
        self.average = AveragedWeights(self.student, self.args.ema_decay)
        self.add_callback(AveragingCallback(self.average, lambda: self.student))

    def _extra_state(self) -> dict[str, dict[str, Tensor]]:
        state = super()._extra_state()
        if self.average is not None:
            state[RAW_STUDENT_NAME] = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        return state

    def _load_extra_state(self, folder: str | Path) -> None:
        """Called when `model.safetensors`, the average, has just been loaded into the student."""
        super()._load_extra_state(folder)
        path = Path(folder) / RAW_STUDENT_NAME
        if path.is_file() != (self.average is not None):
            raise ValueError(_mismatch(Path(folder), path.is_file()))
        if self.average is not None:
            self.average.restart(self.student)
            self.student.load_state_dict(load_file(path))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.restart(self.student)


class AveragingCallback(TrainerCallback):
    """Keeps the average up to date.

    Args:
        average: the averaged weights.
        student: gives the network that is trained.
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


def _mismatch(folder: Path, averaged: bool) -> str:
    if averaged:
        return f"{folder} was written with ema_decay, and this run has none: resume it with the same ema_decay."
    return (
        f"{folder} has no {RAW_STUDENT_NAME}: it was written without ema_decay, or with save_only_model. Resume it "
        "without ema_decay, or start a new run from that student."
    )


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
