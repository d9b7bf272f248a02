"""Sliding windows: where they lie, and one score map made of theirs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from ..models.modeling_afdcd import upsample_logits

Window = tuple[slice, slice]


def place_windows(
    size: tuple[int, int], window: tuple[int, int] | None, stride: tuple[int, int] | None
) -> list[Window]:
    """Rows and columns of the windows that cover a image, row by row.

    They start every `stride` pixels; the last of a row or column is moved back inside the image, and a side shorter
    than the window is taken whole.

    Args:
        size: height and width of the image.
        window: height and width of a window; None for one that covers all.
        stride: steps downwards and to the right, none longer than the window; None with `window`.
    """
    if window is None:
        return [(slice(0, size[0]), slice(0, size[1]))]
    assert stride is not None  # settings with a window have one
    rows, columns = (
        [slice(start, min(start + length, side)) for start in _starts(side, length, step)]
        for side, length, step in zip(size, window, stride, strict=True)
    )
    return [(vertical, horizontal) for vertical in rows for horizontal in columns]


def join_windows(
    logits: Iterator[Tensor], windows: Sequence[Window], size: tuple[int, int], align_corners: bool
) -> Tensor:
    """One score map: at each pixel the mean over the windows that cover it.

    Args:
        logits: `(K, h, w)` float32 of one window after the other; as many are drawn as there are windows, so that only
            one is needed at a time.
        windows: as `place_windows` gives them.
        size: height and width of the image.
        align_corners: how logits are stretched to the size of their window.

    Returns:
        `(K, *size)` float32.
    """
    total: Tensor | None = None
    times = torch.zeros(size)
    for (rows, columns), one in zip(windows, islice(logits, len(windows)), strict=True):
        if total is None:
            total = one.new_zeros(len(one), *size)
        region = total[:, rows, columns]
        region += upsample_logits(one[None], (region.shape[-2], region.shape[-1]), align_corners)[0]
        times[rows, columns] += 1
    assert total is not None  # every image has a window
    return total.div_(times.to(total.device))


def _starts(side: int, window: int, stride: int) -> list[int]:
    last = max(side - window, 0)
    return [min(index * stride, last) for index in range(math.ceil(last / stride) + 1)]
