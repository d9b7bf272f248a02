"""float32 arithmetic whatever the caller's precision settings are."""

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
    """A context in which autocast is off for the device of `tensor`."""
    device_type = tensor.device.type
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def in_float32(function: Callable[..., Result]) -> Callable[..., Result]:
    """Decorator: tensors given by position arrive in float32 (float64 stays), and autocast is off inside."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Result:
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        with without_autocast(tensors[0]):
            return function(*(_widened(arg) for arg in args), **kwargs)

    return wrapped


def _widened(argument: Any) -> Any:
    floating = isinstance(argument, Tensor) and argument.is_floating_point()
    return at_least_float32(argument) if floating else argument
