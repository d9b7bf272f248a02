"""`evaluate`'s `mean_iou` in constant memory: by class, or `evaluate.load(streaming_mean_iou_path())`.

`evaluate` copies this file elsewhere and reads its imports line by line: they must be absolute, one module a line.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from afdcd_hf.metrics.mean_iou import PADDING_LABEL, StreamingMeanIoU, check_maps, distinct_pairs


class StreamingMeanIoUMetric(evaluate.Metric):
    """Mean intersection over union of segmentation maps, with the calls, options and results of `mean_iou`.

    Predictions and references are label maps: one array or tensor of integers of any shape, or a list with one map per
    image, whose sizes may differ; -100 in the references is padding. What is kept of them, and handed over where
    `num_process` > 1, are counts of pairs of raw values: everything but the maps may be told as late as `compute`.
    Unlike in `mean_iou`, a counted value outside 0..K-1 is an error instead of a pixel missing from some of the sums,
    and `label_map` maps each value once.

    Args:
        config_name: As in `evaluate`, like all options that are not listed here.
        num_labels: Number of classes K; must be given here or to `compute`.
        ignore_index: True value (after `label_map` and `reduce_labels`) that is not counted; 255 by default.
        nan_to_num: Number to write in place of NaN results; the means leave undefined classes out regardless.
        label_map: True value → class; values not listed stay.
        reduce_labels: Then lower true values by one, 0 becoming 255.
        absent_as_zero: Count a class that is in neither truth nor prediction as IoU 0 instead of leaving it out.

    Raises:
        TypeError: If an option is neither ours nor one of `evaluate`.

    Example:
        >>> metric = StreamingMeanIoUMetric(num_labels=2)
        >>> metric.add_batch(predictions=np.array([[[0, 1]]]), references=np.array([[[0, 1]]]))
        >>> metric.add_batch(predictions=np.array([[[0, 0]]]), references=np.array([[[0, 1]]]))
        >>> metric.compute()["per_category_iou"].round(2).tolist()
        [0.67, 0.5]
    """

    def __init__(self, config_name: str | None = None, **options: Any) -> None:
        theirs = inspect.signature(evaluate.Metric.__init__).parameters
        self._options = {name: value for name, value in options.items() if name not in theirs}
        inspect.signature(_scores).bind_partial(None, **self._options)  # evaluate would drop unknown ones silently
        self._counts: Counter[tuple[int, int]] = Counter()  # of (true value, predicted value)
        super().__init__(config_name, **{name: value for name, value in options.items() if name in theirs})

    def add(
        self, *, prediction: Any = None, reference: Any = None, predictions: Any = None, references: Any = None
    ) -> None:
        """Count one map; like `evaluate`, it takes the names in the plural too."""
        prediction = predictions if prediction is None else prediction
        self._count(prediction, references if reference is None else reference)

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Count the maps of a batch; a ValueError tells if lengths or shapes differ or values are no integers."""
        if references is None or not isinstance(predictions, (list, tuple)):
            return self._count(predictions, references)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions but {len(references)} references.")
        for predicted, truth in zip(predictions, references, strict=True):
            self._count(predicted, truth)

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any] | None:
        """Scores of the maps given here and of those added before, which are then forgotten.

        `options` are those of the class, from `num_labels` on, in place of what was given when the metric was made.

        Returns:
            On process 0 `mean_iou`, `mean_accuracy` and `overall_accuracy`, floats in 0..1, and `per_category_iou` and
            `per_category_accuracy`, `(K,)` float64, NaN where undefined; None on the other processes.

        Raises:
            ValueError: If `num_labels` is unknown or a counted value outside 0..K-1; maps that were added are kept.
        """
        options = {**self._options, **{name: value for name, value in options.items() if value is not None}}
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        _scores(self._counts, **options)  # raises while the counts are still here
        self._hand_over()
        return super().compute(options=options)

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description=str(StreamingMeanIoUMetric.__doc__),
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )

    def _count(self, predicted: Any, truth: Any) -> None:
        if predicted is None or truth is None:
            raise ValueError("Both predictions and references are needed.")
        maps = _as_array(predicted), _as_array(truth)
        check_maps(*maps)
        pairs = distinct_pairs(*(torch.from_numpy(ids.astype(np.int64)) for ids in maps))
        for one, other, times in zip(*(each.tolist() for each in pairs), strict=True):
            self._counts[other, one] += times
        if self.num_process > 1 and self.writer is None:
            # Processes wait for each other at their first write: better now than when one has long finished.
            self._hand_over()

    def _hand_over(self) -> None:
        """Write the counts as one row of what `evaluate` collects over processes."""
        truth, predicted = zip(*self._counts, strict=True) if self._counts else ((), ())
        super().add_batch(predictions=[[predicted]], references=[[truth, tuple(self._counts.values())]])
        self._counts = Counter()

    def _compute(self, predictions: list, references: list, options: dict[str, Any]) -> dict[str, Any]:
        total: Counter[tuple[int, int]] = Counter()
        for (predicted,), (truth, counts) in zip(predictions, references, strict=True):
            total += Counter(dict(zip(zip(truth, predicted, strict=True), counts, strict=True)))
        return _scores(total, **options)


def _as_array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _scores(
    counts: Counter[tuple[int, int]],
    *,
    num_labels: int | None = None,
    ignore_index: int = 255,
    nan_to_num: float | None = None,
    label_map: Mapping[int, int] | None = None,
    reduce_labels: bool = False,
    absent_as_zero: bool = False,
) -> dict[str, Any]:
    if num_labels is None:
        raise ValueError("The number of classes is unknown; pass num_labels to evaluate.load or to compute.")
    raw, predicted = np.array(list(counts), np.int64).reshape(-1, 2).T
    truth = raw.copy()
    for old, new in (label_map or {}).items():
        truth[raw == int(old)] = int(new)
    if reduce_labels:
        truth = np.where((truth == 0) | (truth == 255), 255, truth - 1)
    truth[raw == PADDING_LABEL] = PADDING_LABEL
    metric = StreamingMeanIoU(num_labels, ignore_index, absent_as_zero=absent_as_zero)
    times = torch.tensor(list(counts.values()), dtype=torch.float64)
    metric._add(metric._pairs(*metric._checked(*map(torch.from_numpy, (predicted.copy(), truth))), times))
    scores = metric.compute()
    results = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    for name in ("per_category_iou", "per_category_accuracy"):
        results[name] = np.array(list(scores[name].values()))
    if nan_to_num is None:
        return results
    return {name: np.nan_to_num(value, nan=nan_to_num) for name, value in results.items()}
