"""The part of a resized image or label that a crop keeps, computed without the rest.

Pixels are sampled where the released code's `cv2.resize(image, None, fx=scale, fy=scale)` samples: at 1/scale of the
source from one pixel to the next, also where scale × side is no whole number and the result's side is rounded.
"""

from __future__ import annotations

import numpy as np

_ONE = 2**11  # weights have 11 bits, as OpenCV's for uint8


def resized_side(side: int, scale: float) -> int:
    """Length of a resized side in pixels: rounded (halves to even), but at least 1."""
    return max(1, round(side * scale))


def resize_bilinear(pixels: np.ndarray, scale: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some rows and columns of the bilinearly resized image: `INTER_LINEAR`, within a grey level of OpenCV.

    Output pixel x shows source position (x + ½) / scale - ½; two neighbours an axis whatever the scale (no
    antialiasing), edges repeated, rounded once.

    Args:
        pixels: `(h, w, 3)` uint8.
        scale: Factor of both sides.
        rows: `(H,)` rows of the resized image to keep, in any order.
        columns: `(W,)` columns to keep; falling ones mirror the result.

    Returns:
        `(H, W, 3)` uint8.
    """
    top, bottom, down = _neighbours(rows, scale, pixels.shape[0])
    left, right, across = _neighbours(columns, scale, pixels.shape[1])
    first = top.min()
    region = pixels[first : bottom.max() + 1]
    mixed = region.take(left, axis=1) * (_ONE - across)[:, None]
    mixed += region.take(right, axis=1) * across[:, None]
    result = mixed[top - first] * (_ONE - down)[:, None, None]
    result += mixed[bottom - first] * down[:, None, None]
    return ((result + _ONE**2 // 2) // _ONE**2).astype(np.uint8)


def _neighbours(kept: np.ndarray, scale: float, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each pixel kept along an axis: its two source pixels, and the weight of the second in units of 1/`_ONE`."""
    position = np.clip((kept + 0.5) / scale - 0.5, 0, length - 1)
    low = position.astype(np.int64)
    weight = np.rint((position - low) * _ONE).astype(np.int32)
    return low, np.minimum(low + 1, length - 1), weight


def resize_nearest(ids: np.ndarray, scale: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some rows and columns of a label map resized by nearest neighbour: `INTER_NEAREST`.

    Output pixel x shows input pixel ⌊x / scale⌋.

    Args:
        ids: `(h, w)` class ids.
        scale: Factor of both sides.
        rows: Rows to keep, in any order.
        columns: Columns to keep, in any order.

    Returns:
        `(len(rows), len(columns))`, dtype of `ids`.
    """
    for axis, kept in enumerate((rows, columns)):
        # 1 / scale first, as OpenCV does: 7 / 0.7 and 7 * (1 / 0.7) lie on two sides of 10
        source = np.minimum((kept * (1 / scale)).astype(np.int64), ids.shape[axis] - 1)
        ids = ids.take(source, axis=axis)
    return ids
