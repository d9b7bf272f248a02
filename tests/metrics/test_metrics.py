"""StreamingMeanIoU: by hand, pixel by pixel, and what it refuses."""

from __future__ import annotations

import csv
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

from afdcd_hf.metrics.confusion_csv import read_confusion_csv, write_confusion_csv
from afdcd_hf.metrics.mean_iou import StreamingMeanIoU

# Worked out on paper: truth 0 0 0 1 1 2 | ignored, prediction 0 0 1 1 2 2 | anything
TRUTH = np.array([[0, 0, 0, 1], [1, 2, 255, 255]])
PREDICTION = np.array([[0, 0, 1, 1], [2, 2, 0, 77]])
MEANS = ("mean_iou", "mean_accuracy", "overall_accuracy", "frequency_weighted_iou")


def metric_of(predictions=PREDICTION, references=TRUTH, num_labels=3, **options):
    metric = StreamingMeanIoU(num_labels, **options)
    metric.update(predictions, references)
    return metric


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
    with warnings.catch_warnings():  # torch's, of arrays that are read-only or flipped
        warnings.simplefilter("error")
        assert metric_of(frozen, frozen).compute()["mean_iou"] == 1.0
    assert metric.confusion_matrix.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]  # rows are the truth


def count_pixel_by_pixel(predictions, references, num_labels, ignore_index):
    """The matrix, or None where a value is out of range."""
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


def test_merging_and_reducing_over_processes_equal_updating_one():
    other, joint = metric_of(TRUTH[:1], PREDICTION[:1]), metric_of()
    joint.update(TRUTH[:1], PREDICTION[:1])
    merged, reduced = metric_of(), metric_of().reduce(lambda counts: counts.add_(other._counts))
    assert merged.merge(other) is merged
    assert torch.equal(merged.confusion_matrix, joint.confusion_matrix)
    assert torch.equal(reduced.confusion_matrix, joint.confusion_matrix) and other.confusion_matrix.sum() == 4
    with pytest.raises(ValueError, match="sum over processes, not gather"):
        metric_of().reduce(lambda counts: torch.stack([counts, counts]))
    with pytest.raises(ValueError, match="4 classes can't be merged into one of 3"):
        metric_of().merge(StreamingMeanIoU(4))


def test_add_batch_takes_maps_of_different_sizes_like_evaluate():
    metric = StreamingMeanIoU(3)
    metric.add_batch(predictions=[PREDICTION, [[0, 1]]], references=[TRUTH, [[0, 2]]])
    metric.add_batch(predictions=torch.tensor([2]), references=torch.tensor([2]))
    expected = metric_of().merge(metric_of(np.array([0, 1, 2]), np.array([0, 2, 2])))
    assert torch.equal(metric.confusion_matrix, expected.confusion_matrix)
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        metric.add_batch(predictions=[PREDICTION, PREDICTION], references=[TRUTH])


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


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0, 1]], [[0, 3]], r"references outside 0\.\.2: values 3\. .* 255 .* -100"),
        ([[3, 7]], [[0, 0]], r"predictions outside 0\.\.2: values 3, 7"),
        ([[0, 1, 2]], [[0, 1]], r"shape \(1, 3\) and references \(1, 2\)"),
        ([[0.0, 1.0]], [[0, 1]], r"predictions have dtype (torch\.)?float64"),
        ([[0, 1]], [[True, False]], r"references have dtype (torch\.)?bool"),
    ],
)
def test_bad_maps_are_refused_and_nothing_is_counted(predictions, references, message):
    metric = metric_of()
    for as_input in (np.array, torch.from_numpy):
        with pytest.raises(ValueError, match=message):
            metric.update(as_input(np.array(predictions)), as_input(np.array(references)))
    assert metric.compute()["num_pixels"] == 6


def test_class_names_survive_json_and_duplicates_and_bad_settings_are_refused():
    assert StreamingMeanIoU(3, id2label={"0": "road", "2": "car"}).class_names == ["road", "1", "car"]
    names = StreamingMeanIoU(3, id2label={0: "door", 1: "door", 2: "car"}).class_names
    assert names == ["door (0)", "door (1)", "car"]
    with pytest.raises(ValueError, match="num_labels=0"):
        StreamingMeanIoU(0)
    with pytest.raises(ValueError, match=r"names classes \[3\]; num_labels=3 allows 0\.\.2"):
        StreamingMeanIoU(3, id2label={3: "car"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_counts_on_a_gpu_are_those_of_the_cpu(dtype):
    maps = [np.random.default_rng(seed).integers(0, 150, (300, 400)).astype(dtype) for seed in (0, 1)]
    maps[1][:40] = 255
    metric = metric_of(*maps, num_labels=150, device="cuda")
    metric.update(*(torch.from_numpy(ids).cuda() for ids in maps))
    assert metric.confusion_matrix.is_cuda
    assert torch.equal(metric.confusion_matrix.cpu(), 2 * metric_of(*maps, num_labels=150).confusion_matrix)


# Confusion matrices as CSV


MATRIX = np.array([[90, 9, 1], [4, 2**62, 1], [0, 0, 0]])
FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-road", "@SUM(A1)", "'=quoted", "'plain'", "\tcar"]


def test_the_csv_holds_the_counts_under_a_header_and_pandas_reads_it(tmp_path):
    import pandas

    path = write_confusion_csv(MATRIX, ["road", 'a "bus", or so', "Straße"], tmp_path / "new" / "confusion.csv")
    first, second, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first == 'truth \\ prediction,road,"a ""bus"", or so",Straße' and second == "road,90,9,1"
    table = pandas.read_csv(path, index_col=0)
    assert table.loc["road", "Straße"] == 1 and table.to_numpy().tolist() == MATRIX.tolist()


@pytest.mark.parametrize("names", [["wall, brick", "two\nlines", "bus"], FORMULAS])
def test_counts_and_names_survive_and_no_cell_is_a_formula_to_a_spreadsheet(names, tmp_path):
    matrix = MATRIX if len(names) == 3 else np.eye(7, dtype=int)
    path = write_confusion_csv(matrix, names, tmp_path / "a.csv")
    with open(path, newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    # as a spreadsheet saves it: a byte order mark, other line ends
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    for one in (path, tmp_path / "b.csv"):
        counts, read_names = read_confusion_csv(one)
        assert counts.dtype == np.int64 and counts.tolist() == matrix.tolist() and read_names == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "truth,a,b\na,1,2\n",
        "truth,a,b\na,1,2\nc,3,4\n",
        "truth,a,b\na,1\nb,3,4\n",
        "truth,a,b\na,1,x\nb,3,4\n",
        "truth,a,b\na,1,-2\nb,3,4\n",
    ],
)
def test_a_csv_that_is_no_confusion_matrix_is_refused(text, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=r"a\.csv is no confusion matrix .*; expected is a header"):
        read_confusion_csv(tmp_path / "a.csv")


def test_an_odd_matrix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="float64"):
        write_confusion_csv(MATRIX / 2, ["road", "car", "bus"], tmp_path / "new" / "a.csv")
    assert not list(tmp_path.iterdir())
