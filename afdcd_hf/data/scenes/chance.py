"""What chance decides with: palettes that several classes share, and draws of colours, numbers and smooth noise."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .canvas import Colour

# One palette for walls, doors, signs, vehicles and clothes: a colour alone must not give its class away.
URBAN = (
    (196, 188, 172), (158, 78, 60), (112, 112, 116), (72, 74, 80), (222, 218, 208), (140, 120, 98), (54, 66, 96),
    (66, 92, 66), (178, 150, 96), (96, 128, 150), (150, 44, 40), (38, 38, 42), (206, 170, 60), (120, 150, 120),
    (170, 176, 182), (90, 60, 48), (128, 116, 140), (204, 120, 84),
)  # fmt: skip
GREYS = ((92, 92, 96), (118, 117, 115), (140, 140, 142), (164, 160, 154), (72, 74, 78), (150, 138, 124))
SKINS = ((232, 190, 160), (198, 146, 112), (146, 98, 70), (92, 62, 46))
WARM_LIGHT = (255, 214, 142)


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], spread: int = 14) -> Colour:
    """One of `colours`, each channel moved by at most `spread`."""
    which, light, *tints = rng.random(5).tolist()
    base = colours[int(which * len(colours))]
    shifts = (spread * (light + tint - 1) for tint in tints)
    return tuple(min(255, max(0, int(value + shift))) for value, shift in zip(base, shifts, strict=True))


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` (0 to 1) of `second` mixed in."""
    return tuple(int(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from `low` up to, not including, `high`."""
    return low + (high - low) * float(rng.random())


def any_of(rng: np.random.Generator, *options):
    """One of the options; repeat one to make it likelier."""
    return options[int(rng.integers(len(options)))]


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float, stretch: float = 1.0) -> np.ndarray:
    """Smooth random values in [0, 1] of about `cell` pixels, (height, width) float32."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / (cell * stretch)))
    small = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
