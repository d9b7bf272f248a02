"""Colours for classes that come without any."""

from __future__ import annotations

import numpy as np

LARGEST = 4096  # more are no longer told apart, and there is an end to the candidates
_LIGHTNESS = (0.42, 0.92)  # of black 0 and white 1: visible on both, and on a dark or bright photo
# Oklab (B. Ottosson, 2020): linear sRGB to three receptors, and their cube roots to lightness, green-red, blue-yellow
_TO_RECEPTORS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_OKLAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def distinct_palette(num_colors: int) -> np.ndarray:
    """Colours that are told apart as well as so many can be; neither black, white nor grey is among them.

    Each colour is the one farthest (in Oklab, where distances are about as seen) from all before it, so that the
    palette is always the same and a shorter one is the beginning of a longer one.

    Args:
        num_colors: Number of colours K, 1 to 4096.

    Returns:
        `(K, 3)` uint8 RGB.

    Raises:
        ValueError: If `num_colors` is out of range.
    """
    if not 1 <= num_colors <= LARGEST:
        raise ValueError(f"A palette can have 1 to {LARGEST} colours; {num_colors} were asked for.")
    steps = np.linspace(0, 255, 32).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = oklab(candidates)
    usable = (seen[:, 0] > _LIGHTNESS[0]) & (seen[:, 0] < _LIGHTNESS[1])
    candidates, seen = candidates[usable], seen[usable]
    # Greys are taken from the start: ignored pixels are black, and much of a photo is grey.
    distance = np.hypot(seen[:, 1], seen[:, 2])
    chosen = []
    for _ in range(num_colors):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(seen - seen[chosen[-1]], axis=1))
    return candidates[chosen]


def oklab(colors: np.ndarray) -> np.ndarray:
    """Colours `(..., 3)` uint8 sRGB as `(..., 3)` float64 Oklab: lightness 0..1 and two colour axes around 0."""
    values = colors.astype(np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_RECEPTORS.T) @ _TO_OKLAB.T
