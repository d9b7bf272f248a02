"""Masks that hide positions of the student's map from the projector: `(B, 1, h, w)`, 1 = kept, 0 = hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from .random_source import RandomSource

MASKS = ("random", "center")


def random_mask(feature_map: Tensor, mask_ratio: float, source: RandomSource | None = None) -> Tensor:
    """Keep each position with probability `1 - mask_ratio`.

    Args:
        feature_map: `(B, C, h, w)` float; gives size, dtype and device.
        mask_ratio: ζ in [0, 1).
        source: its generator is on the map's device; None for torch's global one.
    """
    one_channel = feature_map[:, :1]
    drawn = (
        source.uniform(one_channel) if source is not None else torch.rand(one_channel.shape, device=feature_map.device)
    )
    return (drawn >= mask_ratio).to(feature_map.dtype)


def center_mask(feature_map: Tensor) -> Tensor:
    """Hide the middle third: rows h//3 to 2h//3 and columns w//3 to 2w//3, ends excluded.

    Args:
        feature_map: `(B, C, h, w)` float; gives size, dtype and device.
    """
    batch, _, height, width = feature_map.shape
    mask = feature_map.new_ones((batch, 1, height, width))
    mask[:, :, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 0
    return mask


def draw_mask(kind: str, feature_map: Tensor, mask_ratio: float, source: RandomSource | None = None) -> Tensor:
    """The mask of the given kind; `mask_ratio` and `source` concern "random" only."""
    return random_mask(feature_map, mask_ratio, source) if kind == "random" else center_mask(feature_map)
