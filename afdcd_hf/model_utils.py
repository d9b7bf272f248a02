"""Properties of a model (device, dtype, upsampling of its logits), devices, and temporary evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def check_device(device: str | torch.device | None) -> None:
    """Raise ValueError if this machine, or this build of torch, has no such device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError if torch was built without CUDA
        raise ValueError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the weights."""
    return next(model.parameters()).device


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the dtype of the weights."""
    return next(model.parameters()).dtype


def align_corners_of(model: nn.Module) -> bool:
    """Return the `align_corners` for upsampling the model's logits; False if its configuration has none."""
    return getattr(getattr(model, "config", None), "align_corners", False)


def ignore_index_of(model: nn.Module) -> int:
    """Return the label that the model's configuration says not to count; 255 if it does not say."""
    return getattr(getattr(model, "config", None), "semantic_loss_ignore_index", 255)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and restore each module's own mode afterwards, even after an exception."""
    # Module by module: a part that was frozen in evaluation mode must not end up in training mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
