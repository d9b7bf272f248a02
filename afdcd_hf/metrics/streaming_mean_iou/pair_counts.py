"""How often each pair of a true and a predicted value occurred: all that segmentation scores need to know."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..mean_iou import PADDING_LABEL

_DENSE_WIDTH = 1024  # widest range of values counted in one dense table, of 8 MB
_SHIFT = 2**32  # a pair of 32-bit values as one 64-bit number


class PairCounts:
    """Counts of (true value, predicted value), for values whose meaning is only told afterwards.

    Memory grows with the number of different pairs seen, never with the number of pixels.
    """

    def __init__(self) -> None:
        self._codes = np.zeros(0, np.int64)  # sorted, each once
        self._counts = np.zeros(0, np.int64)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count the pixels of two arrays.

        Args:
            truth: Any shape and integer dtype; values of the int32 range.
            predicted: Of the same shape.

        Raises:
            ValueError: If the shapes differ, a dtype is not integer or a value beyond int32. Nothing is counted then.
        """
        if truth.shape != predicted.shape:
            raise ValueError(
                f"predictions have shape {predicted.shape} and references {truth.shape}; they must be equal."
            )
        for name, values in (("references", truth), ("predictions", predicted)):
            if not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name} have dtype {values.dtype}; integer class ids are expected.")
        if truth.size:
            self._add(*_count_pairs(truth.ravel(), predicted.ravel()))

    def add(self, truth: np.ndarray, predicted: np.ndarray, counts: np.ndarray) -> None:
        """Add pairs that were counted elsewhere: the three arrays of another `pairs()`."""
        self._add(_encode(np.asarray(truth, np.int64), np.asarray(predicted, np.int64)), np.asarray(counts, np.int64))

    def pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True values, predicted values and counts of the pairs seen: `(n,)` int64 each."""
        truth, predicted = np.divmod(self._codes + _SHIFT // 2, _SHIFT)
        return truth, predicted - _SHIFT // 2, self._counts.copy()

    def confusion_matrix(
        self,
        num_labels: int,
        ignore_index: int,
        label_map: Mapping[int, int] | None = None,
        reduce_labels: bool = False,
    ) -> np.ndarray:
        """The `(K, K)` int64 confusion matrix, rows = truth, columns = prediction.

        Args:
            num_labels: Number of classes K.
            ignore_index: True value, after the two steps below, that is left out; -100 (padding) always is.
            label_map: True value → class; values not listed stay. Each value is mapped once.
            reduce_labels: Then lower true values by one, 0 becoming 255; 255 stays.

        Raises:
            ValueError: If a value that is not left out is outside 0..K-1.
        """
        raw, predicted, counts = self.pairs()
        truth = raw.copy()
        for old, new in (label_map or {}).items():
            truth[raw == int(old)] = int(new)
        if reduce_labels:
            truth = np.where((truth == 0) | (truth == 255), 255, truth - 1)
        counted = (truth != ignore_index) & (raw != PADDING_LABEL)
        truth, predicted, counts = truth[counted], predicted[counted], counts[counted]
        _check_range("references", truth, counts, num_labels, ignore_index)
        _check_range("predictions", predicted, counts, num_labels, ignore_index)
        matrix = np.zeros((num_labels, num_labels), np.int64)
        np.add.at(matrix, (truth, predicted), counts)
        return matrix

    def _add(self, codes: np.ndarray, counts: np.ndarray) -> None:
        merged, position = np.unique(np.concatenate([self._codes, codes]), return_inverse=True)
        totals = np.zeros(len(merged), np.int64)
        np.add.at(totals, position, np.concatenate([self._counts, counts]))
        self._codes, self._counts = merged, totals


def _count_pairs(truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lowest = min(int(truth.min()), int(predicted.min()))
    highest = max(int(truth.max()), int(predicted.max()))
    width = highest - lowest + 1
    if lowest < -(2**31) or highest >= 2**31:
        raise ValueError(f"Class ids of the int32 range are expected, but there are values {lowest}..{highest}.")
    if width > _DENSE_WIDTH:
        return np.unique(_encode(truth.astype(np.int64), predicted.astype(np.int64)), return_counts=True)
    # Up to a width of 256, 16 bits hold every cell. They wrap around on the way there, which cancels out.
    kind = np.uint16 if width <= 256 else np.int64
    shift = np.array(lowest).astype(kind)
    cells = truth.astype(kind) - shift
    cells *= kind(width)
    cells += predicted.astype(kind) - shift
    table = np.bincount(cells)
    seen = np.flatnonzero(table)
    return _encode(seen // width + lowest, seen % width + lowest), table[seen]


def _encode(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    return truth * _SHIFT + predicted


def _check_range(name: str, values: np.ndarray, counts: np.ndarray, num_labels: int, ignore_index: int) -> None:
    outside = (values < 0) | (values >= num_labels)
    if outside.any():
        first = ", ".join(map(str, np.unique(values[outside])[:5].tolist()))
        raise ValueError(
            f"{counts[outside].sum()} {name} outside 0..{num_labels - 1}, with values such as {first}. References to "
            f"leave out must be {ignore_index} (ignore_index) or {PADDING_LABEL}, after label_map and reduce_labels."
        )
