"""Every tensor accounted for: what a file has too many, lacks, or has in another shape is an error that lists it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_SHOWN = 6


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, torch.Size], what: str, hint: str = "") -> None:
    """Hold the tensors of a file against the names and shapes of a network.

    Args:
        found: Tensors by released name.
        expected: Shapes by released name.
        what: File and network in words, to begin the message with.
        hint: What to do about it.

    Raises:
        ValueError: Unknown, missing, misshapen or non-finite tensors; all kinds at once, each with its names.
    """
    unknown = [f"{name} {_shape(found[name].shape)}" for name in found if name not in expected]
    missing = [f"{name} {_shape(shape)}" for name, shape in expected.items() if name not in found]
    misshapen = [
        f"{name} {_shape(found[name].shape)} instead of {_shape(shape)}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    troubles = [
        _listed("unknown", unknown),
        _listed("missing", missing),
        _listed("misshapen", misshapen),
        _listed("not finite", _not_finite(found)),
    ]
    if any(troubles):
        raise ValueError(" ".join([f"{what}:", *filter(None, troubles), hint]).strip())


def _not_finite(found: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in found.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def _listed(kind: str, names: Iterable[str]) -> str:
    names = list(names)
    if not names:
        return ""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {kind} tensors ({', '.join(names[:_SHOWN])}{more})."


def _shape(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"
