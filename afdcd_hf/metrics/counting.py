"""What scores that add up counts over images have in common: class names, merging, summing over processes, checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Self = TypeVar("Self", bound="StreamingCounts")


class StreamingCounts:
    """Int64 counts whose size does not depend on the number of images.

    Args:
        num_labels: Number of classes K.
        ignore_index: Reference value that is not counted.
        id2label: Class names by index, as integers or, from JSON, strings.
        device: Where the counts live; by default where the first predictions are.
        shape: Of the counts.

    Attributes:
        class_names: K names; a class without one has its index as name, and names that occur twice get it appended.

    Raises:
        ValueError: If `num_labels` is not positive or `id2label` names a class outside 0..K-1.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int,
        id2label: Mapping[Any, str] | None,
        device: torch.device | str | None,
        shape: tuple[int, ...],
    ) -> None:
        if num_labels < 1:
            raise ValueError(f"num_labels={num_labels}: at least one class is needed.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.class_names = _class_names(num_labels, id2label or {})
        self._device = torch.device(device) if device is not None else None
        self._shape = shape
        self.reset()

    def reset(self) -> None:
        """Forgets everything counted so far."""
        self._counts = torch.zeros(self._shape, dtype=torch.int64, device=self._device)

    def merge(self: Self, other: Self) -> Self:
        """Adds what another metric, of as many classes, counted, as if its updates had been made here."""
        if other.num_labels != self.num_labels:
            raise ValueError(f"A metric of {other.num_labels} classes can't be merged into one of {self.num_labels}.")
        self._counts = self._counts + other._counts.to(self._counts.device)
        return self

    def reduce(self: Self, reducer: Callable[[Tensor], Tensor]) -> Self:
        """Replaces the counts by their sum over processes; call it on every rank, once, before `compute`.

        Args:
            reducer: Sums a tensor over processes, such as `lambda counts: accelerator.reduce(counts, "sum")`.

        Raises:
            ValueError: If the reducer returns another shape, such as when it gathers instead of summing.
        """
        total = reducer(self._counts.clone())
        if total.shape != self._counts.shape:
            raise ValueError(
                f"The reducer made {tuple(total.shape)} of the {tuple(self._counts.shape)} counts; it must sum them "
                "over processes, not gather them."
            )
        self._counts = total.to(self._counts)
        return self

    def _add(self, counts: Tensor) -> None:
        # Out of place: counts made under torch.inference_mode() must not be written to outside of it.
        self._counts = self._counts.to(counts.device) + counts

    def _settle(self, predictions: Tensor | np.ndarray) -> torch.device:
        """The metric's device, decided by the first predictions where nobody chose it."""
        if self._device is None:
            self._device = predictions.device if isinstance(predictions, Tensor) else torch.device("cpu")
        return self._device

    def _by_class(self, values: np.ndarray) -> dict[str, Any]:
        return dict(zip(self.class_names, values.tolist(), strict=True))


def check_maps(predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
    """Raises if two label maps differ in shape or hold anything but integers."""
    if tuple(predictions.shape) != tuple(references.shape):
        raise ValueError(
            f"predictions have shape {tuple(predictions.shape)} and references {tuple(references.shape)}: they "
            "must be equal. Resize the logits to the label's size before the argmax."
        )
    for name, values in (("predictions", predictions), ("references", references)):
        kind = str(values.dtype).removeprefix("torch.")
        if not kind.startswith(("int", "uint")):
            raise ValueError(f"{name} have dtype {kind}; integer class ids are expected (the argmax of logits).")


def check_range(predicted: Tensor, truth: Tensor, num_labels: int, ignored: str, times: Tensor | None = None) -> None:
    """Raises over values outside 0..K-1 in what is to be counted: references first.

    Args:
        predicted: Class ids of the counted pixels, int64.
        truth: Their references.
        num_labels: Number of classes K.
        ignored: How references to leave out are to be marked.
        times: How often each pair occurs; once where None.
    """
    for name, ids in (("references", truth), ("predictions", predicted)):
        outside = (ids < 0) | (ids >= num_labels)
        if outside.any():
            number = int(outside.sum() if times is None else times[outside].sum())
            values = torch.unique(ids[outside]).tolist()
            some = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            raise ValueError(
                f"{number} {name} outside 0..{num_labels - 1}: values {some}. References to leave out must be "
                f"{ignored}."
            )


def bounded_ids(values: Tensor | np.ndarray, low: int, high: int) -> Tensor:
    """Class ids as a new int32 tensor, where all values below `low` or above `high` become these."""
    if isinstance(values, Tensor):
        narrow = values.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
        values = values.to(torch.int32 if narrow else torch.int64)
    else:
        # A copy: torch warns about read-only arrays (those of PIL) and refuses negative strides (flipped ones).
        narrow = values.dtype.itemsize < 4 or values.dtype == np.int32
        values = torch.from_numpy(np.array(values, dtype=np.int32 if narrow else np.int64))
    return values.clamp(low, high).to(torch.int32)


def as_int64(values: Tensor | np.ndarray) -> Tensor:
    """Integers of any type as they are; for messages, since it takes eight bytes a pixel."""
    return values.to(torch.int64) if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.int64))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole` in float64, NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def mean_of_defined(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _class_names(num_labels: int, id2label: Mapping[Any, str]) -> list[str]:
    names = {int(index): name for index, name in id2label.items()}
    outside = sorted(index for index in names if not 0 <= index < num_labels)
    if outside:
        raise ValueError(f"id2label names classes {outside[:5]}; num_labels={num_labels} allows 0..{num_labels - 1}.")
    ordered = [names.get(index, str(index)) for index in range(num_labels)]
    times = Counter(ordered)
    return [name if times[name] == 1 else f"{name} ({index})" for index, name in enumerate(ordered)]
