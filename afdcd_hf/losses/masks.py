"""Masks that hide positions of the student's map from the projector."""

from __future__ import annotations

import torch
from torch import Tensor

from .random_source import RandomSource, uniform

MASKS = ("random", "center")


def random_mask(feature_map: Tensor, mask_ratio: float, source: RandomSource | None = None) -> Tensor:
    """Keep each position with probability `1 - mask_ratio`.

    Args:
        feature_map: `(B, C, h, w)` float; gives size, dtype and device.
        mask_ratio: ζ in [0, 1).
        source: its generator is on the map's device; None for torch's global one.

    Returns:
        `(B, 1, h, w)`, 1 = kept, 0 = hidden.
    """
    return (uniform(feature_map[:, :1], source) >= mask_ratio).to(feature_map.dtype)


def center_mask(feature_map: Tensor) -> Tensor:
    """Hide the middle third: rows h//3 to 2h//3 and columns w//3 to 2w//3, ends excluded; as `random_mask`."""
    height, width = feature_map.shape[-2:]
    mask = torch.ones_like(feature_map[:, :1])
    mask[:, :, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 0
    return mask


def draw_mask(kind: str, feature_map: Tensor, mask_ratio: float, source: RandomSource | None = None) -> Tensor:
    """The mask of the given kind; `mask_ratio` and `source` concern "random" only."""
    return random_mask(feature_map, mask_ratio, source) if kind == "random" else center_mask(feature_map)
