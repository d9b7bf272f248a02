"""The part of a resized image that a crop keeps, computed without the rest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from .unread_png import with_rows_read

BLOCK_PIXELS = 2**14  # of the result, computed at a time: what is in between stays in the processor's cache


class Taps(NamedTuple):
    """Along one axis: the two source pixels that each output pixel mixes, in fixed point."""

    low: np.ndarray  # (n,) int64
    high: np.ndarray  # (n,) int64
    low_weight: np.ndarray  # (n,) int32, the weight times 2**bits
    high_weight: np.ndarray  # (n,) int32
    bits: int

    def part(self, start: int, stop: int) -> Taps:
        """The taps of output pixels start..stop-1."""
        return Taps(*(values[start:stop] for values in self[:4]), self.bits)


def bilinear_taps(source: int, target: int, kept: np.ndarray) -> Taps:
    """Which pixels of an axis make up the kept pixels of the resized one.

    Half-pixel centres, two neighbours whatever the scale (no antialiasing), edges repeated. Weights have 15 bits, or 14
    where one of the whole axis would not fit int16 then: PyTorch's kernel for uint8 images on x86 rounds them so.

    Args:
        source: Length of the axis before.
        target: Length of the whole axis afterwards.
        kept: `(n,)` output pixels, 0..target-1, in any order.
    """
    position = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
    low = position.astype(np.int64)
    weight = position - low
    largest = max(weight.max(), 1 - weight.min())
    bits = 14 if int(largest * 2**15 + 0.5) >= 2**15 else 15
    low, weight = low[kept], weight[kept]
    low_weight, high_weight = ((share * 2**bits + 0.5).astype(np.int32) for share in (1 - weight, weight))
    return Taps(low, low + (weight > 0), low_weight, high_weight, bits)


def resize_bilinear(image: Image.Image, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some rows and columns of the bilinearly resized image.

    Equal, bit by bit, to resizing the whole image and taking the rows and columns then; on x86 also to
    `F.interpolate(mode="bilinear", align_corners=False, antialias=False)` on uint8, elsewhere within a grey level of
    it. Like that function it mixes columns first, and rounds to uint8 before it mixes rows.

    Args:
        image: Image of any mode, read as RGB. Of an `UnreadPng`, only the rows down to the last one needed are decoded.
        size: Height and width of the whole image when resized.
        rows: `(h,)` rows to keep, 0..height-1, rising.
        columns: `(w,)` columns to keep, 0..width-1, rising or falling (which mirrors the result).

    Returns:
        `(h, w, 3)` uint8; a view, not contiguous.
    """
    down, across = bilinear_taps(image.height, size[0], rows), bilinear_taps(image.width, size[1], columns)
    image = with_rows_read(image, int(down.high.max()) + 1)
    result = np.empty((len(rows), 4 * len(columns)), dtype=np.uint8)
    block_rows = max(1, BLOCK_PIXELS // len(columns))
    for start in range(0, len(rows), block_rows):
        block = down.part(start, start + block_rows)
        pixels = _region(image, int(block.low[0]), int(block.high[-1]) + 1, across)
        result[start : start + block_rows] = _mix_rows(_mix_columns(pixels, across), block)
    return result.reshape(len(rows), len(columns), 4)[..., :3]


def _region(image: Image.Image, top: int, bottom: int, across: Taps) -> np.ndarray:
    """Source rows top..bottom-1 of the columns that are needed: `(h, w)` uint32, a pixel's four bytes in one number."""
    region = image.crop((int(across.low.min()), top, int(across.high.max()) + 1, bottom))
    region = region if region.mode == "RGB" else region.convert("RGB")
    return np.frombuffer(region.tobytes("raw", "RGBX"), np.uint32).reshape(bottom - top, -1)


def _mix_columns(pixels: np.ndarray, across: Taps) -> np.ndarray:
    first = across.low.min()
    low, high = (pixels.take(index - first, axis=1).view(np.uint8) for index in (across.low, across.high))  # (h, 4w)
    return _mix(low, high, np.repeat(across.low_weight, 4), np.repeat(across.high_weight, 4), across.bits)


def _mix_rows(pixels: np.ndarray, down: Taps) -> np.ndarray:
    low, high = (pixels[index - down.low[0]] for index in (down.low, down.high))
    return _mix(low, high, down.low_weight[:, None], down.high_weight[:, None], down.bits)


def _mix(low: np.ndarray, high: np.ndarray, low_weight: np.ndarray, high_weight: np.ndarray, bits: int) -> np.ndarray:
    """(low · low_weight + high · high_weight) / 2**bits, halves rounded up, uint8."""
    if not high_weight.any():  # the axis keeps its size
        return low
    total, other = low.astype(np.int32), high.astype(np.int32)
    total *= low_weight
    other *= high_weight
    total += other
    total += 1 << (bits - 1)
    total >>= bits
    return total.astype(np.uint8)


def resize_nearest(ids: np.ndarray, size: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some rows and columns of a label map resized by nearest neighbour.

    Output pixel y shows input pixel floor(y·h/H), as with cv2.INTER_NEAREST.

    Args:
        ids: `(h, w)` class ids.
        size: Height and width of the whole map when resized.
        rows: Rows to keep, 0..height-1, in any order.
        columns: Columns to keep, 0..width-1, in any order.

    Returns:
        `(len(rows), len(columns))`, dtype of `ids`.
    """
    return ids.take(rows * ids.shape[0] // size[0], axis=0).take(columns * ids.shape[1] // size[1], axis=1)
