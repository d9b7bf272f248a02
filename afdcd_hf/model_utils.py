"""What a model is like: device, type, how its logits are stretched; and evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where the weights are."""
    return next(model.parameters()).device


def dtype_of(model: nn.Module) -> torch.dtype:
    """Which type the weights have."""
    return next(model.parameters()).dtype


def align_corners_of(model: nn.Module) -> bool:
    """How the model's logits are to be stretched; False where it has no configuration that says so."""
    return getattr(getattr(model, "config", None), "align_corners", False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and every module back in its own mode afterwards, also after an exception."""
    # Module by module: a part that was frozen in evaluation mode must not come back in training mode.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
