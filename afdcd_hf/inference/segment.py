"""From an image to its label map: whole or in windows, at one or several scales, plain and flipped."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice, product
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..model_utils import align_corners_of, device_of, dtype_of, evaluating
from ..models.image_modes_afdcd import as_rgb
from ..models.loading import whole_image
from ..models.modeling_afdcd import upsample_logits

logger = logging.getLogger(__name__)
T = TypeVar("T")

# name -> dtype of autocast; None: no autocast, the model runs in the dtype of its weights
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
IGNORED = 255  # label of pixels whose class is too uncertain
_MAX_SCORES = 2**21  # scores (8 MB) up to which all classes are upsampled together
_MULTIPLES = (32, 64)  # input sides are padded to multiples of these if a model rejects others


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of segmentation; by default the whole image, once, at its own scale.

    Raises ValueError for an invalid value.
    """

    scales: tuple[float, ...] = (1.0,)  # factors by which the model's input is resized
    flip: bool = False  # also run the mirrored input (left and right exchanged)
    window: tuple[int, int] | None = None  # (height, width) of windows of the scaled input that are run instead of it
    stride: tuple[int, int] | None = None  # from one window to the next, (down, right); None: two thirds of the window
    precision: str = "fp32"  # the dtype of the weights, no autocast; or "bf16" or "fp16" (autocast)

    def __post_init__(self) -> None:
        # Lists come from JSON and the command line; tuples keep the settings hashable and equal to others.
        scales = tuple(self.scales) if isinstance(self.scales, (tuple, list)) else (self.scales,)
        if not scales or not all(isinstance(scale, (int, float)) and 0 < scale < math.inf for scale in scales):
            raise ValueError(f"scales={self.scales!r}: expected one or more positive factors, such as (0.75, 1.0).")
        window, stride = (height_and_width(name, getattr(self, name)) for name in ("window", "stride"))
        if stride and not window:
            raise ValueError(f"stride={stride} without a window: give the window's height and width as well.")
        if window and not stride:
            stride = max(1, round(2 * window[0] / 3)), max(1, round(2 * window[1] / 3))
        if window and stride and (stride[0] > window[0] or stride[1] > window[1]):
            raise ValueError(f"stride={stride} exceeds window={window}: pixels between windows would be left out.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision!r} is unknown; expected one of {', '.join(PRECISIONS)}.")
        for name, value in (("scales", tuple(map(float, scales))), ("window", window), ("stride", stride)):
            object.__setattr__(self, name, value)

    def describe(self) -> dict[str, Any]:
        """Return entries of a protocol, ready for JSON; `InferenceSettings(**entries)` restores the settings."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def height_and_width(name: str, value: Any) -> tuple[int, int] | None:
    """Return the value as a tuple, or None for None; ValueError unless it is two positive whole numbers."""
    if value is None:
        return None
    sides = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name}={value!r}: expected (height, width), two positive whole numbers of pixels.")
    return sides


WHOLE_IMAGE = InferenceSettings()


@dataclass(frozen=True)
class Sample:
    """One image, ready for the model."""

    name: str  # what errors and files call it
    pixel_values: Tensor  # `(3, h, w)` float, from the image processor
    size: tuple[int, int]  # (height, width) of its label map
    label: Tensor | None = None  # `(height, width)` integer class ids


def make_sample(processor: Any, image: Image.Image, name: str = "", label: Tensor | None = None) -> Sample:
    """Process one image of any mode; its label map will have the image's own size."""
    try:
        rgb = as_rgb(image)
    except ValueError as error:
        raise ValueError(f"{name or 'The image'}: {error}.") from error
    pixel_values = processor(images=rgb, return_tensors="pt", **whole_image(processor))["pixel_values"][0]
    return Sample(name, pixel_values, (image.height, image.width), label)


class Seconds(defaultdict[str, float]):
    """Time spent: part -> seconds."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self[part] += perf_counter() - start


class Predictor:
    """A model that is applied to images with the given settings.

    - A window starts every `stride` pixels; the last of a row or column is moved back inside, and a side shorter than
      the window is taken whole. The logits of a window are upsampled to its size, and averaged over the windows that
      cover a pixel, as in mmsegmentation.
    - A scaled input is resized bilinearly (half-pixel centres, no antialiasing, as in training).
    - With several scales, or a flip, the softmax of all passes is averaged at the label map's size, also as there.
    - Logits are upsampled bilinearly, with the `align_corners` of the model's configuration (False without one).
    - Inputs are padded only if the model fails on their size: with zeros, at the right and the bottom, to a multiple
      of 32 or 64. The scores of the padding are cropped.

    The model runs in evaluation mode, on its own device, with images of equal size batched; its logits are float32,
    even under autocast. Besides the model's own memory, this takes three maps at the label map's size; with windows, K
    score maps at the scaled input's size; and if probabilities are averaged, K maps for each image of the batch.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        settings: windows, scales, flip, precision; a graph of fixed size adds windows of that size.
        min_confidence: pixels whose (average) probability is lower get 255; None for a class everywhere.
    """

    def __init__(
        self, model: nn.Module, settings: InferenceSettings = WHOLE_IMAGE, min_confidence: float | None = None
    ) -> None:
        if PRECISIONS[settings.precision] is not None and dtype_of(model) == torch.float64:
            raise ValueError(f"precision={settings.precision!r}: autocast leaves float64 weights alone; use fp32.")
        self.model = model
        adapt: Any = getattr(model, "settings_for", None)
        self.settings = adapt(settings) if adapt else settings
        self.min_confidence = min_confidence
        self.multiple = 1  # input sides are padded to a multiple of this
        self.seconds = Seconds(float)  # spent on the parts "model" and "label maps"

    @torch.no_grad()
    def label_maps(self, batches: Iterable[Sequence[Sample]]) -> Generator[tuple[Sample, Tensor], None, None]:
        """Segment batches of images; the modules' modes are restored when the generator ends or is closed.

        Yields:
            Each sample with its label map, `(height, width)` as its `size` says, on the model's device; uint8 if the
            model has up to 256 classes, int32 otherwise. Within a batch, images of equal size come together.

        Raises:
            ValueError: the scores of an image are not finite, or the model cannot take an input of its size.
        """
        with evaluating(self.model):
            for batch in batches:
                by_size = defaultdict(list)
                for sample in batch:
                    by_size[sample.pixel_values.shape].append(sample)
                for group in by_size.values():
                    yield from self._segment_group(group, len(batch))

    def _segment_group(self, group: list[Sample], at_once: int) -> Iterator[tuple[Sample, Tensor]]:
        """Yield samples with their label maps, keeping no score map longer than needed."""
        images = torch.stack([sample.pixel_values for sample in group]).to(device_of(self.model))
        align_corners = align_corners_of(self.model)
        passes = list(product(self.settings.scales, (False, True) if self.settings.flip else (False,)))
        averaging = len(passes) > 1 or self.min_confidence is not None
        totals: dict[int, Tensor] = {}
        for scale, mirrored in passes:
            size = [max(1, round(side * scale)) for side in images.shape[-2:]]
            inputs = images if scale == 1 else F.interpolate(images, size, mode="bilinear", align_corners=False)
            logits = self._logits(inputs.flip(-1) if mirrored else inputs, group, at_once)
            for index, sample in enumerate(group):
                if not averaging:
                    yield sample, self._timed(best_classes, next(logits), sample.size, align_corners)
                    continue
                scores = upsample_logits(next(logits)[None], sample.size, align_corners)[0].softmax(0)
                scores = scores.flip(-1) if mirrored else scores
                totals[index] = totals[index].add_(scores) if index in totals else scores
        for index in sorted(totals):
            yield group[index], self._timed(self._most_probable, totals.pop(index).div_(len(passes)))

    def _timed(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        with self.seconds.of("label maps"):
            return function(*args)

    def _most_probable(self, probabilities: Tensor) -> Tensor:
        highest, classes = probabilities.max(0)
        uncertain = highest < (self.min_confidence or 0)
        return classes.to(_id_type(len(probabilities))).masked_fill(uncertain, IGNORED)

    def _logits(self, inputs: Tensor, group: list[Sample], at_once: int) -> Iterator[Tensor]:
        """Yield float32 logits `(K, h, w)` of each sample in one pass, one sample at a time."""
        size = inputs.shape[-2], inputs.shape[-1]
        windows = _place_windows(size, self.settings)
        crops = (image[:, rows, columns] for image in inputs for rows, columns in windows)
        of_windows = self._run_model(crops, at_once)
        for sample in group:
            if len(windows) == 1:
                logits = next(of_windows)
            else:
                logits = _join_windows(of_windows, windows, size, align_corners_of(self.model))
            if not logits.amax() < float("inf"):  # NaN compares as False
                precision = self.settings.precision
                hint = "" if precision == "fp32" else f" in {precision}; try --precision fp32"
                raise ValueError(
                    f"{sample.name or 'The image'}: the model's scores are not finite (NaN or infinite){hint}. Its "
                    "weights are damaged, or its training diverged: no label map can be made from them."
                )
            yield logits

    def _run_model(self, crops: Iterator[Tensor], at_once: int) -> Iterator[Tensor]:
        """Yield float32 logits of each input, all of one size; the model gets `at_once` of them together."""
        while chunk := list(islice(crops, at_once)):
            with self.seconds.of("model"):
                logits = self._forward(torch.stack(chunk))
            for one in logits:
                yield one.float()

    def _forward(self, inputs: Tensor) -> Tensor:
        height, width = inputs.shape[-2:]
        reason: Exception | None = None
        sides = (*_MULTIPLES, *(self.settings.window or ()))  # for a smaller image than a model's only size
        for multiple in (self.multiple, *(one for one in sides if one > self.multiple)):
            try:
                logits = self._padded(inputs, multiple)
            except (RuntimeError, AssertionError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):  # on a GPU, on the CPU
                    raise
                reason = reason or error
                continue
            if multiple != self.multiple:
                self.multiple = multiple
                logger.warning("The model takes no input of %dx%d: padded to multiples of %d.", height, width, multiple)
            return logits
        raise ValueError(
            f"The model failed on an input of {height}x{width} pixels: {' '.join(str(reason).split())[:200]}. If it "
            "accepts one size only, slide a window of that size over the image: --window HEIGHT WIDTH."
        ) from reason

    def _padded(self, inputs: Tensor, multiple: int) -> Tensor:
        """Return the logits, at the input's size if padding was necessary."""
        height, width = inputs.shape[-2:]
        below, right = -height % multiple, -width % multiple
        autocast = PRECISIONS[self.settings.precision]
        with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None):
            inputs = inputs.to(dtype_of(self.model))
            inputs = F.pad(inputs, (0, right, 0, below)) if below or right else inputs
            logits = self.model(pixel_values=inputs).logits
        if not (below or right):
            return logits
        size = inputs.shape[-2], inputs.shape[-1]
        return upsample_logits(logits.float(), size, align_corners_of(self.model))[..., :height, :width]


def segment_image(
    model: nn.Module, processor: Any, image: Image.Image | np.ndarray, settings: InferenceSettings = WHOLE_IMAGE
) -> np.ndarray:
    """Segment one image of any mode, which is read as RGB, with a model and its image processor; see `Predictor`.

    An array holds RGB pixels, `(H, W, 3)` uint8. Returns `(H, W)` class ids at the image's size: uint8 for models with
    up to 256 classes, uint16 otherwise.
    """
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        given = " ".join(str(getattr(image, name, "")) for name in ("shape", "dtype"))
        what = f"a {type(image).__name__} {given}".rstrip()
        raise ValueError(f"The image is {what}; give a PIL image, or RGB pixels as a (H, W, 3) uint8 array.")
    [(_, label_map)] = Predictor(model, settings).label_maps([[make_sample(processor, image)]])
    return as_array(label_map)


def prefetch(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the items (none of them None), each fetched by a thread while the one before it is in use."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item


def as_array(label_map: Tensor) -> np.ndarray:
    """Return a label map from `Predictor.label_maps` as an array: uint8, or uint16 if that is too small."""
    array = label_map.cpu().numpy()
    return array if array.dtype == np.uint8 else array.astype(np.uint16)


def best_classes(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return the class with the highest of finite scores `(K, h, w)` at each pixel `(H, W)`, of equal ones the first.

    Large maps are made class by class: the same to the bit, in less memory, and faster if K maps exceed the cache.
    """
    id_type = _id_type(len(logits))
    if len(logits) * size[0] * size[1] <= _MAX_SCORES:
        # both take the first of equal scores; max is three times as fast as argmax on a CPU
        return upsample_logits(logits[None], size, align_corners)[0].max(0).indices.to(id_type)
    logits = logits.contiguous()  # torch rounds differently for one channel of a channels-last map
    label_map = torch.zeros(size, dtype=id_type, device=logits.device)
    highest = upsample_logits(logits[None, :1], size, align_corners)[0, 0]
    for index in range(1, len(logits)):
        scores = upsample_logits(logits[None, index : index + 1], size, align_corners)[0, 0]
        label_map.masked_fill_(scores > highest, index)
        highest = torch.maximum(highest, scores)
    return label_map


def _id_type(num_labels: int) -> torch.dtype:
    return torch.uint8 if num_labels <= 256 else torch.int32


def _place_windows(size: tuple[int, int], settings: InferenceSettings) -> list[tuple[slice, slice]]:
    """Return rows and columns of the windows that cover an image of (height, width); see `Predictor`."""
    sides = []
    for side, length, step in zip(size, settings.window or size, settings.stride or size, strict=True):
        last = max(side - length, 0)
        sides.append([slice(start, min(start + length, side)) for start in (*range(0, last, step), last)])
    return list(product(sides[0], sides[1]))


def _join_windows(
    logits: Iterator[Tensor], windows: Sequence[tuple[slice, slice]], size: tuple[int, int], align_corners: bool
) -> Tensor:
    """Merge windows into one score map `(K, *size)`, taking their logits one by one to save memory."""
    total, times = torch.empty(0), torch.zeros(size)
    for (rows, columns), one in zip(windows, islice(logits, len(windows)), strict=True):
        total = total if total.numel() else one.new_zeros(len(one), *size)
        region = total[:, rows, columns]
        region += upsample_logits(one[None], (region.shape[-2], region.shape[-1]), align_corners)[0]
        times[rows, columns] += 1
    return total.div_(times.to(total.device))
