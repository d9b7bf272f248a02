"""The metric as `evaluate` knows metrics: by path and by class, with the options and results of its `mean_iou`."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import evaluate
import numpy as np
import pytest
import torch

from afdcd_hf import StreamingMeanIoU
from afdcd_hf.metrics.streaming_mean_iou import streaming_mean_iou_path
from afdcd_hf.metrics.streaming_mean_iou.streaming_mean_iou import StreamingMeanIoUMetric, _pairs

KEYS = {"mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"}


def documented_mean_iou(
    predictions, references, num_labels, ignore_index, nan_to_num=None, label_map=None, reduce_labels=False
):
    """`mean_iou` as its card describes it: areas from one histogram per image and class, summed, then divided once."""
    areas = np.zeros((3, num_labels))
    for predicted, truth in zip(predictions, references, strict=True):
        predicted, truth = np.array(predicted), np.array(truth)
        if label_map is not None:
            truth = np.vectorize(lambda value: label_map.get(value, value))(truth)
        if reduce_labels:
            truth = np.where(truth == 0, 255, truth) - 1
            truth[truth == 254] = 255
        predicted, truth = predicted[truth != ignore_index], truth[truth != ignore_index]
        for row, values in enumerate((predicted[predicted == truth], predicted, truth)):
            areas[row] += np.histogram(values, bins=np.arange(num_labels + 1) - 0.5)[0]
    both, predicted, truth = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = both / (predicted + truth - both), both / truth
    scores = {"mean_iou": np.nanmean(iou), "mean_accuracy": np.nanmean(accuracy)}
    scores |= {"overall_accuracy": both.sum() / truth.sum()}
    scores |= {"per_category_iou": iou, "per_category_accuracy": accuracy}
    return (
        scores if nan_to_num is None else {name: np.nan_to_num(value, nan=nan_to_num) for name, value in scores.items()}
    )


def some_maps(seed=0, num_labels=5, count=4, ignored=255, shape=None):
    """Maps of odd, different sizes; class `num_labels - 2` occurs nowhere, the last one is only predicted."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(count):
        size = shape or tuple(rng.integers(3, 20, 2))
        truth = rng.integers(0, num_labels - 2, size)
        predicted = np.where(rng.random(size) < 0.6, truth, rng.integers(0, num_labels, size))
        predicted[predicted == num_labels - 2] = 0
        truth[rng.random(size) < 0.2] = ignored
        references.append(truth.astype(np.uint8))
        predictions.append(predicted.astype(np.uint8))
    return predictions, references


def assert_same(scores, expected):
    assert scores.keys() == expected.keys() == KEYS
    for name in KEYS:
        np.testing.assert_allclose(scores[name], expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.fixture
def metric(tmp_path):
    """A fresh metric as users get it: loaded by path, without options."""
    return evaluate.load(streaming_mean_iou_path(), cache_dir=str(tmp_path))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        {"ignore_index": 255},
        {"ignore_index": 0},
        {"ignore_index": 255, "nan_to_num": -1.0},
        {"ignore_index": 255, "label_map": {0: 1, 2: 255}},
        {"ignore_index": 1, "label_map": {0: 2, 2: 0}},
    ],
    ids=str,
)
def test_scores_equal_the_documented_mean_iou(metric, seed, options):
    ignored = options["ignore_index"]
    predictions, references = some_maps(seed, ignored=ignored)
    scores = metric.compute(predictions=predictions, references=references, num_labels=5, **options)
    assert_same(scores, documented_mean_iou(predictions, references, 5, **options))
    assert isinstance(scores["per_category_iou"], np.ndarray)


@pytest.mark.parametrize("label_map", [None, {7: 0, 1: 3}])
def test_reduced_labels_make_zero_255_and_lower_the_rest(metric, label_map):
    predictions, references = some_maps(num_labels=5)
    references = [np.where(truth == 255, 255, truth + 1).astype(np.uint8) for truth in references]
    references[0][0, :] = 0
    if label_map:
        references[1][0, :] = 7
    options = {"ignore_index": 255, "reduce_labels": True, "label_map": label_map}
    metric.add_batch(predictions=predictions, references=references)
    scores = metric.compute(num_labels=5, **options)
    assert_same(scores, documented_mean_iou(predictions, references, 5, **options))


def test_a_hand_calculation():
    metric = StreamingMeanIoUMetric(num_labels=4, keep_in_memory=True)
    truth, predicted = [[0, 0, 0, 1], [1, 2, 255, -100]], [[0, 0, 1, 1], [2, 2, 0, 77]]
    scores = metric.compute(predictions=[predicted], references=[truth])
    assert scores["per_category_iou"][:3] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert scores["per_category_accuracy"][:3] == pytest.approx([2 / 3, 1 / 2, 1])
    assert math.isnan(scores["per_category_iou"][3]) and math.isnan(scores["per_category_accuracy"][3])
    assert scores["mean_iou"] == pytest.approx(0.5) and scores["overall_accuracy"] == pytest.approx(4 / 6)


def test_options_at_loading_hold_until_compute_overrides_them(tmp_path):
    predictions, references = some_maps(ignored=1)
    options = {"num_labels": 5, "ignore_index": 1, "label_map": {0: 2}}
    metric = evaluate.load(streaming_mean_iou_path(), cache_dir=str(tmp_path), **options)
    batch = {"predictions": predictions, "references": references}
    assert_same(metric.compute(**batch), documented_mean_iou(**batch, **options))
    assert_same(metric.compute(**batch, label_map={}), documented_mean_iou(**batch, num_labels=5, ignore_index=1))
    assert_same(metric.compute(**batch), documented_mean_iou(**batch, **options))


def test_every_way_of_adding_maps_counts_the_same(metric):
    predictions, references = some_maps(shape=(6, 7))
    expected = documented_mean_iou(predictions, references, 5, 255)
    stacked = {"predictions": np.stack(predictions), "references": np.stack(references)}
    as_lists = {"predictions": stacked["predictions"].tolist(), "references": stacked["references"].tolist()}
    as_tensors = {name: torch.from_numpy(maps).long() for name, maps in stacked.items()}
    for batch in (stacked, as_lists, as_tensors, {"predictions": predictions, "references": references}):
        metric.add_batch(**batch)
        assert_same(metric.compute(num_labels=5), expected)
        assert_same(metric.compute(**batch, num_labels=5), expected)
    for singular, predicted, truth in zip([True, True, False, False], predictions, references, strict=True):
        metric.add(
            **{"prediction" if singular else "predictions": predicted, "reference" if singular else "references": truth}
        )
    assert_same(metric.compute(num_labels=5), expected)


def test_computing_forgets_what_was_added(metric):
    first, second = some_maps(0), some_maps(1)
    for predictions, references in (first, second):
        metric.add_batch(predictions=predictions, references=references)
        assert_same(metric.compute(num_labels=5), documented_mean_iou(predictions, references, 5, 255))
    assert math.isnan(metric.compute(num_labels=5)["mean_iou"])


def test_it_agrees_with_the_metric_that_the_trainer_uses(metric):
    predictions, references = some_maps()
    streaming = StreamingMeanIoU(5)
    streaming.add_batch(predictions=predictions, references=references)
    expected = streaming.compute()
    scores = metric.compute(predictions=predictions, references=references, num_labels=5)
    assert scores["mean_iou"] == expected["mean_iou"]
    np.testing.assert_array_equal(scores["per_category_iou"], list(expected["per_category_iou"].values()))


def test_two_metrics_that_share_a_folder_hand_over_their_counts(tmp_path):
    predictions, references = some_maps(count=5)

    def share_of(rank):
        metric = StreamingMeanIoUMetric(
            num_labels=5, num_process=2, process_id=rank, cache_dir=str(tmp_path), experiment_id="two", timeout=30
        )
        if rank == 1:  # process 0 got no images
            metric.add_batch(predictions=predictions[:2], references=references[:2])
            metric.add_batch(predictions=predictions[2:], references=references[2:])
        return metric.compute()

    with ThreadPoolExecutor(2) as pool:
        scores, nothing = pool.map(share_of, range(2))
    assert nothing is None
    assert_same(scores, documented_mean_iou(predictions, references, 5, 255))


def test_what_is_written_does_not_grow_with_the_number_of_maps(tmp_path):
    metric = StreamingMeanIoUMetric(num_labels=5, cache_dir=str(tmp_path))
    predictions, references = some_maps(shape=(64, 64))
    for _ in range(50):
        metric.add_batch(predictions=predictions, references=references)
    assert len(metric) == 0 and not list(tmp_path.rglob("*.arrow"))
    metric._hand_over()
    assert len(metric) == 1  # one row
    metric.compute()
    assert not list(tmp_path.rglob("*.arrow"))


def test_a_missing_number_of_classes_is_told_before_anything_is_lost(metric):
    predictions, references = some_maps()
    metric.add_batch(predictions=predictions, references=references)
    with pytest.raises(ValueError, match="pass num_labels to evaluate.load or to compute"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\d+ references outside 0\.\.1: values 2"):
        metric.compute(num_labels=2)
    assert_same(metric.compute(num_labels=5), documented_mean_iou(predictions, references, 5, 255))


@pytest.mark.parametrize(
    ("predicted", "truth", "options", "message"),
    [
        ([[0, 4]], [[0, 1]], {}, r"1 predictions outside 0\.\.2: values 4"),
        ([[0, 1]], [[0, -1]], {}, r"1 references outside 0\.\.2: values -1"),
        (
            [[0, 1]],
            [[0, 0]],
            {"reduce_labels": True, "ignore_index": 0},
            "values 255. References to leave out must be 0",
        ),
        ([[0, 1]], [[0, 1, 2]], {}, r"predictions have shape \(1, 1, 2\) and references \(1, 1, 3\)"),
        ([[0.0, 1.0]], [[0, 1]], {}, "predictions have dtype float64"),
        ([[0, 1]], [[True, False]], {}, "references have dtype bool"),
        ([[0, 1]], [[0, 2**31]], {}, r"int32 range are expected, but there are values 0\.\.2147483648"),
    ],
)
def test_bad_maps_are_refused(predicted, truth, options, message):
    metric = StreamingMeanIoUMetric(num_labels=3, keep_in_memory=True)
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=np.array([predicted]), references=np.array([truth]), **options)


def test_one_sided_batches_and_unknown_options_are_refused(metric):
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.add_batch(predictions=[[[0]], [[0]]], references=[[[0]]])
    with pytest.raises(ValueError, match="Both predictions and references"):
        metric.add(prediction=[[0]])
    with pytest.raises(ValueError, match="Both predictions and references"):
        metric.add_batch(predictions=[[[0]]])
    with pytest.raises(
        TypeError, match="Unknown options num_lables; known are absent_as_zero, cache_dir, .*num_labels"
    ):
        evaluate.load(streaming_mean_iou_path(), num_lables=3)
    with pytest.raises(TypeError, match="Unknown options reduce_zero; known are absent_as_zero, ignore_index"):
        metric.compute(predictions=[[0]], references=[[0]], num_labels=2, reduce_zero=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_pairs_are_counted_for_every_dtype(dtype):
    truth, predicted = np.random.default_rng(0).integers(0, 120, (2, 31, 17)).astype(dtype)
    expected = Counter(zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True))
    assert _pairs(truth, predicted) == expected


@pytest.mark.parametrize(
    ("low", "high"),
    [(-100, 155), (65400, 65655), (-128, -1), (0, 255), (-100, 900), (0, 1023), (0, 1024), (-(2**31), 2**31 - 1)],
)
@pytest.mark.filterwarnings("error")
def test_pairs_are_counted_wherever_the_values_lie(low, high):
    truth, predicted = np.random.default_rng(0).integers(low, high, (2, 400), endpoint=True)
    truth[0], predicted[0], truth[1], predicted[1] = low, low, high, high
    assert _pairs(truth, predicted) == Counter(zip(truth.tolist(), predicted.tolist(), strict=True))


def test_an_empty_map_counts_nothing():
    assert not _pairs(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
