"""Augmentation of an image together with its label map: the paper's, and optional extras."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..models.image_modes_afdcd import as_rgb
from ..models.loading import whole_image
from . import PAPER_SCALES
from .checks import check_same_size

_ONE = 2**11  # bilinear weights have 11 bits, as OpenCV's for uint8


class RandomScaleCropFlip:
    """Random scale, crop and horizontal flip, then the processor's normalisation.

    The image is resized bilinearly (without antialiasing), the label by nearest neighbour, both at the sampling
    positions of the released code. If the result is smaller than the crop, it is padded at the right and the bottom
    with the mean (zeros once normalised) and the ignore label. The crop's position is uniform over the padded image;
    the flip follows. The last three arguments, off by default, are not part of the paper's training: colours change
    before normalisation, and crop and label are rotated last.

    Args:
        processor: Image processor that normalises a uint8 `(3, h, w)` RGB tensor without changing its size; called
            with `do_resize=False`.
        crop_size: Height and width of the result.
        scales: Factors drawn with equal probability.
        flip_probability: Probability of the flip, 0..1.
        ignore_index: Label of the padding, and of the corners that a rotation leaves empty.
        color_jitter: Largest relative change of brightness, contrast and saturation, and largest shift of the hue
            (0..0.5), such as `(0.4, 0.4, 0.4, 0.1)`; in random order (torchvision's `ColorJitter`).
        blur_probability: Probability of a Gaussian blur (5x5 pixels, σ uniform in 0.1..2), 0..1.
        max_rotation: Largest angle in degrees, 0..180, in either direction; bilinear, nearest neighbour for the label.

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
        *,
        color_jitter: Sequence[float] | None = None,
        blur_probability: float = 0.0,
        max_rotation: float = 0.0,
    ) -> None:
        scales = tuple(scales)
        if len(crop_size) != 2 or any(int(side) != side or side < 1 for side in crop_size):
            raise ValueError(f"crop_size={tuple(crop_size)}: expected (height, width), two positive whole numbers.")
        if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ValueError(f"scales={scales}: expected at least one factor, all positive.")
        for name, value in (("flip_probability", flip_probability), ("blur_probability", blur_probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}: expected a probability between 0 and 1.")
        if not 0 <= max_rotation <= 180:
            raise ValueError(f"max_rotation={max_rotation}: expected degrees between 0 and 180.")
        self.processor = processor
        self.crop_size = (int(crop_size[0]), int(crop_size[1]))
        self.scales = scales
        self.flip_probability = flip_probability
        self.ignore_index = ignore_index
        self._recolour: list[v2.Transform] = []
        if color_jitter is not None:
            try:
                brightness, contrast, saturation, hue = map(float, color_jitter)
                self._recolour.append(v2.ColorJitter(brightness, contrast, saturation, hue))
            except (TypeError, ValueError) as error:
                four = "brightness, contrast, saturation (0 or more) and hue (0 to 0.5), such as [0.4, 0.4, 0.4, 0.1]"
                raise ValueError(f"color_jitter={color_jitter}: {error}; expected {four}.") from error
        if blur_probability:
            self._recolour.append(v2.RandomApply([v2.GaussianBlur(5)], blur_probability))
        run_processor(processor, torch.zeros(3, *self.crop_size, dtype=torch.uint8))  # fail before the first step
        self._rotate = None
        if max_rotation:
            fill = {tv_tensors.Image: 0, tv_tensors.Mask: ignore_index}
            self._rotate = v2.RandomRotation(max_rotation, v2.InterpolationMode.BILINEAR, fill=fill)

    def __call__(self, image: Image.Image, label: Image.Image, rng: np.random.Generator) -> dict[str, Tensor]:
        """Draw one augmented sample from an image of any mode and single-channel class ids of its size.

        `rng` is the source of all randomness; every call draws four values, and a fifth if colours or angles change.

        Returns:
            `pixel_values`, float32 `(3, H, W)`, and `labels`, int64 `(H, W)`.

        Raises:
            ValueError: If image and label differ in size, or the image has no defined colours.
        """
        ids = np.asarray(label)
        check_same_size(image, ids)
        scale = self.scales[rng.integers(len(self.scales))]
        sides = (resized_side(side, scale) for side in (image.height, image.width))
        rows, columns = (_kept(rng, side, crop) for side, crop in zip(sides, self.crop_size, strict=True))
        flip = rng.random() < self.flip_probability
        if flip:
            columns = columns[::-1]
        left = self.crop_size[1] - len(columns) if flip else 0
        place = (..., slice(len(rows)), slice(left, left + len(columns)))
        pixels = torch.from_numpy(resize_bilinear(np.asarray(as_rgb(image)), scale, rows, columns)).permute(2, 0, 1)
        pixel_values = torch.zeros(3, *self.crop_size)
        labels = torch.full(self.crop_size, self.ignore_index)
        labels[place] = torch.from_numpy(resize_nearest(ids, scale, rows, columns).astype(np.int64))
        draws = bool(self._recolour) or self._rotate is not None
        with torch.random.fork_rng(devices=[], enabled=draws):  # torchvision draws from torch's global generator only
            if draws:
                torch.manual_seed(int(rng.integers(2**63)))
            for change in self._recolour:
                pixels = change(pixels)
            pixel_values[place] = run_processor(self.processor, pixels)
            if self._rotate is not None:
                turned = self._rotate(tv_tensors.Image(pixel_values), tv_tensors.Mask(labels))
                pixel_values, labels = (part.as_subclass(Tensor) for part in turned)
        return {"pixel_values": pixel_values, "labels": labels}


def run_processor(processor: Callable[..., Any], pixels: Tensor) -> Tensor:
    """Run an image processor on a crop, `(3, h, w)` uint8 RGB, to float32; ValueError if it changes the size."""
    options = {"return_tensors": "pt", "do_resize": False, **whole_image(processor)}
    pixel_values = processor(images=pixels.contiguous(), **options)["pixel_values"][0]
    if pixel_values.shape != pixels.shape:
        raise ValueError(
            f"The processor turned a {tuple(pixels.shape)} crop into {tuple(pixel_values.shape)}, so that the "
            "labels no longer fit; switch off its padding and cropping."
        )
    return pixel_values.to(torch.float32)


def _kept(rng: np.random.Generator, side: int, crop: int) -> np.ndarray:
    """Return the pixels that the crop keeps along an axis of the resized image; padding, if any, follows them."""
    start = int(rng.integers(max(side - crop, 0) + 1))
    return np.arange(start, min(start + crop, side))


# Resizing that computes only the part of an image or label that a crop keeps. Pixels are sampled where the released
# code's `cv2.resize(image, None, fx=scale, fy=scale)` samples: 1/scale source pixels apart, even if scale × side is not
# a whole number and the resulting side is rounded.


def resized_side(side: int, scale: float) -> int:
    """Return the length of a resized side in pixels: rounded (half to even), but at least 1."""
    return max(1, round(side * scale))


def resize_bilinear(pixels: np.ndarray, scale: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute some rows `(H,)` and columns `(W,)`, in any order, of a bilinearly resized image `(h, w, 3)` uint8.

    Within one grey level of OpenCV's `INTER_LINEAR`: output pixel x samples source position (x + ½) / scale - ½ from
    two neighbours per axis at any scale (no antialiasing); edges are repeated, and results rounded once.
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
    """Return, for each kept pixel of an axis, two source pixels and the weight of the second in units of 1/`_ONE`."""
    position = np.clip((kept + 0.5) / scale - 0.5, 0, length - 1)
    low = position.astype(np.int64)
    weight = np.rint((position - low) * _ONE).astype(np.int32)
    return low, np.minimum(low + 1, length - 1), weight


def resize_nearest(ids: np.ndarray, scale: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Do the same with class ids `(h, w)` by nearest neighbour, `INTER_NEAREST`: pixel x is input pixel ⌊x / scale⌋."""
    for axis, kept in enumerate((rows, columns)):
        # 1 / scale first, as OpenCV does: 7 / 0.7 and 7 * (1 / 0.7) lie on either side of 10
        source = np.minimum((kept * (1 / scale)).astype(np.int64), ids.shape[axis] - 1)
        ids = ids.take(source, axis=axis)
    return ids
