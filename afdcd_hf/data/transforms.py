"""Augmentation of an image together with its label map, as the paper trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

PAPER_SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)


class RandomScaleCropFlip:
    """Random scale, crop and horizontal flip, then the processor's normalisation.

    The image is resized bilinearly (half-pixel centres, no antialiasing, rounded to uint8), the label by nearest
    neighbour. Where the result is smaller than the crop it is padded at the right and the bottom with the mean (zeros
    once normalised) and the ignore label; the crop's position is uniform over the padded image; the flip comes last.

    Args:
        processor: Image processor that normalises a uint8 `(3, h, w)` RGB tensor without changing its size; called
            with `do_resize=False`.
        crop_size: Height and width of the result.
        scales: Factors drawn with equal probability.
        flip_probability: Probability of the flip, 0..1.
        ignore_index: Label of the padding.

    Raises:
        ValueError: If an argument is out of range.
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

    def __call__(self, image: Image.Image, label: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        """Draws one augmented sample.

        Args:
            image: Image of any mode, read as RGB.
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
        rows, columns = (_crop_range(rng, side, crop) for side, crop in zip(size, self.crop_size, strict=True))
        pixel_values = self._pad(self._normalise(_resize_bilinear(image, size)[:, rows, columns]), 0.0)
        labels = self._pad(torch.from_numpy(_resize_nearest(label, size, rows, columns)), self.ignore_index)
        if rng.random() < self.flip_probability:
            pixel_values, labels = pixel_values.flip(-1), labels.flip(-1)
        return {"pixel_values": pixel_values, "labels": labels}

    def _normalise(self, crop: Tensor) -> Tensor:
        pixel_values = self.processor(images=crop, return_tensors="pt", do_resize=False)["pixel_values"][0]
        if pixel_values.shape != crop.shape:
            raise ValueError(
                f"The processor turned a {tuple(crop.shape)} crop into {tuple(pixel_values.shape)}, so that the "
                "labels no longer fit; switch off its padding and cropping."
            )
        # PIL's pixels come channels-last; batches should not mix memory layouts.
        return pixel_values.to(torch.float32, memory_format=torch.contiguous_format)

    def _pad(self, region: Tensor, value: float) -> Tensor:
        missing_rows = self.crop_size[0] - region.shape[-2]
        missing_columns = self.crop_size[1] - region.shape[-1]
        return F.pad(region, (0, missing_columns, 0, missing_rows), value=value)


def _crop_range(rng: np.random.Generator, side: int, crop: int) -> slice:
    """The pixels of the resized image that the crop keeps; padding, if any, follows them."""
    start = int(rng.integers(max(side - crop, 0) + 1))
    return slice(start, min(start + crop, side))


def _resize_bilinear(image: Image.Image, size: tuple[int, int]) -> Tensor:
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)  # (3, h, w) uint8
    if size == tuple(pixels.shape[1:]):
        return pixels
    return F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False, antialias=False)[0]


def _resize_nearest(label: Image.Image, size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    """The kept part of the resized label, int64. Pixel y shows input pixel floor(y·h/H), as with cv2.INTER_NEAREST."""
    ids = np.asarray(label)
    source_rows = np.arange(rows.start, rows.stop) * ids.shape[0] // size[0]
    source_columns = np.arange(columns.start, columns.stop) * ids.shape[1] // size[1]
    return ids[source_rows[:, None], source_columns].astype(np.int64)
