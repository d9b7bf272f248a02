"""From a picture to its label map: whole or window by window, at one or several scales, as it is and mirrored."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..model_utils import align_corners_of, device_of, dtype_of, evaluating
from ..models.image_modes_afdcd import as_rgb
from ..models.modeling_afdcd import upsample_logits
from .windows import join_windows, place_windows

# name -> what autocast computes in; None: no autocast, the network runs in the type of its weights
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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


@dataclass(frozen=True)
class InferenceSettings:
    """How label maps are made of pictures. The default: the whole picture, once, at its own scale.

    Attributes:
        scales: factors by which the network's input is resized.
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
        object.__setattr__(self, "stride", self._checked_stride())
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; expected one of {', '.join(PRECISIONS)}.")

    def _checked_stride(self) -> tuple[int, int] | None:
        stride = _height_and_width("stride", self.stride)
        if self.window is None:
            if stride is not None:
                raise ValueError(f"stride={stride} without a window: give the window's height and width as well.")
            return None
        if stride is None:
            return tuple(max(1, round(2 * side / 3)) for side in self.window)
        if any(step > side for step, side in zip(stride, self.window, strict=True)):
            raise ValueError(f"stride={stride} exceeds window={self.window}: pixels between windows would be left out.")
        return stride

    def describe(self) -> dict[str, Any]:
        """Entries of a protocol, fit for JSON; `InferenceSettings(**entries)` gives the settings back."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


WHOLE_IMAGE = InferenceSettings()


@dataclass(frozen=True)
class Sample:
    """One picture, ready for the network.

    Attributes:
        name: what errors and files call it.
        pixel_values: `(3, h, w)` float, from the image processor.
        size: (height, width) that its label map shall have.
        label: `(height, width)` integer class ids, None where there are none.
    """

    name: str
    pixel_values: Tensor
    size: tuple[int, int]
    label: Tensor | None = None


def make_sample(processor, image: Image.Image, name: str = "", label: Tensor | None = None) -> Sample:
    """Process one picture of any mode; its label map is to have the picture's own size."""
    pixel_values = processor(images=as_rgb(image), return_tensors="pt")["pixel_values"][0]
    return Sample(name, pixel_values, (image.height, image.width), label)


@torch.no_grad()
def predict_label_maps(
    model: nn.Module, batches: Iterable[Sequence[Sample]], settings: InferenceSettings = WHOLE_IMAGE
) -> Iterator[tuple[Sample, Tensor]]:
    """Segment batches of pictures, picture by picture.

    - Pictures are never padded: those of a batch that have equal size run together, others one after the other.
    - A window starts every `stride` pixels; the last of a row or column is moved back inside, and a side shorter than
      the window is taken whole. The logits of a window are stretched to its size, summed, and divided by the number of
      windows that saw the pixel, as mmsegmentation's sliding inference does. Where one window covers all, its logits
      are those of the whole picture.
    - A scaled input is resized bilinearly (half-pixel centres, no antialiasing, as in training).
    - With several scales, or a flip, class probabilities are averaged at the label map's size (the softmax of each
      pass; the mirrored one is turned back), as in mmsegmentation's test-time augmentation.
    - All stretching of logits is bilinear, with `align_corners` of the network's configuration (False without one).

    The network runs in evaluation mode, on the device where it is; its modules' modes come back when the generator
    ends or is closed. Logits are float32 from there on, also under autocast.

    Memory, beside the network's own for as many inputs at once as the batch has pictures: K float32 score maps at the
    label map's size and, with windows, K at the scaled input's. With several scales or a flip: K more at the label
    map's size, and K for each picture of the batch, where probabilities add up. The numbers of batches, windows and
    scales do not matter.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        batches: sequences of samples.
        settings: windows, scales, flip, precision.

    Yields:
        Each sample with its label map, `(height, width)` as its `size` says, on the network's device; uint8 where the
        network has up to 256 classes, int32 otherwise. Within a batch, pictures of equal size come together.

    Raises:
        ValueError: autocast is asked for, but the weights are float64, which it leaves alone.
    """
    if PRECISIONS[settings.precision] is not None and dtype_of(model) == torch.float64:
        raise ValueError(f"precision={settings.precision!r}: autocast leaves float64 weights alone; cast the network.")
    with evaluating(model):
        for batch in batches:
            for group in _by_size(batch):
                yield from _segment_group(model, group, settings, len(batch))


def segment_image(
    model: nn.Module, processor, image: Image.Image, settings: InferenceSettings = WHOLE_IMAGE
) -> np.ndarray:
    """Segment one picture.

    Args:
        model: as in `predict_label_maps`, which does the work.
        processor: image processor of the network.
        image: picture of any mode, read as RGB.
        settings: windows, scales, flip, precision.

    Returns:
        `(H, W)` class ids at the picture's size: uint8 for networks with up to 256 classes, uint16 otherwise.
    """
    [(_, label_map)] = predict_label_maps(model, [[make_sample(processor, image)]], settings)
    return as_array(label_map)


def as_array(label_map: Tensor) -> np.ndarray:
    """What `predict_label_maps` yields as an array: uint8, or uint16 where that is too small."""
    array = label_map.cpu().numpy()
    return array if array.dtype == np.uint8 else array.astype(np.uint16)


def _by_size(batch: Sequence[Sample]) -> list[list[Sample]]:
    groups = defaultdict(list)
    for sample in batch:
        groups[sample.pixel_values.shape].append(sample)
    return list(groups.values())


def _segment_group(
    model: nn.Module, group: list[Sample], settings: InferenceSettings, at_once: int
) -> Iterator[tuple[Sample, Tensor]]:
    """Samples of equal size with their label maps. No score map is bound to a name for longer than it is needed."""
    images = torch.stack([sample.pixel_values for sample in group]).to(device_of(model))
    passes = list(product(settings.scales, (False, True) if settings.flip else (False,)))
    totals: dict[int, Tensor] = {}
    for scale, mirrored in passes:
        inputs = _rescale(images, scale)
        scores = _pass_scores(model, inputs.flip(-1) if mirrored else inputs, group, settings, at_once)
        for index, sample in enumerate(group):
            if len(passes) == 1:
                yield sample, _label_map(next(scores))
            else:
                _add(totals, index, next(scores).softmax(0), mirrored)
    for index in sorted(totals):
        yield group[index], _label_map(totals.pop(index))


def _add(totals: dict[int, Tensor], index: int, probabilities: Tensor, mirrored: bool) -> None:
    upright = probabilities.flip(-1) if mirrored else probabilities
    totals[index] = totals[index].add_(upright) if index in totals else upright


def _label_map(scores: Tensor) -> Tensor:
    # max is three times as fast as argmax along the first dimension on a CPU; of equal scores both take the first
    return scores.max(0).indices.to(torch.uint8 if len(scores) <= 256 else torch.int32)


def _rescale(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _pass_scores(
    model: nn.Module, inputs: Tensor, group: list[Sample], settings: InferenceSettings, at_once: int
) -> Iterator[Tensor]:
    """Logits `(K, H, W)` of each sample of the group at its own size, one sample at a time."""
    height, width = inputs.shape[-2:]
    windows = place_windows((height, width), settings.window, settings.stride)
    crops = (image[:, rows, columns] for image in inputs for rows, columns in windows)
    logits = _run(model, crops, at_once, PRECISIONS[settings.precision])
    align_corners = align_corners_of(model)
    for sample in group:
        own = next(logits) if len(windows) == 1 else join_windows(logits, windows, (height, width), align_corners)
        yield upsample_logits(own[None], sample.size, align_corners)[0]


def _run(model: nn.Module, crops: Iterator[Tensor], at_once: int, autocast: torch.dtype | None) -> Iterator[Tensor]:
    """Logits `(K, h, w)` float32 of each input, all of one size; the network sees `at_once` of them together."""
    device, dtype = device_of(model), dtype_of(model)
    while chunk := list(islice(crops, at_once)):
        with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(pixel_values=torch.stack(chunk).to(dtype)).logits
        for one in logits:
            yield one.float()
