"""Labels as the losses on maps read them: checked, and at the size of the map."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def check_ignore_index(name: str, value: Any) -> None:
    """Raise ValueError for anything but a whole number or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise ValueError(f"{name}={value!r} must be a whole number, or None where no label is ignored.")


def check_labels(name: str, labels: Tensor | None, logits: Tensor | None) -> tuple[Tensor, Tensor]:
    """The labels and the student's logits; ValueError where either is missing or the labels are not `(B, H, W)`.

    `name` is what a recipe calls the loss.
    """
    if labels is None:
        raise ValueError(f"the loss {name!r} reads the labels and got none; call it with labels (B, H, W).")
    if logits is None:
        raise ValueError(f"the loss {name!r} needs the student's logits and got none; give them in its Activations.")
    if labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(f"the labels have shape {tuple(labels.shape)}; expected ({len(logits)}, H, W).")
    return labels, logits


def class_members(labels: Tensor, num_classes: int, size: Sequence[int], ignore_index: int | None = 255) -> Tensor:
    """Which positions of a map belong to which class, by the nearest label.

    Args:
        labels: `(B, H, W)` int64.
        num_classes: K; labels outside 0 ... K - 1 belong to no class.
        size: (h, w) of the map.
        ignore_index: a label that belongs to no class either; None where all of 0 ... K - 1 count.

    Returns:
        `(B, K, h·w)` bool, at most one class a position.
    """
    # float32 holds whole numbers below 2²⁴ exactly; interpolate takes no integers
    nearest = F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest").flatten(start_dim=2)  # (B, 1, N)
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    members = nearest == classes  # (B, K, N)
    return members if ignore_index is None else members & (classes != ignore_index)
