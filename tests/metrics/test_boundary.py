"""Boundary IoU against erosion class by class, as its paper computes it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from afdcd_hf.metrics.boundary_iou import StreamingBoundaryIoU


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


def expected_iou(prediction, truth, num_labels, width, ignored=255) -> list[float]:
    """Of the bands of each class, made by erosion."""
    maps = [np.where(truth == ignored, 9999, ids) for ids in (prediction, truth)]
    values = []
    for label in range(num_labels):
        masks = [ids == label for ids in maps]
        one, other = (
            mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0) for mask in masks
        )
        union = (one | other).sum()
        values.append((one & other).sum() / union if union else math.nan)
    return values


def metric_of(predictions, references, num_labels=4, **options) -> StreamingBoundaryIoU:
    metric = StreamingBoundaryIoU(num_labels, **options)
    metric.update(predictions, references)
    return metric


def iou_of(metric) -> list[float]:
    return list(metric.compute()["per_category_boundary_iou"].values())


def test_a_square_that_is_predicted_one_pixel_too_far_right_scores_as_counted_on_paper():
    truth, prediction = np.zeros((2, 20, 20), np.uint8)
    truth[8:12, 8:12] = 1
    prediction[8:12, 9:13] = 1
    metric = metric_of(prediction, truth, 2, ratio=0.01)  # 0.28 pixels: 1
    # Rings of 12 pixels: in common are the rows 8 and 11 of the columns 9 to 11. Around them, rings of 20 pixels: in
    # common are the rows 7 and 12 of the columns 8 to 12. Besides, the 76 pixels at the border of the image.
    assert iou_of(metric) == pytest.approx([(76 + 10) / (76 + 20 + 20 - 10), 6 / (12 + 12 - 6)])
    assert metric.compute()["mean_boundary_iou"] == pytest.approx((6 / 18 + 86 / 106) / 2)


@pytest.mark.parametrize("ratio", [0.001, 0.03, 0.3])
@pytest.mark.parametrize("shape", [(61, 83), (7, 50), (1, 1)])
@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_scores_equal_those_of_an_erosion_class_by_class(shape, num_labels, ratio):
    prediction, truth = blobs(shape, num_labels, 0), blobs(shape, num_labels, 1, ignored=255)
    width = max(1, round(ratio * math.sqrt(shape[0] ** 2 + shape[1] ** 2)))
    expected = expected_iou(prediction, truth, num_labels, width)
    for dtype in (np.uint8, np.int64):
        for as_input in (np.asarray, torch.from_numpy):
            maps = (as_input(ids.astype(dtype)) for ids in (prediction, truth))
            np.testing.assert_array_equal(iou_of(metric_of(*maps, num_labels, ratio=ratio)), expected)


@pytest.mark.parametrize(("num_labels", "ignored"), [(255, 255), (256, 300), (300, -1), (3, 0)])
def test_many_classes_and_any_ignore_index_are_counted_alike(num_labels, ignored):
    prediction, truth = blobs((40, 50), 3, 0), blobs((40, 50), 3, 1, ignored=ignored)
    if num_labels > 3:
        prediction, truth = (np.where(ids == 2, num_labels - 1, ids) for ids in (prediction, truth))
    metric = metric_of(prediction, truth, num_labels, ignore_index=ignored, ratio=0.05)
    expected = expected_iou(prediction, truth, num_labels, 3, ignored)  # of 64 pixels
    np.testing.assert_array_equal(iou_of(metric), expected)


def test_a_batch_counts_as_its_maps_one_by_one_also_when_merged():
    pairs = [(blobs((31, 45), 4, seed), blobs((31, 45), 4, 10 + seed, ignored=255)) for seed in range(3)]
    batch = metric_of(np.stack([p for p, _ in pairs]), np.stack([t for _, t in pairs]))
    single = StreamingBoundaryIoU(4)
    for prediction, truth in pairs:
        assert single.merge(metric_of(prediction, truth)) is single
    assert single.compute() == batch.compute()
    assert torch.equal(single.reduce(lambda counts: counts * 2)._counts, 2 * batch._counts)


def test_bad_maps_and_settings_are_refused_and_nothing_is_counted():
    metric = StreamingBoundaryIoU(3)
    zeros = np.zeros((4, 4), np.int64)
    for prediction, truth, message in (
        (zeros, zeros + 3, r"references outside 0\.\.2: values 3"),
        (zeros + 2**32, zeros, r"predictions outside 0\.\.2"),
        (zeros, zeros[:3], r"shape \(4, 4\) and references \(3, 4\)"),
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bands_on_a_gpu_are_those_of_the_cpu():
    maps = blobs((61, 83), 5, 0), blobs((61, 83), 5, 1, ignored=255)
    on_gpu = metric_of(*maps, 5, device="cuda")
    assert on_gpu._counts.is_cuda and on_gpu._counts.tolist() == metric_of(*maps, 5)._counts.tolist()
