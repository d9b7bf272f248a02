"""Mean intersection over union, accumulated as one confusion matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PADDING_LABEL = -100  # what the Trainer pads references with when it gathers maps of different sizes


class StreamingMeanIoU:
    """Segmentation scores whose memory does not depend on the number of images.

    The only state is a `(K, K)` int64 confusion matrix, rows = truth, columns = prediction. The keys of `compute` are
    those of `evaluate`'s `mean_iou`. With TP, FP and FN of a class over *all* pixels seen, its IoU is
    TP / (TP + FP + FN) and its accuracy TP / (TP + FN).

    Args:
        num_labels: Number of classes K.
        ignore_index: Reference value that is not counted; -100 (padding) never is.
        id2label: Class names by index, used as keys of the result; a class without a name is keyed by its index. Names
            that occur twice get their index appended.
        absent_as_zero: IoU of a class that is neither in the truth nor predicted: `False` (default) makes it NaN and
            leaves it out of the mean; `True` counts it as 0, as the released code's `score.py` does.
        device: Where the matrix lives; by default where the first predictions are.

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
        return self._matrix.clone()

    def reset(self) -> None:
        """Forgets everything counted so far."""
        self._matrix = torch.zeros(self.num_labels, self.num_labels, dtype=torch.int64, device=self._device)

    def update(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
        """Counts the pixels of one or more label maps.

        Args:
            predictions: Class ids, any shape and integer dtype, 0..K-1 wherever the reference is not ignored.
            references: True class ids of the same shape, 0..K-1, `ignore_index` or -100.

        Raises:
            ValueError: If the shapes differ, a dtype is not integer, or a counted value is outside 0..K-1. Nothing is
                counted then.
        """
        if tuple(predictions.shape) != tuple(references.shape):
            raise ValueError(
                f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)}: they "
                "must be equal. Resize the logits to the label's size before the argmax."
            )
        predicted, truth = _as_int64(predictions, "predictions"), _as_int64(references, "references")
        if self._device is None:
            self._device = predicted.device
        counts = self._count(predicted.to(self._device), truth.to(self._device))
        # Out of place: a matrix made under torch.inference_mode() must not be written to outside of it.
        self._matrix = self._matrix.to(self._device) + counts

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """`update` in the calling style of `evaluate`; also takes two lists of maps, whose sizes may vary.

        Args:
            predictions: One array or tensor, or a list with one map per image.
            references: The true ids, in the same form.

        Raises:
            ValueError: As `update`, and if the two lists differ in length.
        """
        if not isinstance(predictions, (list, tuple)):
            return self.update(predictions, references)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references.")
        for predicted, truth in zip(predictions, references, strict=True):
            self.update(_as_array(predicted), _as_array(truth))

    def merge(self, other: StreamingMeanIoU) -> StreamingMeanIoU:
        """Adds what another metric counted, as if its updates had been made here.

        Raises:
            ValueError: If the numbers of classes differ.
        """
        if other.num_labels != self.num_labels:
            raise ValueError(f"A metric of {other.num_labels} classes can't be merged into one of {self.num_labels}.")
        self._matrix = self._matrix + other._matrix.to(self._matrix.device)
        return self

    def reduce(self, reducer: Callable[[Tensor], Tensor]) -> StreamingMeanIoU:
        """Replaces the counts by their sum over processes; call it on every rank, once, before `compute`.

        Args:
            reducer: Sums a tensor over processes, such as `lambda counts: accelerator.reduce(counts, "sum")`.

        Raises:
            ValueError: If the reducer returns another shape, such as when it gathers instead of summing.
        """
        total = reducer(self._matrix.clone())
        if total.shape != self._matrix.shape:
            raise ValueError(
                f"The reducer made {tuple(total.shape)} of the {tuple(self._matrix.shape)} counts; it must sum them "
                "over processes, not gather them."
            )
        self._matrix = total.to(self._matrix)
        return self

    def compute(self) -> dict[str, Any]:
        """Scores of everything counted so far; the counts stay.

        Returns:
            `mean_iou`, `mean_accuracy` (over the classes in the truth) and `overall_accuracy`, floats in 0..1, NaN
            when no pixel was counted; `per_category_iou` and `per_category_accuracy`, by class name, NaN where
            undefined; `absent_classes`, the names of those in neither truth nor prediction; `num_pixels`, the pixels
            counted.
        """
        matrix = self._matrix.cpu().numpy()
        hits, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        union, num_pixels = truth + predicted - hits, int(matrix.sum())
        iou, accuracy = _ratio(hits, union), _ratio(hits, truth)
        if self.absent_as_zero and num_pixels:
            iou[union == 0] = 0.0
        return {
            "mean_iou": _mean_of_defined(iou),
            "mean_accuracy": _mean_of_defined(accuracy),
            "overall_accuracy": float(hits.sum() / num_pixels) if num_pixels else float("nan"),
            "per_category_iou": dict(zip(self.class_names, iou.tolist(), strict=True)),
            "per_category_accuracy": dict(zip(self.class_names, accuracy.tolist(), strict=True)),
            "absent_classes": [name for name, pixels in zip(self.class_names, union, strict=True) if pixels == 0],
            "num_pixels": num_pixels,
        }

    def _count(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Confusion matrix of two int64 tensors; two bins beyond it take the ignored and the invalid pixels."""
        cells = self.num_labels * self.num_labels
        counted = (truth != self.ignore_index) & (truth != PADDING_LABEL)
        valid = self._in_range(truth) & self._in_range(predicted)
        bins = torch.where(valid, truth * self.num_labels + predicted, cells + 1)
        bins = torch.where(counted, bins, cells)
        counts = torch.bincount(bins.flatten(), minlength=cells + 2)
        if counts[cells + 1].item():  # the only value read back to the host, so valid input costs one synchronisation
            self._raise_out_of_range(predicted[counted], truth[counted])
        return counts[:cells].view(self.num_labels, self.num_labels)

    def _in_range(self, ids: Tensor) -> Tensor:
        return (ids >= 0) & (ids < self.num_labels)

    def _raise_out_of_range(self, predicted: Tensor, truth: Tensor) -> None:
        for name, ids in (("references", truth), ("predictions", predicted)):
            wrong = ids[~self._in_range(ids)]
            if wrong.numel():
                raise ValueError(
                    f"{wrong.numel()} {name} outside 0..{self.num_labels - 1}: values {_first_values(wrong)}. "
                    f"References to leave out must be {self.ignore_index} (ignore_index) or {PADDING_LABEL}."
                )


def _class_names(num_labels: int, id2label: Mapping[Any, str]) -> list[str]:
    names = {int(index): name for index, name in id2label.items()}  # JSON turns the keys into strings
    outside = sorted(index for index in names if not 0 <= index < num_labels)
    if outside:
        raise ValueError(f"id2label names classes {outside[:5]}; num_labels={num_labels} allows 0..{num_labels - 1}.")
    ordered = [names.get(index, str(index)) for index in range(num_labels)]
    times = Counter(ordered)
    return [name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]


def _as_array(values: Tensor | np.ndarray | Sequence[Any]) -> Tensor | np.ndarray:
    return values if isinstance(values, Tensor) else np.asarray(values)


def _as_int64(values: Tensor | np.ndarray, name: str) -> Tensor:
    if isinstance(values, Tensor):
        integer = not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)
    else:
        integer = np.issubdtype(values.dtype, np.integer)
    if not integer:
        raise ValueError(f"{name} have dtype {values.dtype}; integer class ids are expected (the argmax of logits).")
    if isinstance(values, Tensor):
        return values.to(torch.int64)
    # A copy: torch warns about read-only arrays (those of PIL) and refuses negative strides (flipped ones).
    return torch.from_numpy(np.array(values, dtype=np.int64))


def _first_values(wrong: Tensor, limit: int = 5) -> str:
    values = torch.unique(wrong).tolist()
    return ", ".join(map(str, values[:limit])) + (", ..." if len(values) > limit else "")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean_of_defined(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")
