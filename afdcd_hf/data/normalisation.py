"""Normalisation by table: what an image processor makes of each of the 256 pixel values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def run_processor(processor: Callable[..., Any], pixels: np.ndarray) -> Tensor:
    """The processor's own result, float32 `(3, h, w)`.

    Args:
        processor: Image processor; called with `do_resize=False`.
        pixels: `(h, w, 3)` uint8, RGB.

    Raises:
        ValueError: If the processor changes the size.
    """
    crop = torch.from_numpy(pixels).permute(2, 0, 1)
    pixel_values = processor(images=crop, return_tensors="pt", do_resize=False)["pixel_values"][0]
    if pixel_values.shape != crop.shape:
        raise ValueError(
            f"The processor turned a {tuple(crop.shape)} crop into {tuple(pixel_values.shape)}, so that the "
            "labels no longer fit; switch off its padding and cropping."
        )
    return pixel_values.to(torch.float32)


class PixelTable:
    """A processor that treats every pixel alike, and each colour for itself, as a table.

    Args:
        channels: For each of the three results, the colour (0 red, 1 green, 2 blue) that it is made of.
        values: `(3, 256)` float32: result c of a pixel is `values[c, pixel[channels[c]]]`.
    """

    def __init__(self, channels: tuple[int, ...], values: np.ndarray) -> None:
        self.channels = channels
        self.values = values

    @classmethod
    def of(cls, processor: Callable[..., Any], size: tuple[int, int]) -> PixelTable | None:
        """Makes the table, and tries it on other images.

        Args:
            processor: As for `run_processor`.
            size: Height and width of the trial images, 256 pixels or more.

        Returns:
            The table, or None if the processor does anything that a table cannot: its results would differ by a bit
            or more.

        Raises:
            ValueError: If the processor changes the size.
        """
        height, width = size
        ramp = (np.arange(height * width) % 256).astype(np.uint8).reshape(height, width, 1)
        values = run_processor(processor, ramp.repeat(3, axis=2)).reshape(3, -1)[:, :256].numpy().copy()
        rng = np.random.default_rng(0)
        # The second is dull: a processor that stretches contrasts might leave the first as it is.
        trials = [rng.integers(low, high, (height, width, 3), dtype=np.uint8) for low, high in ((0, 256), (60, 90))]
        results = [run_processor(processor, trial) for trial in trials]
        channels = [_channel(values[c], trials[0], results[0][c]) for c in range(3)]
        if None in channels:
            return None
        table = cls(tuple(channels), values)
        agrees = all(
            torch.equal(torch.from_numpy(table(trial)), result) for trial, result in zip(trials, results, strict=True)
        )
        return table if agrees else None

    def __call__(self, pixels: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Normalises `(h, w, 3)` uint8 pixels to `(3, h, w)` float32, into `out` if given."""
        if out is None:
            out = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for values, channel, plane in zip(self.values, self.channels, out, strict=True):
            values.take(pixels[..., channel], out=plane, mode="clip")  # no index is clipped; "raise" makes a copy
        return out


def _channel(values: np.ndarray, pixels: np.ndarray, result: Tensor) -> int | None:
    """The colour that `result` is made of by looking up `values`; None if no colour gives it."""
    for channel in range(3):
        if np.array_equal(values[pixels[..., channel]], result.numpy()):
            return channel
    return None
