"""CutMix and ClassMix: which pixels of another image are pasted into a training sample."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def cutmix_mask(labels: Tensor, rng: np.random.Generator, ignore_index: int) -> Tensor:
    """A random rectangle, whatever is in it (Yun et al., arXiv 1905.04899).

    Its share of the area is uniform in 0..1 (their α = 1) and its shape the image's; its centre is uniform over the
    image, at whose borders it is cut off.

    Args:
        labels: `(H, W)` int64 class ids of the image to paste from.
        rng: three values are drawn.
        ignore_index: not used.

    Returns:
        `(H, W)` bool, True where its pixels are pasted.
    """
    scale = math.sqrt(rng.random())
    mask = torch.zeros(labels.shape, dtype=torch.bool)
    lengths = [int(side * scale) for side in labels.shape]
    starts = [int(rng.integers(side)) - length // 2 for side, length in zip(labels.shape, lengths, strict=True)]
    rows, columns = (slice(max(0, start), start + length) for start, length in zip(starts, lengths, strict=True))
    mask[rows, columns] = True
    return mask


def classmix_mask(labels: Tensor, rng: np.random.Generator, ignore_index: int) -> Tensor:
    """All pixels of half of the image's classes, rounded down (Olsson et al., arXiv 2007.07936).

    Theirs are classes that a model predicts; these are the label's, and ignored pixels are none. Arguments and result
    are those of `cutmix_mask`.
    """
    classes = np.unique(labels[labels != ignore_index].numpy())
    chosen = rng.choice(classes, len(classes) // 2, replace=False) if len(classes) > 1 else classes[:0]
    return torch.isin(labels, torch.from_numpy(chosen))
