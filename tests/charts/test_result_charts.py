"""Charts of results: contents of bars, cells and legends, and invalid input."""

from __future__ import annotations

import math

import numpy as np
import pytest

from afdcd_hf.charts import plot_class_iou, plot_confusion_matrix
from afdcd_hf.charts.results import data_title, model_and_data, protocol_differences

ALONE = {"road": 0.9, "pole": 0.25, "car": 0.5, "train": None}
DISTILLED = {"road": 0.88, "pole": 0.35, "car": 0.5, "train": math.nan}
PAIR = {"student alone": ALONE, "Af-DCD": DISTILLED}
NAMES = ["road", "car", "bus"]
MATRIX = np.array([[90, 9, 1], [4, 15, 1], [0, 0, 0]])


@pytest.fixture
def bars(draw):
    return lambda results, **options: draw(plot_class_iou, results, **options).axes[0]


def many(count: int, gain: float = 0.0, seed: int = 0) -> dict[str, float]:
    values = np.random.default_rng(seed).uniform(0.2, 0.7, count)
    return {f"the class number {index}": float(value) + gain for index, value in enumerate(values)}


def widths(axes) -> dict[str, list[float]]:
    """Lengths of each result's bars, from top to bottom."""
    return {bars.get_label(): [round(bar.get_width(), 6) for bar in bars] for bars in axes.containers}


def rows(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


# IoU by class


def test_two_results_have_bars_numbers_gains_and_a_legend_with_the_means(draw):
    figure = draw(plot_class_iou, PAIR, title="CamVid val")
    (axes,) = figure.axes
    assert axes.get_title() == "CamVid val" and rows(axes) == ["mean", "road", "pole", "car", "train"]
    assert widths(axes) == {"student alone": [55, 90, 25, 50, 0], "Af-DCD": [57.666667, 88, 35, 50, 0]}
    low, high = axes.get_ylim()
    assert low > high == 0  # rows from top to bottom
    numbers = ["55.0", "90.0", "25.0", "50.0", "n/a", "57.7", "88.0", "35.0", "50.0", "n/a"]
    assert texts(axes) == [*numbers, "gain", "+2.7", "\N{MINUS SIGN}2.0", "+10.0", "0.0"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["student alone (mean 55.0 %)", "Af-DCD (mean 57.7 %)"]


def test_order_gain_starts_with_the_largest_gain_and_only_two_results_have_a_gain_column(bars):
    axes = bars({"a": ALONE, "b": dict(reversed(DISTILLED.items()))}, order="gain")  # matched by name
    assert rows(axes) == ["mean", "pole", "car", "road", "train"] and widths(axes)["b"][1:] == [35, 50, 88, 0]
    assert texts(bars({"a": ALONE})) == ["55.0", "90.0", "25.0", "50.0", "n/a"]
    axes = bars({"a": ALONE, "b": {**ALONE, "train": 0.1}, "c": ALONE})
    assert "gain" not in texts(axes) and texts(axes).count("n/a") == 2


def test_up_to_forty_classes_are_all_drawn_and_otherwise_the_extremes_or_those_in_the_data(bars):
    axes = bars({"a": many(40), "b": many(40, 0.1)})
    assert rows(axes) == ["mean", *many(40)] and axes.get_title() == ""
    before = many(150)
    after = {name: value + (index - 49) / 1000 for index, (name, value) in enumerate(before.items())}
    axes, ordered = bars({"a": before, "b": after}, title="val"), list(before)[::-1]
    assert axes.get_title() == "val\n20 largest gains and 20 largest losses of 150 classes"
    assert rows(axes) == ["mean", *ordered[:20], *ordered[-20:]]
    axes, ordered = bars({"a": many(171)}), sorted(many(171), key=many(171).get, reverse=True)
    assert axes.get_title() == "20 highest and 20 lowest of 171 classes"
    assert rows(axes) == ["mean", *ordered[:20], *ordered[-20:]]
    axes = bars({"a": {**dict.fromkeys(before), "road": 0.9, "car": 0.5}})
    assert axes.get_title() == "2 of 152 classes are in the data" and rows(axes) == ["mean", "road", "car"]


def test_results_that_cannot_be_compared_are_refused_and_nothing_is_written(tmp_path):
    for results, order, message in (
        ({str(index): ALONE for index in range(6)}, "classes", "6 results.*one to 5"),
        ({"a": ALONE, "b": {"road": 0.5, "bus": 0.1}}, "classes", r"'a' and 'b'.*\['bus', 'car', 'pole', 'train'\]"),
        ({"a": {"road": None}}, "classes", "a has no IoU"),
        ({"a": ALONE}, "gain", "two or more"),
        (PAIR, "size", "'size': expected classes"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_class_iou(results, tmp_path / "iou.png", order=order)
    assert not list(tmp_path.iterdir())


def test_settings_that_affect_scores_must_agree_and_those_of_a_model_need_not():
    def one(num_images: int = 4, **protocol) -> dict:
        return {"num_images": num_images, "num_pixels": 99, "protocol": {"split": "val", "scales": [1.0], **protocol}}

    same = one(model="b", image_mean=[0.5], date="2026-11-29", machine="m", max_samples=None, versions={})
    assert protocol_differences({"a": one(), "b": same}) == [] == protocol_differences({"a": one()})
    other = one(2, scales=[0.5, 1.0], flip=True, max_samples=2)
    assert protocol_differences({"a": one(flip=False), "b": same, "c": other}) == [
        "num_images: 4, 4, 2", "scales: [1.0], [1.0], [0.5, 1.0]", "flip: False, None, True",
        "max_samples: None, None, 2",
    ]  # fmt: skip


def test_a_title_names_model_split_and_subset_but_no_folder():
    protocol = {"model": "runs/mine", "dataset": "/home/me/streets", "split": "val"}
    assert model_and_data(protocol) == "mine, streets val" and data_title({"dataset": "camvid"}) is None
    assert data_title({**protocol, "max_samples": 20}) == "streets val, first 20 images"


# Confusion matrix


@pytest.mark.parametrize("normalize", ["truth", "prediction"])
def test_rows_or_columns_sum_to_100_percent_and_empty_ones_stay_white(draw, normalize):
    (axes,) = draw(plot_confusion_matrix, MATRIX if normalize == "truth" else MATRIX.T, NAMES, normalize=normalize).axes
    correct, confused = (image.get_array().filled(-1) for image in axes.images)
    np.testing.assert_allclose(correct, [[90, -1, -1], [-1, 75, -1], [-1, -1, 0]])
    expected = np.array([[-1, 9, 1], [20, -1, 5], [0, 0, -1]])
    np.testing.assert_allclose(confused, expected if normalize == "truth" else expected.T)
    kind = "true" if normalize == "truth" else "predicted"
    assert f"{kind} class" in axes.get_title(loc="left")


def test_up_to_twenty_classes_have_numbers_in_nonempty_cells_and_small_shares_stay_visible(draw):
    matrix = np.array([[99_961, 39, 0], [155, 845, 0], [0, 0, 3]])
    (axes,) = draw(plot_confusion_matrix, matrix, NAMES, title="mine, camvid val").axes
    assert axes.get_title(loc="left") == "mine, camvid val\n% of the true class's pixels"
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers == {(0, 0): "100", (0, 1): "16", (1, 1): "84", (2, 2): "100"}
    assert rows(axes) == NAMES and [label.get_text() for label in axes.get_xticklabels()] == NAMES
    assert [image.norm(1.0) for image in axes.images] == pytest.approx([0.1, 0.1])  # square root of 1 %
    assert axes.images[1].cmap(0.0)[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("count", [21, 41])
def test_more_classes_have_no_numbers_in_cells_and_beyond_forty_no_class_names(draw, count):
    names = [f"class{index}" for index in range(count)]
    (axes,) = draw(plot_confusion_matrix, np.eye(count, dtype=np.int64), names).axes
    assert texts(axes) == [] and (rows(axes) == names) != ("class number" in axes.get_ylabel())


def test_an_invalid_confusion_matrix_is_refused(tmp_path):
    for matrix, names, normalize, message in (
        (MATRIX[:2], NAMES[:2], "truth", r"\(2, 3\)"),
        (MATRIX / 2, NAMES, "truth", "float64"),
        (MATRIX, NAMES[:2], "truth", "2 class names"),
        (-MATRIX, NAMES, "truth", "none negative"),
        (0 * MATRIX, NAMES, "truth", "no pixel"),
        (MATRIX, NAMES, "rows", "'rows'.*truth, prediction"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_confusion_matrix(matrix, names, tmp_path / "confusion.png", normalize=normalize)
    assert not list(tmp_path.iterdir())
