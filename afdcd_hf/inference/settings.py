"""How a model is applied to an image: scales, flip, windows, precision."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

# name -> what autocast computes in; None: no autocast, the model runs in the type of its weights
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class InferenceSettings:
    """How label maps are made of images. The default: the whole image, once, at its own scale.

    Attributes:
        scales: factors by which the model's input is resized.
        flip: also run the mirrored input (left and right exchanged).
        window: height and width, in pixels of the scaled input, of the windows that are run instead of the whole.
        stride: from one window to the next, downwards and to the right; two thirds of the window where None.
        precision: "fp32" (the type of the weights, no autocast), or "bf16" or "fp16" (autocast).

    Raises:
        ValueError: no scale, or one that is not positive; a window or stride that is not two positive whole numbers; a
            stride without a window, or beyond it (pixels would be skipped); an unknown precision.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        # Lists come from JSON and the command line; tuples keep the settings hashable and equal to others.
        object.__setattr__(self, "scales", _scales(self.scales))
        object.__setattr__(self, "window", _height_and_width("window", self.window))
        stride = _height_and_width("stride", self.stride)
        if stride and self.window is None:
            raise ValueError(f"stride={stride} without a window: give the window's height and width as well.")
        if self.window and stride is None:
            height, width = (max(1, round(2 * side / 3)) for side in self.window)
            stride = height, width
        if stride and self.window and any(step > side for step, side in zip(stride, self.window, strict=True)):
            raise ValueError(f"stride={stride} exceeds window={self.window}: pixels between windows would be left out.")
        object.__setattr__(self, "stride", stride)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; expected one of {', '.join(PRECISIONS)}.")

    def describe(self) -> dict[str, Any]:
        """Entries of a protocol, fit for JSON; `InferenceSettings(**entries)` gives the settings back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _scales(values: Any) -> tuple[float, ...]:
    scales = tuple(values) if isinstance(values, (tuple, list)) else (values,)
    numbers = all(isinstance(scale, (int, float)) and math.isfinite(scale) and scale > 0 for scale in scales)
    if not scales or not numbers:
        raise ValueError(f"scales={values!r}: expected one or more positive factors, such as (0.75, 1.0, 1.25).")
    return tuple(float(scale) for scale in scales)


def _height_and_width(name: str, value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}={value!r}: expected (height, width), two positive whole numbers of pixels.")
    return sides


WHOLE_IMAGE = InferenceSettings()
