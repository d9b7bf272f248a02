"""Boundary IoU against erosion class by class, as its paper computes it."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from afdcd_hf.metrics.boundary_iou import StreamingBoundaryIoU, band_width


def blobs(shape, num_labels: int, seed: int, ignored: int | None = None) -> np.ndarray:
    """A smooth random label map with some noise."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 3) for _ in range(num_labels)]
    ids = np.argmax(fields, axis=0)
    loud = rng.random(shape) < 0.01
    ids[loud] = rng.integers(0, num_labels, loud.sum())
    if ignored is not None:
        ids[ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.1] = ignored
    return ids


def bands_by_erosion(ids: np.ndarray, label: int, width: int) -> np.ndarray:
    mask = ids == label
    return mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)


def expected_counts(prediction, truth, num_labels, width, ignored=255) -> np.ndarray:
    """Intersection and union of the bands of each class, (2, K)."""
    prediction, truth = (np.where(truth == ignored, 9999, ids) for ids in (prediction, truth))
    counts = []
    for label in range(num_labels):
        one, other = (bands_by_erosion(ids, label, width) for ids in (prediction, truth))
        counts.append(((one & other).sum(), (one | other).sum()))
    return np.array(counts).T


def metric_of(predictions, references, num_labels=4, **options) -> StreamingBoundaryIoU:
    metric = StreamingBoundaryIoU(num_labels, **options)
    metric.update(predictions, references)
    return metric


def test_a_square_that_is_predicted_one_pixel_too_far_right_scores_as_counted_on_paper():
    truth, prediction = np.zeros((2, 20, 20), np.uint8)
    truth[8:12, 8:12] = 1
    prediction[8:12, 9:13] = 1
    metric = metric_of(prediction, truth, 2, ratio=0.01)  # 0.28 pixels: 1
    # Rings of 12 pixels: in common are the rows 8 and 11 of the columns 9 to 11. Around them, rings of 20 pixels: in
    # common are the rows 7 and 12 of the columns 8 to 12. Besides, the 76 pixels at the border of the image.
    boundary = metric.compute()["per_category_boundary_iou"]
    assert boundary["1"] == pytest.approx(6 / (12 + 12 - 6))
    assert boundary["0"] == pytest.approx((76 + 10) / (76 + 20 + 20 - 10))
    assert metric.compute()["mean_boundary_iou"] == pytest.approx((6 / 18 + 86 / 106) / 2)


@pytest.mark.parametrize("ratio", [0.001, 0.03, 0.1, 0.3])
@pytest.mark.parametrize("shape", [(61, 83), (40, 20), (7, 50), (1, 30), (1, 1)])
@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_counts_equal_those_of_an_erosion_class_by_class(shape, num_labels, ratio):
    prediction, truth = blobs(shape, num_labels, 0), blobs(shape, num_labels, 1, ignored=255)
    width = max(1, round(ratio * math.sqrt(shape[0] ** 2 + shape[1] ** 2)))
    both, either = expected_counts(prediction, truth, num_labels, width)
    for dtype in (np.uint8, np.int64):
        for as_input in (np.asarray, torch.from_numpy):
            maps = (as_input(ids.astype(dtype)) for ids in (prediction, truth))
            scores = metric_of(*maps, num_labels, ratio=ratio).compute()
            iou = np.divide(both, either, out=np.full(num_labels, np.nan), where=either > 0)
            np.testing.assert_array_equal(list(scores["per_category_boundary_iou"].values()), iou)


def test_the_width_is_a_rounded_share_of_the_diagonal_and_at_least_one_pixel():
    assert band_width((1024, 2048), 0.005) == 11 and band_width((1024, 2048), 0.02) == 46
    assert band_width((3, 4), 0.02) == 1


def test_a_perfect_prediction_scores_one():
    truth = blobs((50, 70), 4, seed=3, ignored=255)
    scores = metric_of(np.where(truth == 255, 0, truth), truth).compute()
    assert scores["mean_boundary_iou"] == 1.0 and set(scores["per_category_boundary_iou"].values()) == {1.0}


def test_what_is_predicted_where_the_truth_is_ignored_does_not_matter():
    truth = blobs((50, 70), 4, seed=3, ignored=255)
    prediction = blobs((50, 70), 4, seed=4)
    other = np.where(truth == 255, np.random.default_rng(0).integers(0, 250, truth.shape), prediction)
    assert metric_of(prediction, truth).compute() == metric_of(other, truth).compute()


def test_a_batch_counts_as_its_maps_one_by_one_also_when_merged():
    pairs = [(blobs((31, 45), 4, seed), blobs((31, 45), 4, 10 + seed, ignored=255)) for seed in range(3)]
    batch = metric_of(np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs]))
    single = StreamingBoundaryIoU(4)
    for prediction, truth in pairs:
        assert single.merge(metric_of(prediction, truth)) is single
    assert single.compute() == batch.compute()
    doubled = single.reduce(lambda counts: counts * 2)
    assert doubled.compute() == batch.compute() and torch.equal(doubled._counts, 2 * batch._counts)


@pytest.mark.parametrize("absent_as_zero", [False, True])
def test_where_all_is_ignored_scores_are_nan_without_a_warning(absent_as_zero):
    metric = metric_of(np.zeros((9, 9), int), np.full((9, 9), 255), absent_as_zero=absent_as_zero)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metric.compute()
    assert math.isnan(scores["mean_boundary_iou"])
    assert all(math.isnan(value) for value in scores["per_category_boundary_iou"].values())


def test_an_absent_class_is_left_out_or_counts_as_zero():
    truth = np.zeros((9, 9), np.uint8)
    truth[4:] = 1
    left_out, as_zero = (metric_of(truth, truth, 4, absent_as_zero=value).compute() for value in (False, True))
    assert left_out["mean_boundary_iou"] == 1.0 and math.isnan(left_out["per_category_boundary_iou"]["3"])
    assert as_zero["mean_boundary_iou"] == 0.5 and as_zero["per_category_boundary_iou"]["3"] == 0.0


@pytest.mark.parametrize(("num_labels", "ignored"), [(255, 255), (256, 300), (300, -1), (3, 0)])
def test_many_classes_and_any_ignore_index_are_counted_alike(num_labels, ignored):
    prediction, truth = blobs((40, 50), 3, 0), blobs((40, 50), 3, 1, ignored=ignored)
    if num_labels > 3:
        prediction, truth = (np.where(ids == 2, num_labels - 1, ids) for ids in (prediction, truth))
    metric = metric_of(prediction, truth, num_labels, ignore_index=ignored, ratio=0.05)
    expected = expected_counts(prediction, truth, num_labels, band_width((40, 50), 0.05), ignored)
    assert metric._counts.tolist() == expected.tolist()


def test_bad_maps_and_settings_are_refused_and_nothing_is_counted():
    metric = StreamingBoundaryIoU(3)
    zeros = np.zeros((4, 4), np.int64)
    for prediction, truth, message in (
        (zeros, zeros + 3, r"16 references outside 0\.\.2: values 3\. .* must be 255 \(ignore_index\)"),
        (zeros - 1, zeros, r"16 predictions outside 0\.\.2: values -1"),
        (zeros + 2**32, zeros, r"16 predictions outside 0\.\.2"),
        (zeros, zeros[:3], r"shape \(4, 4\) and references \(3, 4\)"),
        (zeros * 0.5, zeros, "predictions have dtype (torch.)?float64"),
        (zeros[0], zeros[0], r"shape \(4,\); bands need rows and columns"),
    ):
        for as_input in (np.asarray, torch.from_numpy):
            with pytest.raises(ValueError, match=message):
                metric.update(as_input(prediction), as_input(truth))
    assert metric._counts.sum() == 0
    with pytest.raises(ValueError, match="ratio=0: expected a share of the image diagonal"):
        StreamingBoundaryIoU(3, ratio=0)
    with pytest.raises(ValueError, match=r"ratio 0\.02 can't be merged with those of ratio 0\.01"):
        StreamingBoundaryIoU(3, ratio=0.01).merge(metric)
    with pytest.raises(ValueError, match="3 classes can't be merged into one of 4"):
        StreamingBoundaryIoU(4).merge(metric)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bands_on_a_gpu_are_those_of_the_cpu():
    maps = blobs((61, 83), 5, 0), blobs((61, 83), 5, 1, ignored=255)
    on_gpu = metric_of(*maps, 5, device="cuda")
    assert on_gpu._counts.is_cuda and on_gpu._counts.tolist() == metric_of(*maps, 5)._counts.tolist()
