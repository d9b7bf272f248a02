"""Augmentation of an image together with its label map, as the paper trains."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .normalisation import PixelTable, run_processor
from .resizing import resize_bilinear, resize_nearest

logger = logging.getLogger(__name__)

PAPER_SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)


class RandomScaleCropFlip:
    """Random scale, crop and horizontal flip, then the processor's normalisation.

    The image is resized bilinearly (half-pixel centres, no antialiasing, rounded to uint8), the label by nearest
    neighbour. Where the result is smaller than the crop it is padded at the right and the bottom with the mean (zeros
    once normalised) and the ignore label; the crop's position is uniform over the padded image; the flip comes last.
    Only what the crop keeps is computed, to the same bits as if all of it were.

    Args:
        processor: Image processor that normalises a uint8 `(3, h, w)` RGB tensor without changing its size; called
            with `do_resize=False`. One that maps pixel values, as nearly all do, is tried out here and replaced by a
            table of its results, so that its settings must not change afterwards.
        crop_size: Height and width of the result.
        scales: Factors drawn with equal probability.
        flip_probability: Probability of the flip, 0..1.
        ignore_index: Label of the padding.

    Raises:
        ValueError: If an argument is out of range, or the processor changes the size.
    """

    def __init__(
        self,
        processor: Callable[..., Any],
        crop_size: tuple[int, int],
        scales: Sequence[float] = PAPER_SCALES,
        flip_probability: float = 0.5,
        ignore_index: int = 255,
    ) -> None:
        crop_size, scales = tuple(crop_size), tuple(scales)
        if len(crop_size) != 2 or any(int(side) != side or side < 1 for side in crop_size):
            raise ValueError(f"crop_size={crop_size}: expected (height, width), two positive whole numbers.")
        if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ValueError(f"scales={scales}: expected at least one factor, all positive.")
        if not 0 <= flip_probability <= 1:
            raise ValueError(f"flip_probability={flip_probability}: expected a probability between 0 and 1.")
        self.processor = processor
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.scales = scales
        self.flip_probability = flip_probability
        self.ignore_index = ignore_index
        self._table = PixelTable.of(processor, tuple(max(side, 16) for side in self.crop_size))
        if self._table is None:
            logger.info("%s does more than map pixel values: it is called on every crop.", type(processor).__name__)

    def __call__(self, image: Image.Image, label: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        """Draws one augmented sample.

        Args:
            image: Image of any mode, read as RGB. Of a PNG as `load_benchmark` hands it out, only the rows down to the
                end of the crop are decoded.
            label: Class ids, one channel, of the image's size.
            rng: Source of all randomness; every call draws four values.

        Returns:
            `pixel_values`, float32 `(3, H, W)`, and `labels`, int64 `(H, W)`.

        Raises:
            ValueError: If image and label differ in size.
        """
        if image.size != label.size:
            raise ValueError(
                f"The image is {image.height}x{image.width} pixels and its label {label.height}x{label.width} (height "
                "x width); they must be equal."
            )
        scale = self.scales[rng.integers(len(self.scales))]
        size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
        rows, columns = (_kept(rng, side, crop) for side, crop in zip(size, self.crop_size, strict=True))
        flip = rng.random() < self.flip_probability
        if flip:
            columns = columns[::-1]
        place = (slice(len(rows)), slice(self.crop_size[1] - len(columns), None) if flip else slice(len(columns)))
        pixel_values = self._padding((3, *self.crop_size), 0, np.float32, place)
        self._normalise(resize_bilinear(image, size, rows, columns), pixel_values[(..., *place)])
        labels = self._padding(self.crop_size, self.ignore_index, np.int64, place)
        labels[place] = resize_nearest(np.asarray(label), size, rows, columns)
        return {"pixel_values": torch.from_numpy(pixel_values), "labels": torch.from_numpy(labels)}

    def _padding(
        self, shape: tuple[int, ...], value: float, dtype: type[np.generic], place: tuple[slice, slice]
    ) -> np.ndarray:
        """The result before the crop is put at its place: padding, where there is any."""
        full = all(range(side)[part] == range(side) for side, part in zip(self.crop_size, place, strict=True))
        return np.empty(shape, dtype) if full else np.full(shape, value, dtype)

    def _normalise(self, pixels: np.ndarray, out: np.ndarray) -> None:
        if self._table is not None:
            self._table(pixels, out)
        else:
            out[...] = run_processor(self.processor, pixels).numpy()


def _kept(rng: np.random.Generator, side: int, crop: int) -> np.ndarray:
    """The pixels of the resized image's axis that the crop keeps; padding, if any, follows them."""
    start = int(rng.integers(max(side - crop, 0) + 1))
    return np.arange(start, min(start + crop, side))
