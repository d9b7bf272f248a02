"""Label maps in colour against values by hand; pixels, titles and legend of a grid of predictions."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from afdcd_hf.charts import colorize, plot_predictions
from afdcd_hf.charts.label_maps import class_borders, draw_overlay, line_colors, oklab
from afdcd_hf.data.benchmarks import BENCHMARKS

PALETTE = [(128, 64, 128), (250, 170, 30), (0, 0, 230)]
NAMES = ["road", "lamp", "car"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_each_id_gets_its_colour_and_255_is_black(dtype):
    label = np.array([[0, 2, 255], [1, 1, 0]], dtype)
    painted = colorize(label, PALETTE)
    expected = [[PALETTE[0], PALETTE[2], (0, 0, 0)], [PALETTE[1], PALETTE[1], PALETTE[0]]]
    assert painted.dtype == np.uint8 and np.array_equal(painted, expected)


def test_an_id_without_a_colour_and_invalid_maps_and_palettes_are_refused():
    one = np.zeros((1, 1), int)
    for label, palette, message in (
        *((np.array([[0, bad]]), PALETTE, rf"ids \[{bad}\] outside 0\.\.2") for bad in (3, 254, -1, 256)),
        *((bad, PALETTE, "shape") for bad in (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)))),
        *((one, bad, "palette") for bad in ([(1, 2)], [(0, 0, 256)], [(0.1, 0.5, 1.0)])),
    ):
        with pytest.raises(ValueError, match=message):
            colorize(label, palette)


def as_deuteranopes_see(colors):
    """Simulate deuteranopia: Machado, Oliveira and Fernandes (2009), severity 1, in linear RGB."""
    matrix = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    values = np.asarray(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ np.transpose(matrix)
    values = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clip(0, 1) ** (1 / 2.4) - 0.055)
    return (255 * values.clip(0, 1)).round().astype(np.uint8)


@pytest.mark.parametrize("dataset", ["scenes", "camvid", "cityscapes", "voc"])
def test_lines_separate_classes_that_deuteranopes_confuse(dataset):
    colors = np.array(BENCHMARKS[dataset].palette, np.uint8)
    seen, lines = (oklab(as_deuteranopes_see(each)) for each in (colors, line_colors(colors).repeat(3, 1)))
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)
    alike = [(first, second) for first, second in np.argwhere(apart < 0.15) if first < second]
    assert len(alike) > 4
    for pair in alike:  # on either side of the border
        assert min(np.linalg.norm(lines[one] - seen[other]) for one in pair for other in pair) > 0.25


def test_lines_are_centred_on_borders_and_spare_the_unlined():
    label = np.array([[0, 0, 0, 1, 1, 1, 255, 255]])
    assert np.flatnonzero(class_borders(label, 1)).tolist() == [2, 5]
    assert np.flatnonzero(class_borders(label, 2, unlined=[255])).tolist() == [2, 3]
    image = Image.fromarray(np.full((1, 8, 3), 40, np.uint8))
    overlay = draw_overlay(image, label.clip(0, 1), np.array([[0, 0, 0], [250, 250, 200]], np.uint8))
    assert overlay[0, :, 0].tolist() == [20, 20, 255, *[145] * 5]


# Predictions


def grid(rows: int = 2) -> dict[str, list[np.ndarray]]:
    image = np.full((30, 60, 3), (12, 200, 99), np.uint8)
    truth = np.zeros((30, 60), np.uint8)
    truth[:, 30:] = 255
    return {"image": [image] * rows, "truth": [truth] * rows, "distilled": [np.ones((30, 60), np.int64)] * rows}


def legend(figure) -> list[str]:
    return [text.get_text() for one in figure.legends for text in one.get_texts()]


def test_written_pixels_have_the_colours_of_image_and_palette(tmp_path):
    path = plot_predictions(grid(), PALETTE, NAMES, tmp_path / "grid.png", notes={"truth": "by hand"})
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    of_image = (pixels == (12, 200, 99)).all(1).sum()
    assert of_image > 2 * 300 * 150  # two cells of about 2.7 inches at 150 dpi
    shares = [(pixels == color).all(1).sum() / of_image for color in (*PALETTE, (0, 0, 0))]
    assert shares == pytest.approx([0.5, 1, 0, 0.5], abs=0.03) and shares[2] == 0


def test_titles_notes_and_the_classes_that_occur_are_written(draw):
    columns = {**grid(), "a title of so many words " * 4: grid()["truth"]}
    figure = draw(plot_predictions, columns, PALETTE, NAMES, notes={"distilled": "mIoU 61.2 %"})
    top, long = figure.axes[:3], "a title of so many\nwords a title of so…"
    assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "truth", "distilled", long]
    assert [text.get_text() for axes in top for text in axes.texts] == ["mIoU 61.2 %"]
    assert legend(figure) == ["road", "lamp", "ignored"]
    image, *_ = grid()["image"]
    figure = draw(plot_predictions, {"a": ["3 %", image], "b": [image, image]}, PALETTE, NAMES)
    assert legend(figure) == [] and [text.get_text() for axes in figure.axes for text in axes.texts] == ["3 %"]
    figure = draw(
        plot_predictions, {"a": [image] * 3, "b": [np.full((30, 60), row) for row in range(3)]}, PALETTE, NAMES
    )
    shown = [axes.images[0].get_array()[0, 0].tolist() for axes in figure.axes[1::2]]  # from top to bottom
    assert shown == [list(color) for color in PALETTE]


@pytest.mark.parametrize("count", [24, 30])
def test_a_legend_lists_the_24_largest_classes_and_counts_the_others(draw, count):
    label = np.repeat(np.arange(count, dtype=np.uint8), np.arange(count) + 1)[None]  # class k covers k + 1 columns
    label, names = np.vstack([label, np.full_like(label, 255)]), [f"class {index}" for index in range(count)]
    figure = draw(plot_predictions, {"truth": [label]}, [(index, 0, 0) for index in range(count)], names)
    assert legend(figure) == [*names[-24:], "ignored"] + ["+6 more"] * (count == 30)


def test_invalid_columns_are_refused_and_nothing_is_written(tmp_path):
    for columns, names, message in (
        ({"image": []}, NAMES, "at least one"),
        ({**grid(2), "truth": grid(1)["truth"]}, NAMES, "'image': 2, 'truth': 1"),
        (grid(), NAMES[:2], "2 class names"),
        ({"truth": [np.full((4, 4), 7)]}, NAMES, r"\[7\]"),
    ):
        with pytest.raises(ValueError, match=message):
            plot_predictions(columns, PALETTE, names, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())
