"""Mean intersection over union, accumulated as one confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .counting import StreamingCounts, as_int64, bounded_ids, check_maps, check_range, mean_of_defined, ratio

PADDING_LABEL = -100  # what the Trainer pads references with when it gathers maps of different sizes
_CHUNK = 1 << 18  # pixels that are counted at a time on the CPU, so that what is made of them stays in its cache


class StreamingMeanIoU(StreamingCounts):
    """Segmentation scores whose memory does not depend on the number of images.

    The only state is a `(K, K)` int64 confusion matrix, rows = truth, columns = prediction. The keys of `compute` are
    those of `evaluate`'s `mean_iou`, and some more. With TP, FP and FN of a class over *all* pixels seen, its IoU is
    TP / (TP + FP + FN) and its accuracy TP / (TP + FN).

    Args:
        num_labels: Number of classes K.
        ignore_index: Reference value that is not counted; -100 (padding) never is.
        id2label: Class names by index, used as keys of the result; see `StreamingCounts`.
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
        super().__init__(num_labels, ignore_index, id2label, device, (num_labels, num_labels))
        self.absent_as_zero = absent_as_zero

    @property
    def confusion_matrix(self) -> Tensor:
        """A copy of the counts: `(K, K)` int64, entry (t, p) = pixels of class t predicted as p."""
        return self._counts.clone()

    def update(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
        """Counts the pixels of one or more label maps; small integer types (uint8) are the fastest.

        Args:
            predictions: Class ids, any shape and integer dtype, 0..K-1 wherever the reference is not ignored.
            references: True class ids of the same shape, 0..K-1, `ignore_index` or -100.

        Raises:
            ValueError: If the shapes differ, a dtype is not integer, or a counted value is outside 0..K-1. Nothing is
                counted then.
        """
        check_maps(predictions, references)
        device = self._settle(predictions)
        flat = _flat(predictions, device), _flat(references, device)
        step = _CHUNK if device.type == "cpu" else max(1, len(flat[0]))
        starts = range(0, len(flat[0]), step) or [0]
        tables = (self._count(*(ids[start : start + step] for ids in flat)) for start in starts)
        counts, invalid = self._read(sum(tables, start=next(tables)))
        if invalid.item():  # the only value read back to the host, so valid input costs one synchronisation
            predicted, truth = (as_int64(ids).to(device) for ids in (predictions, references))
            counted = (truth != self.ignore_index) & (truth != PADDING_LABEL)
            marks = f"{self.ignore_index} (ignore_index) or {PADDING_LABEL}"
            check_range(predicted[counted], truth[counted], self.num_labels, marks)
        self._add(counts)

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """`update` in the calling style of `evaluate`; also takes two lists of maps, whose sizes may vary.

        Raises:
            ValueError: As `update`, and if the two lists differ in length.
        """
        if not isinstance(predictions, (list, tuple)):
            return self.update(predictions, references)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references.")
        for pair in zip(predictions, references, strict=True):
            self.update(*(ids if isinstance(ids, Tensor) else np.asarray(ids) for ids in pair))

    def compute(self) -> dict[str, Any]:
        """Scores of everything counted so far; the counts stay.

        Returns:
            `mean_iou`, `mean_accuracy` (over the classes in the truth), `overall_accuracy` and
            `frequency_weighted_iou` (each class's IoU times its share of the true pixels, added up), floats in 0..1,
            NaN when no pixel was counted; `per_category_iou` and `per_category_accuracy`, by class name, NaN where
            undefined; `absent_classes`, the names of those in neither truth nor prediction; `num_pixels`, the pixels
            counted.
        """
        matrix = self._counts.cpu().numpy()
        hits, truth, predicted = matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)
        union, num_pixels = truth + predicted - hits, int(matrix.sum())
        iou, accuracy = ratio(hits, union), ratio(hits, truth)
        if self.absent_as_zero and num_pixels:
            iou[union == 0] = 0.0
        return {
            "mean_iou": mean_of_defined(iou),
            "mean_accuracy": mean_of_defined(accuracy),
            "overall_accuracy": float(hits.sum() / num_pixels) if num_pixels else float("nan"),
            # A class without true pixels has the weight 0, whatever its IoU
            "frequency_weighted_iou": float(np.nansum(truth / num_pixels * iou)) if num_pixels else float("nan"),
            "per_category_iou": self._by_class(iou),
            "per_category_accuracy": self._by_class(accuracy),
            "absent_classes": [name for name, pixels in zip(self.class_names, union, strict=True) if pixels == 0],
            "num_pixels": num_pixels,
        }

    # Counting. Asking of every pixel whether it is ignored or out of range takes far longer than counting it. So all
    # pairs (reference, prediction) are counted in a table that has room for such values, and the table is asked. Its
    # rows are the references from -101 upwards, its columns the predictions -1..K; the outermost stand for all beyond.

    @property
    def _row_range(self) -> tuple[int, int]:
        return PADDING_LABEL - 1, max(self.num_labels, 255) + 1

    def _count(self, predicted: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> Tensor:
        """The table of some pixels."""
        (low, high), columns = self._row_range, self.num_labels + 2
        rows = bounded_ids(truth, low, high)
        if not low < self.ignore_index < high:
            rows[as_int64(truth) == self.ignore_index] = PADDING_LABEL
        cells = torch.add(bounded_ids(predicted, -1, self.num_labels), rows, alpha=columns)
        table = torch.bincount(cells.sub_(low * columns - 1), minlength=(high - low + 1) * columns)
        return table.view(-1, columns)

    def _read(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The confusion matrix in the table, and the number of pixels that are neither in it nor ignored."""
        low, high = self._row_range
        for value in {self.ignore_index, PADDING_LABEL}:
            if low < value < high:
                table[value - low] = 0
        counts = table[-low : self.num_labels - low, 1:-1].contiguous()
        return counts, table.sum() - counts.sum()


def _flat(values: Tensor | np.ndarray, device: torch.device) -> Tensor | np.ndarray:
    """One-dimensional and on the metric's device; arrays stay arrays on the CPU, where they are converted in parts."""
    if isinstance(values, np.ndarray) and device.type != "cpu":
        values = torch.from_numpy(np.array(values, dtype=np.uint8 if values.dtype == np.uint8 else np.int64))
    return values.to(device).reshape(-1) if isinstance(values, Tensor) else values.reshape(-1)
