"""Label maps in colours: painted, and laid over their image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

Palette = Sequence[Sequence[int]] | np.ndarray
IGNORE_INDEX = 255
_LINE_WIDTH = 1 / 400  # of the image's shorter side


def colorize(label: np.ndarray, palette: Palette, ignore_color: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """Paint a label map in the colours of its classes.

    Args:
        label: `(H, W)` class ids, any integer dtype, 255 = ignored.
        palette: `(K, 3)` colours 0-255, one for each class id.
        ignore_color: colour of ignored pixels.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: `label` is not a 2-D integer array, the palette not a list of colours, or an id has no colour.
    """
    label, colors = np.asarray(label), as_colors(palette)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"label has shape {label.shape} and dtype {label.dtype}; pass an (H, W) array of class ids.")
    ids = np.unique(label)
    unknown = ids[((ids < 0) | (ids >= len(colors))) & (ids != IGNORE_INDEX)]
    if unknown.size:
        raise ValueError(
            f"The label map holds the ids {unknown.tolist()}, but the palette has colours for 0 to {len(colors) - 1} "
            f"only (and {IGNORE_INDEX} = ignored). Remap the labels or pass the dataset's own palette."
        )
    table = np.zeros((max(len(colors), IGNORE_INDEX + 1), 3), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE_INDEX] = ignore_color
    return table[label]


def as_colors(palette: Palette) -> np.ndarray:
    """The palette as a `(K, 3)` uint8 table; ValueError unless it is a list of colours 0-255."""
    colors = np.asarray(palette)
    is_table = colors.ndim == 2 and colors.shape[1] == 3 and len(colors) and np.issubdtype(colors.dtype, np.integer)
    if not is_table or colors.min() < 0 or colors.max() > 255:
        raise ValueError(
            f"palette has shape {colors.shape} and dtype {colors.dtype}; pass K colours of 3 integers 0 to 255."
        )
    return colors.astype(np.uint8)


def draw_overlay(image: Image.Image, label_map: np.ndarray, colors: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Lay the classes' colours over an image, with white lines between classes.

    Args:
        image: RGB, of the label map's size.
        label_map: `(H, W)` class ids, any integer dtype.
        colors: `(K, 3)` uint8 RGB.
        opacity: share of colour, 0 (the image) to 1.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    overlay = np.array(Image.blend(image, Image.fromarray(colors[label_map]), opacity))
    overlay[_lines_between(label_map, max(1, round(_LINE_WIDTH * min(label_map.shape))))] = 255
    return overlay


def _lines_between(label_map: np.ndarray, width: int) -> np.ndarray:
    """`(H, W)` bool: pixels at most about half a width from another class, above or beside them."""
    lines = np.zeros(label_map.shape, bool)
    first = width // 2  # centres the line on the border
    for ids, marked in ((label_map, lines), (label_map.T, lines.T)):
        differs = ids[width:] != ids[:-width]
        marked[first : first + len(differs)] |= differs
    return lines
