"""From an image to its label map: whole or window by window, at one or several scales, as it is and mirrored."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, product
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..model_utils import align_corners_of, device_of, dtype_of, evaluating
from ..models.image_modes_afdcd import as_rgb
from ..models.modeling_afdcd import upsample_logits
from .settings import PRECISIONS, WHOLE_IMAGE, InferenceSettings
from .windows import join_windows, place_windows

logger = logging.getLogger(__name__)

IGNORED = 255  # what pixels get whose class is too uncertain
_AT_ONCE = 2**21  # scores (8 MB) up to which all classes are stretched together
_MULTIPLES = (32, 64)  # what the sides of inputs are padded to where a model refuses others


@dataclass(frozen=True)
class Sample:
    """One image, ready for the model.

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


def make_sample(processor: Any, image: Image.Image, name: str = "", label: Tensor | None = None) -> Sample:
    """Process one image of any mode; its label map is to have the image's own size."""
    try:
        rgb = as_rgb(image)
    except ValueError as error:
        raise ValueError(f"{name or 'The image'}: {error}.") from error
    pixel_values = processor(images=rgb, return_tensors="pt")["pixel_values"][0]
    return Sample(name, pixel_values, (image.height, image.width), label)


class Seconds(defaultdict[str, float]):
    """Where the time went: part -> seconds."""

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add what passes inside to a part."""
        start = perf_counter()
        try:
            yield
        finally:
            self[part] += perf_counter() - start


class Predictor:
    """A model, applied to images as settings say.

    - Images of equal size in a batch run together, others one after the other.
    - A window starts every `stride` pixels; the last of a row or column is moved back inside, and a side shorter than
      the window is taken whole. The logits of a window are stretched to its size, summed, and divided by the number of
      windows that saw the pixel, as mmsegmentation's sliding inference does. Where one window covers all, its logits
      are those of the whole image.
    - A scaled input is resized bilinearly (half-pixel centres, no antialiasing, as in training).
    - With several scales, or a flip, class probabilities are averaged at the label map's size (the softmax of each
      pass; the mirrored one is turned back), as in mmsegmentation's test-time augmentation.
    - All stretching of logits is bilinear, with `align_corners` of the model's configuration (False without one).
    - Inputs are not padded, unless the model fails on their size: then with zeros, below and to the right, to a
      multiple of 32 or 64, and the padding is cut off its scores.

    The model runs in evaluation mode, on the device where it is. Logits are float32 from there on, also under autocast.
    Memory, beside the model's own for as many inputs at once as the batch has images: three maps at the label map's
    size, K float32 score maps at the scaled input's with windows; where probabilities are averaged, K maps at the label
    map's size, and K for each image of the batch. The numbers of batches, windows and scales do not matter.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        settings: windows, scales, flip, precision.
        least_confidence: pixels whose (average) probability is below get 255; None for a class everywhere.

    Attributes:
        multiple: what sides of inputs are padded to a multiple of; 1 for no padding.
        seconds: spent on the parts "model" and "label maps".

    Raises:
        ValueError: autocast is asked for, but the weights are float64, which it leaves alone.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: InferenceSettings = WHOLE_IMAGE,
        least_confidence: float | None = None,
    ) -> None:
        if PRECISIONS[settings.precision] is not None and dtype_of(model) == torch.float64:
            raise ValueError(f"precision={settings.precision!r}: autocast leaves float64 weights alone; use fp32.")
        self.model = model
        self.settings = settings
        self.least_confidence = least_confidence
        self.multiple = 1
        self.seconds = Seconds(float)

    @torch.no_grad()
    def label_maps(self, batches: Iterable[Sequence[Sample]]) -> Generator[tuple[Sample, Tensor], None, None]:
        """Segment batches of images, image by image.

        The modes of the model's modules come back when the generator ends or is closed.

        Yields:
            Each sample with its label map, `(height, width)` as its `size` says, on the model's device; uint8 where the
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
                    yield from self._of_equal_size(group, len(batch))

    def _of_equal_size(self, group: list[Sample], at_once: int) -> Iterator[tuple[Sample, Tensor]]:
        """Samples with their label maps. No score map is bound to a name for longer than it is needed."""
        images = torch.stack([sample.pixel_values for sample in group]).to(device_of(self.model))
        align_corners = align_corners_of(self.model)
        passes = list(product(self.settings.scales, (False, True) if self.settings.flip else (False,)))
        averaging = len(passes) > 1 or self.least_confidence is not None
        totals: dict[int, Tensor] = {}
        for scale, mirrored in passes:
            inputs = _rescale(images, scale)
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
        label_map = classes.to(_id_type(len(probabilities)))
        return (
            label_map
            if self.least_confidence is None
            else label_map.masked_fill(highest < self.least_confidence, IGNORED)
        )

    def _logits(self, inputs: Tensor, group: list[Sample], at_once: int) -> Iterator[Tensor]:
        """Float32 logits `(K, h, w)` of each sample in one pass, one sample at a time."""
        height, width = inputs.shape[-2:]
        windows = place_windows((height, width), self.settings.window, self.settings.stride)
        crops = (image[:, rows, columns] for image in inputs for rows, columns in windows)
        of_windows = self._each(crops, at_once)
        for sample in group:
            if len(windows) == 1:
                logits = next(of_windows)
            else:
                logits = join_windows(of_windows, windows, (height, width), align_corners_of(self.model))
            if not logits.amax() < float("inf"):  # NaN compares as False
                precision = self.settings.precision
                hint = "" if precision == "fp32" else f" in {precision}; try --precision fp32"
                raise ValueError(
                    f"{sample.name or 'The image'}: the model's scores are not finite (NaN or infinite){hint}. Its "
                    "weights are damaged, or its training diverged: no label map can be made of them."
                )
            yield logits

    def _each(self, crops: Iterator[Tensor], at_once: int) -> Iterator[Tensor]:
        """Float32 logits of each input, all of one size; the model sees `at_once` of them together."""
        while chunk := list(islice(crops, at_once)):
            with self.seconds.of("model"):
                logits = self._forward(torch.stack(chunk))
            for one in logits:
                yield one.float()

    def _forward(self, inputs: Tensor) -> Tensor:
        try:
            return self._padded(inputs, self.multiple)
        except (RuntimeError, AssertionError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):  # of a GPU, of the CPU
                raise
            height, width = inputs.shape[-2:]
            for multiple in (one for one in _MULTIPLES if one > self.multiple and (height % one or width % one)):
                try:
                    logits = self._padded(inputs, multiple)
                except (RuntimeError, AssertionError):
                    continue  # told below
                self.multiple = multiple
                logger.warning("The model takes no input of %dx%d: padded to multiples of %d.", height, width, multiple)
                return logits
            raise ValueError(
                f"The model failed on an input of {height}x{width} pixels: {' '.join(str(error).split())[:200]}. If it "
                "is made for one size only, slide a window of that size over the image: --window HEIGHT WIDTH."
            ) from error

    def _padded(self, inputs: Tensor, multiple: int) -> Tensor:
        """Logits; where padding was necessary, at the input's size."""
        height, width = inputs.shape[-2:]
        below, right = -height % multiple, -width % multiple
        autocast = PRECISIONS[self.settings.precision]
        with torch.autocast(inputs.device.type, dtype=autocast, enabled=autocast is not None):
            inputs = inputs.to(dtype_of(self.model))
            if not (below or right):
                return self.model(pixel_values=inputs).logits
            inputs = F.pad(inputs, (0, right, 0, below))
            logits = self.model(pixel_values=inputs).logits
        size = inputs.shape[-2], inputs.shape[-1]
        stretched = upsample_logits(logits.float(), size, align_corners_of(self.model))
        return stretched[..., :height, :width]


def predict_label_maps(
    model: nn.Module, batches: Iterable[Sequence[Sample]], settings: InferenceSettings = WHOLE_IMAGE
) -> Generator[tuple[Sample, Tensor], None, None]:
    """`Predictor(model, settings).label_maps(batches)`."""
    return Predictor(model, settings).label_maps(batches)


def segment_image(
    model: nn.Module, processor: Any, image: Image.Image, settings: InferenceSettings = WHOLE_IMAGE
) -> np.ndarray:
    """Segment one image.

    Args:
        model: as for `Predictor`, which does the work.
        processor: image processor of the model.
        image: image of any mode, read as RGB.
        settings: windows, scales, flip, precision.

    Returns:
        `(H, W)` class ids at the image's size: uint8 for models with up to 256 classes, uint16 otherwise.
    """
    [(_, label_map)] = predict_label_maps(model, [[make_sample(processor, image)]], settings)
    return as_array(label_map)


def as_array(label_map: Tensor) -> np.ndarray:
    """What `Predictor.label_maps` yields as an array: uint8, or uint16 where that is too small."""
    array = label_map.cpu().numpy()
    return array if array.dtype == np.uint8 else array.astype(np.uint16)


def best_classes(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """The class of the highest score at each pixel, of equal ones the first: `upsample_logits(...).argmax(1)`.

    Large maps are made class by class, so that K of them need never be there at once: the result is the same to the
    bit, and comes sooner where K maps exceed the processor's cache.

    Args:
        logits: `(K, h, w)`, finite.
        size: (H, W) of the label map.
        align_corners: as in `upsample_logits`.

    Returns:
        `(H, W)` class ids, uint8 or int32.
    """
    id_type = _id_type(len(logits))
    if len(logits) * size[0] * size[1] <= _AT_ONCE:
        # of equal scores both take the first; max is three times as fast as argmax on a CPU
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


def _rescale(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    size = [max(1, round(side * scale)) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)
