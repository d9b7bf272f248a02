"""Mean and boundary IoU: by hand, pixel by pixel, and errors; confusion matrices as CSV."""

from __future__ import annotations

import csv
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from afdcd_hf.metrics.boundary_iou import StreamingBoundaryIoU
from afdcd_hf.metrics.confusion_csv import read_confusion_csv, write_confusion_csv
from afdcd_hf.metrics.mean_iou import StreamingMeanIoU

# Worked out on paper: truth 0 0 0 1 1 2 | ignored, prediction 0 0 1 1 2 2 | anything
TRUTH = np.array([[0, 0, 0, 1], [1, 2, 255, 255]])
PREDICTION = np.array([[0, 0, 1, 1], [2, 2, 0, 77]])
MEANS = ("mean_iou", "mean_accuracy", "overall_accuracy", "frequency_weighted_iou")


def counted(metric_class, predictions, references, num_labels=5, **options):
    metric = metric_class(num_labels, **options)
    metric.update(predictions, references)
    return metric


def metric_of(predictions=PREDICTION, references=TRUTH, num_labels=3, **options):
    return counted(StreamingMeanIoU, predictions, references, num_labels, **options)


def test_three_classes_score_as_worked_out_by_hand():
    metric = metric_of(id2label={0: "road", 1: "car", 2: "sky"})
    scores = metric.compute()
    assert scores["per_category_iou"] == pytest.approx({"road": 2 / 3, "car": 1 / 3, "sky": 1 / 2})
    assert scores["per_category_accuracy"] == pytest.approx({"road": 2 / 3, "car": 1 / 2, "sky": 1.0})
    assert scores["mean_iou"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert scores["mean_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert scores["overall_accuracy"] == pytest.approx(4 / 6)
    assert scores["frequency_weighted_iou"] == pytest.approx(3 / 6 * 2 / 3 + 2 / 6 * 1 / 3 + 1 / 6 * 1 / 2)
    assert scores["absent_classes"] == [] and scores["num_pixels"] == 6
    assert all(type(scores[key]) is float for key in MEANS)
    metric.confusion_matrix.zero_()  # a copy
    frozen = TRUTH[:, ::-1].copy()[:, ::-1]
    frozen.setflags(write=False)
    with warnings.catch_warnings():  # torch's, about read-only or flipped arrays
        warnings.simplefilter("error")
        assert metric_of(frozen, frozen).compute()["mean_iou"] == 1.0
    assert metric.confusion_matrix.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]  # rows are the truth


def count_pixel_by_pixel(predictions, references, num_labels, ignore_index):
    """Return the matrix, or None if a value is out of range."""
    matrix = np.zeros((num_labels, num_labels), np.int64)
    for predicted, truth in zip(predictions.ravel().tolist(), references.ravel().tolist(), strict=True):
        if truth in (ignore_index, -100):
            continue
        if not (0 <= predicted < num_labels and 0 <= truth < num_labels):
            return None
        matrix[truth, predicted] += 1
    return matrix


ODD_VALUES = (-(2**40), -101, -100, -1, 255, 256, 257, 300, 65535, 2**32 - 100, 2**32, 2**32 + 1)


@pytest.mark.parametrize("ignore_index", [0, 255, 256, -1, -100, -101, 65535])
@pytest.mark.parametrize("num_labels", [1, 3, 256, 300])
def test_every_ignore_index_dtype_and_value_is_treated_as_pixel_by_pixel(num_labels, ignore_index):
    rng = np.random.default_rng(ignore_index % 1000 + num_labels)
    outcomes, shape = set(), (3, 1, 4, 5)
    for dtype in (np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64):
        limits = np.iinfo(dtype)
        odd = [value for value in (*ODD_VALUES, num_labels) if limits.min <= value <= limits.max]
        for share in (0.0, 0.0, 0.05):
            maps = [rng.integers(0, min(num_labels, limits.max + 1), shape).astype(dtype) for _ in range(2)]
            if limits.min <= ignore_index <= limits.max:
                maps[1][rng.random(shape) < 0.3] = ignore_index
            for ids in maps:
                ids[rng.random(shape) < share] = rng.choice(odd) if odd else 0
            before = [ids.copy() for ids in maps]
            expected = count_pixel_by_pixel(*maps, num_labels, ignore_index)
            outcomes.add(expected is None)
            for as_input in (np.asarray, torch.from_numpy):
                metric = StreamingMeanIoU(num_labels, ignore_index)
                if expected is None:
                    with pytest.raises(ValueError, match="outside"):
                        metric.update(*map(as_input, maps))
                else:
                    metric.update(*map(as_input, maps))
                    assert np.array_equal(metric.confusion_matrix.numpy(), expected)
            assert np.array_equal(before, maps)
    assert outcomes == {False, True}


def test_an_absent_class_is_listed_and_left_out_of_the_mean_or_counts_as_zero():
    left_out = metric_of(num_labels=4, id2label={3: "train"}).compute()
    assert math.isnan(left_out["per_category_iou"]["train"]) and math.isnan(left_out["per_category_accuracy"]["train"])
    assert left_out["absent_classes"] == ["train"] and left_out["mean_iou"] == pytest.approx(0.5)
    as_zero = metric_of(num_labels=4, absent_as_zero=True).compute()  # the released code's convention
    assert as_zero["per_category_iou"]["3"] == 0.0 and as_zero["absent_classes"] == ["3"]
    assert as_zero["mean_iou"] == pytest.approx(1.5 / 4) and as_zero["mean_accuracy"] == left_out["mean_accuracy"]
    assert as_zero["frequency_weighted_iou"] == left_out["frequency_weighted_iou"]  # no pixel, no weight
    only_predicted = metric_of(np.array([0, 1]), np.array([0, 0]), num_labels=2).compute()
    assert only_predicted["per_category_iou"] == {"0": 0.5, "1": 0.0} and only_predicted["absent_classes"] == []
    assert only_predicted["mean_accuracy"] == 0.5


@pytest.mark.parametrize("absent_as_zero", [False, True])
def test_nothing_counted_gives_nan_without_a_warning(absent_as_zero):
    metric = metric_of(references=np.full_like(TRUTH, 255), absent_as_zero=absent_as_zero)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = metric.compute()
    assert all(math.isnan(scores[key]) for key in MEANS)
    assert scores["num_pixels"] == 0 and scores["absent_classes"] == ["0", "1", "2"]


def test_add_batch_takes_maps_of_different_sizes_like_evaluate():
    metric = StreamingMeanIoU(3)
    metric.add_batch(predictions=[PREDICTION, [[0, 1]]], references=[TRUTH, [[0, 2]]])
    metric.add_batch(predictions=torch.tensor([2]), references=torch.tensor([2]))
    expected = metric_of().merge(metric_of(np.array([0, 1, 2]), np.array([0, 2, 2])))
    assert torch.equal(metric.confusion_matrix, expected.confusion_matrix)
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.add_batch(predictions=[PREDICTION, PREDICTION], references=[TRUTH])
    with pytest.raises(ValueError, match="outside"):
        metric.add_batch(predictions=[PREDICTION, [[0, 7]]], references=[TRUTH, [[0, 0]]])
    assert torch.equal(metric.confusion_matrix, expected.confusion_matrix)


def test_the_state_is_one_matrix_however_many_images_were_seen_until_it_is_reset():
    metric = metric_of()
    size = len(pickle.dumps(metric))
    with torch.inference_mode():
        metric.update(PREDICTION, TRUTH)
    for _ in range(49):
        metric.update(PREDICTION, TRUTH)
    assert len(pickle.dumps(metric)) == size and metric.compute()["num_pixels"] == 51 * 6
    assert metric.confusion_matrix.dtype == torch.int64 and metric.compute() == metric.compute()
    metric.reset()
    assert metric.compute()["num_pixels"] == 0


def test_class_names_survive_json_and_duplicates():
    assert StreamingMeanIoU(3, id2label={"0": "road", "2": "car"}).class_names == ["road", "1", "car"]
    names = StreamingMeanIoU(3, id2label={0: "door", 1: "door", 2: "car"}).class_names
    assert names == ["door (0)", "door (1)", "car"]


# Boundary IoU, against erosion class by class, as in its paper


def blobs(shape, num_labels: int, seed: int, ignored: int | None = None) -> np.ndarray:
    """Draw a smooth label map with some noise."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 3) for _ in range(num_labels)]
    ids = np.argmax(fields, axis=0)
    loud = rng.random(shape) < 0.01
    ids[loud] = rng.integers(0, num_labels, loud.sum())
    if ignored is not None:
        ids[ndimage.gaussian_filter(rng.normal(size=shape), 3) > 0.1] = ignored
    return ids


def expected_iou(prediction, truth, num_labels, width, ignored=255) -> list[float]:
    """Compute the IoU of each class's band, made by erosion."""
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


def iou_of(metric) -> list[float]:
    return list(metric.compute()["per_category_boundary_iou"].values())


def test_a_square_that_is_predicted_one_pixel_too_far_right_scores_as_counted_on_paper():
    truth, prediction = np.zeros((2, 20, 20), np.uint8)
    truth[8:12, 8:12] = 1
    prediction[8:12, 9:13] = 1
    metric = counted(StreamingBoundaryIoU, prediction, truth, 2, ratio=0.01)  # 0.28 pixels: 1
    # Rings of 12 pixels share rows 8 and 11 of columns 9 to 11. Around them, rings of 20 pixels share rows 7 and 12 of
    # columns 8 to 12. In addition, there are the 76 pixels at the border of the image.
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
            np.testing.assert_array_equal(
                iou_of(counted(StreamingBoundaryIoU, *maps, num_labels, ratio=ratio)), expected
            )


@pytest.mark.parametrize(("num_labels", "ignored"), [(255, 255), (256, 300), (300, -1), (3, 0)])
def test_many_classes_and_any_ignore_index_are_counted_alike(num_labels, ignored):
    prediction, truth = blobs((40, 50), 3, 0), blobs((40, 50), 3, 1, ignored=ignored)
    if num_labels > 3:
        prediction, truth = (np.where(ids == 2, num_labels - 1, ids) for ids in (prediction, truth))
    metric = counted(StreamingBoundaryIoU, prediction, truth, num_labels, ignore_index=ignored, ratio=0.05)
    expected = expected_iou(prediction, truth, num_labels, 3, ignored)  # of 64 pixels
    np.testing.assert_array_equal(iou_of(metric), expected)


# Both metrics: batches, merging, errors, devices


BOTH = pytest.mark.parametrize("metric_class", [StreamingMeanIoU, StreamingBoundaryIoU])


def maps_of(seed):
    return blobs((31, 45), 5, seed), blobs((31, 45), 5, 10 + seed, ignored=255)


@BOTH
def test_a_batch_counts_like_its_maps_one_by_one_even_when_merged_or_reduced(metric_class):
    pairs = [maps_of(seed) for seed in range(3)]
    batch = counted(metric_class, *map(np.stack, zip(*pairs, strict=True)))
    parts, merged = [counted(metric_class, *pair) for pair in pairs], metric_class(5)
    for part in parts:
        assert merged.merge(part) is merged
    reduced = parts[0].reduce(lambda counts: counts.add_(parts[1]._counts).add_(parts[2]._counts))
    assert merged.compute() == batch.compute() == reduced.compute()
    assert torch.equal(parts[1]._counts, counted(metric_class, *pairs[1])._counts)
    with pytest.raises(ValueError, match="sum over processes, not gather"):
        parts[1].reduce(lambda counts: torch.stack([counts, counts]))
    with pytest.raises(ValueError, match="4 classes can't be merged into one of 5"):
        merged.merge(metric_class(4))


@BOTH
def test_bad_maps_are_rejected_and_nothing_is_counted(metric_class):
    metric = counted(metric_class, *maps_of(0))
    before = metric._counts.clone()
    for predictions, references, message in (
        ([[0, 1]], [[0, 5]], r"references outside 0\.\.4: values 5\. .* 255 .* -100"),
        ([[5, 7]], [[0, 0]], r"predictions outside 0\.\.4: values 5, 7"),
        ([[2**32, 0]], [[0, 0]], r"predictions outside 0\.\.4"),
        ([[0, 1, 2]], [[0, 1]], r"shape \(1, 3\) and references \(1, 2\)"),
        ([[0.0, 1.0]], [[0, 1]], r"predictions have dtype float(64|32)"),
        ([[0, 1]], [[True, False]], r"references have dtype bool"),
    ):
        for as_input in (np.array, torch.tensor):
            with pytest.raises(ValueError, match=message):
                metric.update(as_input(predictions), as_input(references))
    assert torch.equal(metric._counts, before)


def test_bad_settings_are_refused():
    for metric_class, options, message in (
        (StreamingMeanIoU, {"num_labels": 0}, "num_labels=0"),
        (StreamingMeanIoU, {"num_labels": 3, "id2label": {3: "car"}}, r"classes \[3\]; num_labels=3 allows 0\.\.2"),
        (StreamingBoundaryIoU, {"num_labels": 3, "ratio": 0}, "ratio=0: expected a share of the image diagonal"),
    ):
        with pytest.raises(ValueError, match=message):
            metric_class(**options)
    with pytest.raises(ValueError, match=r"shape \(4,\); bands need rows and columns"):
        StreamingBoundaryIoU(3).update(np.zeros(4, np.int64), np.zeros(4, np.int64))
    with pytest.raises(ValueError, match=r"ratio 0\.02 can't be merged with those of ratio 0\.01"):
        StreamingBoundaryIoU(3, ratio=0.01).merge(StreamingBoundaryIoU(3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
@BOTH
def test_counts_on_a_gpu_are_those_of_the_cpu(metric_class, dtype):
    maps = [np.random.default_rng(seed).integers(0, 150, (300, 400)).astype(dtype) for seed in (0, 1)]
    maps[1][:40] = 255
    metric = counted(metric_class, *maps, num_labels=150, device="cuda")
    metric.update(*(torch.from_numpy(ids).cuda() for ids in maps))
    assert metric._counts.is_cuda
    assert torch.equal(metric._counts.cpu(), 2 * counted(metric_class, *maps, num_labels=150)._counts)


# Confusion matrices as CSV


MATRIX = np.array([[90, 9, 1], [4, 2**62, 1], [0, 0, 0]])
FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-road", "@SUM(A1)", "'=quoted", "'plain'", "\tcar"]


def test_the_csv_holds_counts_and_names_without_formulas_and_is_readable_by_pandas_and_us(tmp_path):
    import pandas

    path = write_confusion_csv(MATRIX, ["road", 'a "bus", or so', "Straße"], tmp_path / "new" / "confusion.csv")
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == 'truth \\ prediction,road,"a ""bus"", or so",Straße' and second == "road,90,9,1"
    table = pandas.read_csv(path, index_col=0)
    assert table.loc["road", "Straße"] == 1 and table.to_numpy().tolist() == MATRIX.tolist()
    for names, matrix in ((["wall, brick", "two\nlines", "bus"], MATRIX), (FORMULAS, np.eye(7, dtype=int))):
        write_confusion_csv(matrix, names, path)
        with open(path, newline="") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        for mark in (b"", b"\xef\xbb\xbf"):  # as a spreadsheet saves it
            path.write_bytes(mark + path.read_bytes())
            counts, read_names = read_confusion_csv(path)
            assert counts.dtype == np.int64 and counts.tolist() == matrix.tolist() and read_names == names


def test_only_confusion_matrices_are_read_and_written(tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(ValueError, match="float64"):
        write_confusion_csv(MATRIX / 2, ["road", "car", "bus"], path)
    assert not path.exists()
    for lines in ("", "a,1,2\n", "a,1,2\nc,3,4\n", "a,1\nb,3,4\n", "a,1,x\nb,3,4\n", "a,1,-2\nb,3,4\n"):
        path.write_text(f"truth,a,b\n{lines}")
        with pytest.raises(ValueError, match=r"a\.csv is not a confusion matrix: expected a header"):
            read_confusion_csv(path)
