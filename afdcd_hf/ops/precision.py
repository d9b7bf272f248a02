"""float32 arithmetic, whatever the caller's precision settings."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision and integers to float32; float64 stays, so that gradients can be checked in it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Return a context in which autocast is off for the device of `tensor`."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def in_float32(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator: floating tensors given by position, the first included, become float32 or float64; no autocast."""

    @functools.wraps(function)
    def wrapped(*given: Any, **options: Any) -> Result:
        with without_autocast(given[0]):
            return function(*map(_widened, given), **options)

    return wrapped


def _widened(argument: Any) -> Any:
    return at_least_float32(argument) if isinstance(argument, Tensor) and argument.is_floating_point() else argument
