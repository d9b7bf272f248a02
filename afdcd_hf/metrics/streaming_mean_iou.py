"""`evaluate`'s `mean_iou` in constant memory: this class, or `evaluate.load(streaming_mean_iou_path())`.

`evaluate` copies this file elsewhere and reads its imports line by line: they must be absolute, one module per line.
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
    image, whose sizes may differ; -100 in the references is padding. Only counts of pairs of raw values are kept, so
    that all options may be given as late as `compute`. Unlike in `mean_iou`, a counted value outside 0..K-1
    is an error instead of a pixel missing from some of the sums, `label_map` maps each value once, and there is only
    one process: gather maps before adding them, or use `StreamingMeanIoU.reduce`.

    Args:
        num_labels: Number of classes K; must be given here or to `compute`.
        ignore_index: True value (after `label_map` and `reduce_labels`) that is not counted; 255 by default.
        nan_to_num: Number that replaces NaN results; the means leave undefined classes out regardless.
        label_map: True value → class; unlisted values stay.
        reduce_labels: Then decrease true values by one, 0 becoming 255.
        absent_as_zero: Count a class that is in neither truth nor prediction as IoU 0 instead of leaving it out.
        config_name: As in `evaluate`, like all options that are not listed here.

    Example:
        >>> metric = StreamingMeanIoUMetric(num_labels=2)
        >>> metric.add_batch(predictions=np.array([[[0, 1]]]), references=np.array([[[0, 1]]]))
        >>> metric.add_batch(predictions=np.array([[[0, 0]]]), references=np.array([[[0, 1]]]))
        >>> metric.compute()["per_category_iou"].round(2).tolist()
        [0.67, 0.5]
    """

    def __init__(self, config_name: str | None = None, **options: Any) -> None:
        theirs = inspect.signature(evaluate.Metric.__init__).parameters
        super().__init__(config_name, **{name: value for name, value in options.items() if name in theirs})
        if self.num_process > 1:
            raise ValueError(f"num_process={self.num_process}: gather the maps, or use StreamingMeanIoU.reduce.")
        self._options = {name: value for name, value in options.items() if name not in theirs}
        self._counts: Counter[tuple[int, int]] = Counter()  # of (true value, predicted value)

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Count one map."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Any, references: Any) -> None:
        """Count a batch; ValueError, and nothing counted, if numbers or shapes differ, or values are not integers."""
        self._counts = self._counts_with(predictions, references)

    def compute(self, *, predictions: Any = None, references: Any = None, **options: Any) -> dict[str, Any]:
        """Compute the scores of the maps given here and those added before, which are then forgotten.

        `options` are those of the class, and override those given to it. ValueError if `num_labels` is unknown or a
        counted value is outside 0..K-1; of the maps, those that were added before are then kept.

        Returns:
            `mean_iou`, `mean_accuracy` and `overall_accuracy`, floats in 0..1, and `per_category_iou` and
            `per_category_accuracy`, `(K,)` float64, NaN where undefined.
        """
        counts = self._counts
        if predictions is not None or references is not None:
            counts = self._counts_with(predictions, references)
        given = {name: value for name, value in options.items() if value is not None}
        scores = _scores(counts, **{**self._options, **given})
        self._counts.clear()
        return scores

    def _counts_with(self, predictions: Any, references: Any) -> Counter[tuple[int, int]]:
        counts = self._counts.copy()
        batch = predictions if isinstance(predictions, (list, tuple)) else [predictions]
        truths = references if batch is predictions else [references]
        for given in zip(batch, truths, strict=True):
            maps = [np.asarray(one.detach().cpu() if isinstance(one, torch.Tensor) else one) for one in given]
            check_maps(*maps)
            predicted, truth, times = distinct_pairs(*(torch.from_numpy(ids.astype(np.int64)) for ids in maps))
            for pair in zip(truth.tolist(), predicted.tolist(), times.tolist(), strict=True):
                counts[pair[:2]] += pair[2]
        return counts

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description=str(StreamingMeanIoUMetric.__doc__),
            features=datasets.Features({"predictions": label_map, "references": label_map}),
        )


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
    metric._count(*metric._checked(*map(torch.from_numpy, (predicted.copy(), truth))), times)
    scores = metric.compute()
    results = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
    for name in ("per_category_iou", "per_category_accuracy"):
        results[name] = np.array(list(scores[name].values()))
    if nan_to_num is None:
        return results
    return {name: np.nan_to_num(value, nan=nan_to_num) for name, value in results.items()}
