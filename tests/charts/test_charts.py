"""Charts: colours by hand, what a figure's panels hold, and the pixels of the written pictures."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from afdcd_hf.charts import colorize, plot_predictions, plot_training_curves
from afdcd_hf.charts.curves import _curves_figure
from afdcd_hf.charts.figures import STYLE
from afdcd_hf.charts.predictions import _predictions_figure

PALETTE = [(128, 64, 128), (250, 170, 30), (0, 0, 230)]
NAMES = ["road", "lamp", "car"]


def history(top: float = 0.6, **terms: float) -> list[dict]:
    """Two logged steps of each term, halving, one evaluation at each, and the Trainer's closing summary."""
    losses = [{"step": step, "learning_rate": 0.01, **{k: v / step for k, v in terms.items()}} for step in (1, 2)]
    scores = [{"step": step, "eval_mean_iou": top * step / 2, "eval_loss": 9.0} for step in (1, 2)]
    return [losses[0], scores[0], losses[1], scores[1], {"step": 2, "train_loss": 3.0}]


def panels(runs: dict[str, list[dict]]) -> dict[str, object]:
    return {axes.get_title(): axes for axes in _curves_figure(runs).axes}


def points(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(xy) for xy in line.get_xydata().tolist()] for line in axes.lines}


# colorize


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_each_id_gets_its_colour_and_255_the_ignore_colour(dtype):
    painted = colorize(np.array([[0, 2, 255], [1, 1, 0]], dtype), PALETTE, ignore_color=(9, 8, 7))
    expected = [[PALETTE[0], PALETTE[2], (9, 8, 7)], [PALETTE[1], PALETTE[1], PALETTE[0]]]
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[list(color) for color in row] for row in expected]


def test_ignored_pixels_are_black_unless_told_otherwise():
    assert colorize(np.full((2, 2), 255, np.uint8), np.array(PALETTE)).tolist() == [[[0, 0, 0]] * 2] * 2


@pytest.mark.parametrize("bad", [3, 254, -1, 256])
def test_an_id_without_a_colour_is_named(bad):
    with pytest.raises(ValueError, match=rf"\[{bad}\].*0 to 2"):
        colorize(np.array([[0, bad]]), PALETTE)


@pytest.mark.parametrize("label", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), np.zeros(4, np.uint8)])
def test_a_label_that_is_no_map_of_ids_is_refused(label):
    with pytest.raises(ValueError, match="shape"):
        colorize(label, PALETTE)


@pytest.mark.parametrize("palette", [[], [(1, 2)], [(0, 0, 256)], [(0.1, 0.5, 1.0)]])
def test_a_palette_that_is_no_list_of_colours_is_refused(palette):
    with pytest.raises(ValueError, match="palette"):
        colorize(np.zeros((1, 1), np.uint8), palette)


# Training curves


def test_the_left_panel_shows_percent_against_step_for_each_run():
    runs = {"student alone": history(0.5), "Af-DCD": history(0.6)}
    axes = panels(runs)["Mean IoU in evaluation"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("training step", "mIoU (%)")
    drawn = points(axes)
    assert list(drawn) == list(runs)
    np.testing.assert_allclose(drawn["student alone"], [(1, 25), (2, 50)])
    np.testing.assert_allclose(drawn["Af-DCD"], [(1, 30), (2, 60)])


def test_each_logged_loss_term_gets_a_panel_and_other_keys_none():
    runs = {
        "student alone": history(loss=4.0),
        "Af-DCD": history(loss=4.0, loss_contrast=2.0, loss_task=1.0, loss_own=1.0, loss_kd=1.0, loss_feature=8.0),
    }
    titles = ["Mean IoU in evaluation", "Total loss", "Task loss", "KD loss (logits)", "Feature loss",
              "Contrastive loss", "loss_own"]  # fmt: skip
    assert list(panels(runs)) == titles
    assert points(panels(runs)["Feature loss"]) == {"Af-DCD": [(1, 8), (2, 4)]}
    assert set(points(panels(runs)["Total loss"])) == {"student alone", "Af-DCD"}


def test_a_run_keeps_its_colour_in_every_panel():
    runs = {"student alone": history(loss=4.0), "Af-DCD": history(loss=4.0, loss_kd=1.0)}
    lines = [line for axes in panels(runs).values() for line in axes.lines if line.get_label() == "Af-DCD"]
    colors = {line.get_color() for line in lines}
    assert len(colors) == 1


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1000.0, 10.0), "log"), ((5.0, 4.0), "linear"), ((1000.0, 0.0), "linear"), ((1000.0, float("nan")), "linear")],
)
def test_only_positive_losses_over_a_decade_or_more_get_a_log_scale(values, scale):
    log = [{"step": step, "loss": value} for step, value in enumerate(values)]
    assert panels({"run": log})["Total loss"].get_yscale() == scale


def test_the_legend_names_every_run_with_its_last_score():
    figure = _curves_figure({"Af-DCD": history(0.612), "plain": [{"step": 1, "loss": 1.0}]})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Af-DCD (last mIoU 61.2 %)", "plain"]


def test_all_panels_share_their_steps_and_the_lowest_of_each_column_name_them():
    runs = {"a": history(loss=1.0, loss_task=1.0, loss_kd=1.0), "b": [{"step": 90, "loss": 1.0}]}
    axes = _curves_figure(runs).axes
    assert len({panel.get_xlim() for panel in axes}) == 1
    assert [panel.get_xlabel() for panel in axes] == ["", "training step", "training step", "training step"]


def test_a_total_that_is_the_task_loss_alone_is_drawn_once():
    assert list(panels({"run": history(loss=4.0, loss_task=4.0)})) == ["Mean IoU in evaluation", "Task loss"]


def test_ticks_of_a_log_scale_are_few_and_plain_numbers():
    figure = _curves_figure({"a": [{"step": 1, "loss": 3.7}, {"step": 2, "loss": 0.22}]})
    figure.canvas.draw()
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    ticks = zip(axes.yaxis.get_majorticklocs(), axes.get_yticklabels(), strict=True)
    assert [text.get_text() for tick, text in ticks if low <= tick <= high] == ["0.2", "0.5", "1", "2"]
    assert not axes.yaxis.get_minorticklocs().size


def test_an_undefined_last_score_is_not_written():
    figure = _curves_figure({"a": [{"step": 1, "eval_mean_iou": 0.5}, {"step": 2, "eval_mean_iou": float("nan")}]})
    assert figure.legends[0].get_texts()[0].get_text() == "a (last mIoU 50.0 %)"


def test_the_same_runs_give_the_same_bytes_and_a_dollar_is_a_dollar(tmp_path):
    paths = [plot_training_curves({"$a_1$": history(loss=1.0)}, tmp_path / f"{name}.svg") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    figure = _curves_figure({"$a_1$": history(loss=1.0)})
    assert not figure.legends[0].get_texts()[0].get_parse_math()


def test_a_long_legend_is_broken_into_lines_that_fit_the_figure():
    names = ("the teacher of them all", "the student alone", "the student, distilled (Af-DCD)")
    figure = _curves_figure({name: history(loss=1.0, loss_task=1.0) for name in names})
    (legend,) = figure.legends
    extent = legend.get_window_extent(figure.canvas.get_renderer())
    assert 0 < extent.width <= figure.bbox.width and len(legend.get_texts()) == 3


def test_runs_without_evaluations_or_without_losses_are_drawn():
    assert list(panels({"a": [{"step": 1, "loss": 1.0}]})) == ["Total loss"]
    assert list(panels({"a": [{"step": 1, "eval_mean_iou": 0.5}], "b": []})) == ["Mean IoU in evaluation"]


@pytest.mark.parametrize("runs", [{}, {"a": []}, {"a": [{"step": 1, "learning_rate": 0.1}]}])
def test_nothing_to_draw_is_an_error_and_writes_nothing(runs, tmp_path):
    with pytest.raises(ValueError, match="Nothing to draw"):
        plot_training_curves(runs, tmp_path / "curves.png")
    assert not list(tmp_path.iterdir())


def test_curves_are_written_without_pyplot_and_leave_the_style_alone(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    before = {key: matplotlib.rcParams[key] for key in STYLE}
    path = plot_training_curves({"a": history(loss=1.0)}, tmp_path / "new" / "curves.png")
    assert path == tmp_path / "new" / "curves.png"
    assert Image.open(path).width > 800
    assert {key: matplotlib.rcParams[key] for key in STYLE} == before


# Predictions


def grid(rows: int = 2) -> dict[str, list[np.ndarray]]:
    image = np.full((30, 60, 3), (12, 200, 99), np.uint8)
    truth = np.zeros((30, 60), np.uint8)
    truth[:, 30:] = 255
    return {"image": [image] * rows, "truth": [truth] * rows, "distilled": [np.ones((30, 60), np.int64)] * rows}


def test_written_pixels_are_the_images_and_the_palettes_own_colours(tmp_path):
    path = plot_predictions(grid(), PALETTE, NAMES, tmp_path / "grid.png", notes={"truth": "by hand"})
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    of_image = (pixels == (12, 200, 99)).all(1).sum()
    assert of_image > 2 * 300 * 150  # two cells of about 2.7 inches at 150 dpi

    def share(color):
        return (pixels == color).all(1).sum() / of_image

    assert share(PALETTE[1]) == pytest.approx(1, abs=0.03)
    assert share(PALETTE[0]) == pytest.approx(0.5, abs=0.03)
    assert share((0, 0, 0)) == pytest.approx(0.5, abs=0.03)
    assert share(PALETTE[2]) == 0


def test_titles_notes_and_the_classes_that_occur_are_written():
    figure = _predictions_figure(grid(), PALETTE, NAMES, {"distilled": "mIoU 61.2 %"})
    top = figure.axes[:3]
    assert [axes.get_title() for axes in top] == ["image", "truth", "distilled"]
    assert [text.get_text() for axes in top for text in axes.texts] == ["mIoU 61.2 %"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["road", "lamp", "ignored"]
    assert len(figure.axes) == 6


def test_columns_run_left_to_right_and_rows_top_to_bottom():
    columns = grid(3)
    columns["distilled"] = [np.full((30, 60), row) for row in range(3)]
    figure = _predictions_figure(columns, PALETTE, NAMES, {})
    figure.canvas.draw()
    boxes = np.array([axes.get_position().bounds for axes in figure.axes]).reshape(3, 3, 4)
    assert (np.diff(boxes[..., 0], axis=1) > 0).all() and (np.diff(boxes[..., 1], axis=0) < 0).all()
    shown = [axes.images[0].get_array()[0, 0].tolist() for axes in figure.axes[2::3]]
    assert shown == [list(color) for color in PALETTE]


def test_images_alone_need_no_legend(tmp_path):
    figure = _predictions_figure({"image": grid()["image"]}, PALETTE, NAMES, {})
    assert figure.legends == []


def test_columns_of_different_lengths_are_named_with_their_lengths(tmp_path):
    columns = grid()
    columns["truth"] = columns["truth"][:1]
    with pytest.raises(ValueError, match="'image': 2, 'truth': 1"):
        plot_predictions(columns, PALETTE, NAMES, tmp_path / "grid.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("columns", "names", "notes", "message"),
    [
        ({}, NAMES, None, "nothing"),
        ({"image": []}, NAMES, None, "at least one"),
        (grid(), NAMES[:2], None, "2 class names"),
        (grid(), NAMES, {"techer": "x"}, "techer"),
        ({"image": [np.zeros((4, 4, 3))]}, NAMES, None, "'image'.*float64"),
        ({"truth": [np.full((4, 4), 7)]}, NAMES, None, r"\[7\]"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(columns, names, notes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot_predictions(columns, PALETTE, names, tmp_path / "grid.png", notes=notes)


def many_classes(count: int = 30) -> tuple[np.ndarray, list[str]]:
    """A map in which class k covers k + 1 columns, and the classes' names."""
    label = np.repeat(np.arange(count, dtype=np.uint8), np.arange(count) + 1)[None]
    return label, [f"class {index}" for index in range(count)]


def test_a_long_legend_lists_the_classes_that_cover_most_and_counts_the_others():
    label, names = many_classes(30)
    label = np.vstack([label, np.full_like(label, 255)])
    figure = _predictions_figure({"truth": [label]}, [(index, 0, 0) for index in range(30)], names, {})
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*names[6:], "ignored", "+6 more"]


def test_up_to_24_classes_are_all_listed():
    label, names = many_classes(24)
    figure = _predictions_figure({"truth": [label]}, [(index, 0, 0) for index in range(24)], names, {})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_long_titles_take_two_lines_and_no_title_reaches_into_the_next_column():
    titles = ["image", "student, distilled (Af-DCD)", "a title of so many words " * 4]
    figure = _predictions_figure({title: grid()["truth"] for title in titles}, PALETTE, NAMES, {})
    figure.canvas.draw()
    drawn = [axes.title for axes in figure.axes[:3]]
    assert [text.get_text().count("\n") for text in drawn] == [0, 1, 1] and drawn[2].get_text().endswith("…")
    extents = [text.get_window_extent() for text in drawn]
    assert all(left.x1 <= right.x0 for left, right in zip(extents, extents[1:], strict=False))
    assert max(extent.y1 for extent in extents) <= figure.bbox.height


def test_terms_of_several_map_pairs_have_numbered_titles():
    from afdcd_hf.charts.curves import _title

    assert _title("loss_feature_2") == "Feature loss, maps 2" and _title("loss_kd") == "KD loss (logits)"
    assert _title("loss_own_7x") == "loss_own_7x"
