"""A picture under the colours of its classes."""

from __future__ import annotations

import numpy as np
from PIL import Image

_LINE_WIDTH = 1 / 400  # of the picture's shorter side


def draw_overlay(picture: Image.Image, label_map: np.ndarray, colors: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Lays the classes' colours over a picture, with white lines between classes.

    Args:
        picture: RGB, of the label map's size.
        label_map: `(H, W)` class ids, any integer dtype.
        colors: `(K, 3)` uint8 RGB.
        opacity: Share of colour, 0 (the picture) to 1.

    Returns:
        `(H, W, 3)` uint8 RGB.
    """
    overlay = np.array(Image.blend(picture, Image.fromarray(colors[label_map]), opacity))
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
