"""Label maps in the colours of their classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Palette = Sequence[Sequence[int]] | np.ndarray
IGNORE_INDEX = 255


def colorize(label: np.ndarray, palette: Palette, ignore_color: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """Paints a label map in the colours of its classes.

    Args:
        label: `(H, W)` class ids, any integer dtype, 255 = ignored.
        palette: `(K, 3)` colours 0-255, one for each class id.
        ignore_color: Colour of ignored pixels.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: If `label` is no 2-D integer array, the palette no list of colours 0-255, or an id other than 255
            has no colour.
    """
    label, colors = np.asarray(label), as_colors(palette)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"label has shape {label.shape} and dtype {label.dtype}; pass an (H, W) array of class ids.")
    ids = np.unique(label)
    unknown = ids[((ids < 0) | (ids >= len(colors))) & (ids != IGNORE_INDEX)]
    if unknown.size:
        raise ValueError(
            f"The label map holds the ids {unknown.tolist()}, but the palette has colours for 0 to {len(colors) - 1} "
            f"only (and {IGNORE_INDEX} = ignored). Remap the labels or pass the data set's own palette."
        )
    table = np.zeros((max(len(colors), IGNORE_INDEX + 1), 3), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE_INDEX] = ignore_color
    return table[label]


def as_colors(palette: Palette) -> np.ndarray:
    """The palette as a (K, 3) uint8 table; a `ValueError` if it is no list of colours 0-255."""
    colors = np.asarray(palette)
    is_table = colors.ndim == 2 and colors.shape[1] == 3 and len(colors) and np.issubdtype(colors.dtype, np.integer)
    if not is_table or colors.min() < 0 or colors.max() > 255:
        raise ValueError(
            f"palette has shape {colors.shape} and dtype {colors.dtype}; pass K colours of 3 integers 0 to 255."
        )
    return colors.astype(np.uint8)
