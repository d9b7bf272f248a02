"""Mean intersection over union, accumulated as one confusion matrix."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

PADDING_LABEL = -100  # what the Trainer pads references with when it gathers maps of different sizes


class StreamingMeanIoU:
    """Segmentation scores whose only state, for any number of images, is an int64 confusion matrix.

    `compute` returns the keys of `evaluate`'s `mean_iou`, and some more. With TP, FP and FN of a class over *all*
    pixels seen, its IoU is TP / (TP + FP + FN) and its accuracy TP / (TP + FN).

    Args:
        num_labels: Number of classes K.
        ignore_index: Reference value that is not counted; -100 (padding) never is.
        id2label: Class names by index (integers or, from JSON, strings), used as keys of the result.
        absent_as_zero: IoU of a class that is neither in the truth nor predicted: `False` (default) makes it NaN and
            leaves it out of the mean; `True` counts it as 0, as the released code does.
        device: Device of the matrix; by default that of the first predictions.

    Attributes:
        class_names: K names; a class without one has its index as name, and duplicate names get theirs appended.

    Raises:
        ValueError: If `num_labels` is not positive or `id2label` names a class outside 0..K-1.

    Example:
        >>> metric = StreamingMeanIoU(2, id2label={0: "road", 1: "car"})
        >>> metric.update(np.array([[0, 1]]), np.array([[0, 1]]))
        >>> metric.update(np.array([[0, 1]]), np.array([[0, 0]]))
        >>> metric.compute()["per_category_iou"]
        {'road': 0.6666666666666666, 'car': 0.5}
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = 255,
        *,
        id2label: Mapping[int, str] | Mapping[str, str] | None = None,
        absent_as_zero: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels={num_labels}: at least one class is needed.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.absent_as_zero = absent_as_zero
        self.class_names = _class_names(num_labels, id2label or {})
        self._device = torch.device(device) if device is not None else None
        self.reset()

    @property
    def confusion_matrix(self) -> Tensor:
        """A copy of the counts: `(K, K)` int64, entry (t, p) = pixels of class t predicted as p."""
        return self._counts[:-1, :-1].clone()

    def reset(self) -> None:
        """Forget everything counted so far."""
        # The last row and column are for pixels in no class.
        self._counts = torch.zeros(2 * [self.num_labels + 1], dtype=torch.int64, device=self._device)

    def update(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
        """Count the pixels of one or more label maps.

        Args:
            predictions: Class ids, any shape and integer dtype, 0..K-1 wherever the reference is not ignored.
            references: True class ids of the same shape, 0..K-1, `ignore_index` or -100.

        Raises:
            ValueError: If the shapes differ, a dtype is not integer, or a counted value is outside 0..K-1; nothing is
                counted then.
        """
        predicted, truth, times = distinct_pairs(*self._ids(predictions, references))
        self._count(*self._checked(predicted, truth), times)

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Update in the calling style of `evaluate`; also takes two equally long lists of maps of any sizes."""
        if not isinstance(predictions, (list, tuple)):
            return self.update(predictions, references)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references.")
        counted = copy.copy(self)  # so that an error in one map leaves all of them uncounted
        for pair in zip(predictions, references, strict=True):
            counted.update(*(ids if isinstance(ids, Tensor) else np.asarray(ids) for ids in pair))
        self._counts = counted._counts

    def merge(self, other: Self) -> Self:
        """Add the counts of another metric with the same number of classes."""
        if other.num_labels != self.num_labels:
            raise ValueError(f"A metric of {other.num_labels} classes can't be merged into one of {self.num_labels}.")
        self._counts = self._counts + other._counts.to(self._counts.device)
        return self

    def reduce(self, reducer: Callable[[Tensor], Tensor]) -> Self:
        """Replace the counts by their sum over processes; call it once on every rank, before `compute`.

        `reducer` must sum a tensor over processes, like `lambda counts: accelerator.reduce(counts, "sum")`; a result of
        another shape is a ValueError.
        """
        total = reducer(self._counts.clone())
        if total.shape != self._counts.shape:
            raise ValueError(f"The reducer returned {tuple(total.shape)}: it must sum over processes, not gather.")
        self._counts = total.to(self._counts)
        return self

    def compute(self) -> dict[str, Any]:
        """Compute the scores of everything counted so far; the counts stay.

        Returns:
            `mean_iou`, `mean_accuracy` (over the classes in the truth), `overall_accuracy` and
            `frequency_weighted_iou` (each class's IoU times its share of the true pixels, added up), floats in 0..1,
            NaN when no pixel was counted; `per_category_iou` and `per_category_accuracy`, by class name, NaN where
            undefined; `absent_classes`, names of those in neither truth nor prediction; and `num_pixels` counted.
        """
        matrix = self._counts.cpu().numpy()
        hits, truth, predicted = (counts[:-1] for counts in (matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)))
        union, num_pixels = truth + predicted - hits, int(truth.sum())
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: undefined
            iou, accuracy = hits / union, hits / truth
        if self.absent_as_zero and num_pixels:
            iou[union == 0] = 0.0
        return {
            "mean_iou": _mean_of_defined(iou),
            "mean_accuracy": _mean_of_defined(accuracy),
            "overall_accuracy": float(hits.sum() / num_pixels) if num_pixels else float("nan"),
            # A class without true pixels has weight 0, whatever its IoU
            "frequency_weighted_iou": float(np.nansum(truth / num_pixels * iou)) if num_pixels else float("nan"),
            "per_category_iou": dict(zip(self.class_names, iou.tolist(), strict=True)),
            "per_category_accuracy": dict(zip(self.class_names, accuracy.tolist(), strict=True)),
            "absent_classes": [name for name, pixels in zip(self.class_names, union, strict=True) if pixels == 0],
            "num_pixels": num_pixels,
        }

    def _ids(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """Return both maps as integers on the metric's device, by default that of the first predictions."""
        check_maps(predictions, references)
        if self._device is None:
            self._device = predictions.device if isinstance(predictions, Tensor) else torch.device("cpu")
        maps = []
        for ids in (predictions, references):
            # A copy: torch warns about read-only arrays (those of PIL) and refuses negative strides (flipped ones).
            tensor = ids if isinstance(ids, Tensor) else torch.from_numpy(ids.copy())
            small = tensor.dtype.itemsize < 4 or tensor.dtype == torch.int32
            maps.append(tensor.to(self._device, torch.int32 if small else torch.int64))
        return maps[0], maps[1]

    def _checked(self, predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return both with 0..K-1 and, for ignored pixels, K; ValueError for other values."""
        ignored = (truth == self.ignore_index) | (truth == PADDING_LABEL)
        for name, ids in (("references", truth), ("predictions", predicted)):
            outside = ((ids < 0) | (ids >= self.num_labels)) & ~ignored
            if outside.any():
                values = torch.unique(ids[outside]).tolist()
                some = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
                raise ValueError(
                    f"{name} outside 0..{self.num_labels - 1}: values {some}. References to leave out must be "
                    f"{self.ignore_index} (ignore_index) or {PADDING_LABEL}."
                )
        return predicted.masked_fill(ignored, self.num_labels), truth.masked_fill(ignored, self.num_labels)

    def _count(self, predicted: Tensor, truth: Tensor, times: Tensor | None = None) -> None:
        """Add pairs of ids 0..K, each counted `times` times."""
        side = self.num_labels + 1
        counts = torch.bincount((truth * side + predicted).flatten(), times, minlength=side * side).view(side, side)
        # Out of place: counts made under torch.inference_mode() must not be written to outside of it.
        self._counts = self._counts.to(counts.device) + counts.long()


def distinct_pairs(predicted: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the distinct pairs of values in two maps of integers, `(N,)` each, and how often each occurs.

    If values lie so far apart that their histogram would be large, returns all pairs as they are, once each.
    """
    predicted, truth = predicted.flatten(), truth.flatten()
    once = predicted, truth, torch.ones_like(truth)
    if not len(truth):
        return once
    (low, high), (lowest, highest) = ([int(end) for end in ids.aminmax()] for ids in (predicted, truth))
    span = high - low + 1
    bins = span * (highest - lowest + 1)
    if bins > 1 << 20:
        return once
    # int32, in place: half the time of the alternatives
    dtype = torch.int32 if max(map(abs, (low, high, lowest, highest))) < 1 << 30 else torch.int64
    codes = truth.to(dtype, copy=True).sub_(lowest).mul_(span).add_(predicted.to(dtype)).sub_(low)
    counts = torch.bincount(codes, minlength=bins)
    codes = counts.nonzero().squeeze(1)
    return codes % span + low, codes // span + lowest, counts[codes]


def streaming_mean_iou_path() -> str:
    """Return the path from which `evaluate.load` loads our `mean_iou`, which needs constant memory.

    Example:
        >>> import evaluate
        >>> metric = evaluate.load(streaming_mean_iou_path(), num_labels=2)
        >>> metric.add_batch(predictions=[[[0, 1]]], references=[[[0, 0]]])
        >>> metric.compute()["mean_iou"]
        0.25
    """
    return str(Path(__file__).with_name("streaming_mean_iou.py"))


def check_maps(predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
    """Raise ValueError if two label maps differ in shape or hold anything but integers."""
    if tuple(predictions.shape) != tuple(references.shape):
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)}: they "
            "must be equal. Resize the logits to the label's size before the argmax."
        )
    for name, values in (("predictions", predictions), ("references", references)):
        kind = str(values.dtype).removeprefix("torch.")
        if not kind.startswith(("int", "uint")):
            raise ValueError(f"{name} have dtype {kind}; integer class ids are expected (the argmax of logits).")


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _class_names(num_labels: int, id2label: Mapping[Any, str]) -> list[str]:
    names = {int(index): name for index, name in id2label.items()}
    if outside := sorted(index for index in names if not 0 <= index < num_labels):
        raise ValueError(f"id2label names classes {outside[:5]}; num_labels={num_labels} allows 0..{num_labels - 1}.")
    ordered = [names.get(index, str(index)) for index in range(num_labels)]
    times = Counter(ordered)
    return [name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]
