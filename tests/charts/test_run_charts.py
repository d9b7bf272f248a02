"""Charts of runs: panels and legends, the logs they are drawn from, and methods side by side."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from afdcd_hf.charts import load_history, plot_training_curves
from afdcd_hf.charts.figures import STYLE, series_style
from afdcd_hf.charts.runs import plot_method_scores, plot_score_over_time

MIOU = "Mean IoU in evaluation"


def history(top: float = 0.6, **terms: float) -> list[dict]:
    """Two logged steps of each term, the second half as large, with evaluations, and the Trainer's summary."""
    losses = [{"step": step, "learning_rate": 0.01, **{k: v / step for k, v in terms.items()}} for step in (1, 2)]
    scores = [{"step": step, "eval_mean_iou": top * step / 2, "eval_loss": 9.0} for step in (1, 2)]
    return [losses[0], scores[0], losses[1], scores[1], {"step": 2, "train_loss": 3.0}]


@pytest.fixture
def panels(draw):
    return lambda runs: {axes.get_title(): axes for axes in draw(plot_training_curves, runs).axes}


def points(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [tuple(xy) for xy in line.get_xydata().tolist()] for line in axes.lines}


def texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def test_each_logged_loss_term_gets_a_panel_and_a_run_has_one_colour_in_all_of_them(panels):
    terms = {"loss_contrast": 2.0, "loss_task": 1.0, "loss_own": 1.0, "loss_kd": 1.0, "loss_feature_2": 8.0}
    runs = {"student alone": history(loss=4.0), "Af-DCD": history(loss=4.0, **terms)}
    drawn = panels(runs)
    assert list(drawn) == [
        MIOU, "Total loss", "Task loss", "KD loss (logits)", "Contrastive loss", "Feature loss, maps 2", "loss_own",
    ]  # fmt: skip
    score = drawn[MIOU]
    assert (score.get_xlabel(), score.get_ylabel()) == ("", "mIoU (%)") and list(points(score)) == list(runs)
    np.testing.assert_allclose(points(score)["Af-DCD"], [(1, 30), (2, 60)])
    assert points(drawn["Feature loss, maps 2"]) == {"Af-DCD": [(1, 8), (2, 4)]}
    assert set(points(drawn["Total loss"])) == {"student alone", "Af-DCD"}
    lines = [line for axes in drawn.values() for line in axes.lines if line.get_label() == "Af-DCD"]
    assert len({line.get_color() for line in lines}) == 1


def test_missing_terms_have_no_panel_and_a_total_equal_to_the_task_loss_is_drawn_once(panels):
    assert list(panels({"a": [{"step": 1, "loss": 1.0}]})) == ["Total loss"]
    assert list(panels({"a": [{"step": 1, "eval_mean_iou": 0.5}], "b": []})) == [MIOU]
    labels_alone = history(loss=4.0, loss_task=4.0)
    assert list(panels({"run": labels_alone})) == [MIOU, "Task loss"]
    drawn = panels({"alone": labels_alone, "kd": history(loss=4.0, loss_task=3.0, loss_kd=1.0)})
    assert list(drawn) == [MIOU, "Total loss", "Task loss", "KD loss (logits)"]
    assert list(points(drawn["Total loss"])) == ["kd"] and list(points(drawn["Task loss"])) == ["alone", "kd"]
    with pytest.raises(ValueError, match="Nothing to draw"):
        panels({"a": [{"step": 1, "learning_rate": 0.1}]})


def test_only_positive_losses_over_a_decade_or_more_get_a_log_scale(panels):
    for scale, *values in (("log", 3.7, 0.22), ("linear", 5, 4), ("linear", 9, 0), ("linear", 9, float("nan"))):
        drawn = panels({"run": [{"step": step, "loss": value} for step, value in enumerate(values)]})
        assert drawn["Total loss"].get_yscale() == scale


def test_panels_share_their_steps_and_the_legend_fits_and_names_every_run_with_its_last_defined_score(draw):
    undefined = [{"step": 1, "eval_mean_iou": 0.5}, {"step": 90, "eval_mean_iou": float("nan")}]
    terms = {"loss": 1.0, "loss_task": 2.0, "loss_kd": 1.0}
    runs = {"the student, distilled (Af-DCD)": history(0.612, **terms), "plain $a_1$": [{"step": 1, "loss": 1.0}]}
    figure = draw(plot_training_curves, {**runs, "b": undefined}, title="camvid val")
    assert figure.get_suptitle() == "camvid val" and len({panel.get_xlim() for panel in figure.axes}) == 1
    assert [panel.get_xlabel() for panel in figure.axes] == ["", *["training step"] * 3]
    (legend,) = figure.legends
    named = ["the student, distilled (Af-DCD) (last mIoU 61.2 %)", "plain $a_1$", "b (last mIoU 50.0 %)"]
    assert texts(legend) == named and not legend.get_texts()[1].get_parse_math()  # not parsed as TeX
    assert 0 < legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width


def test_charts_are_written_reproducibly_without_pyplot_and_do_not_change_the_style(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would raise
    before = {key: matplotlib.rcParams[key] for key in STYLE}
    paths = [plot_training_curves({"$a_1$": history(loss=1.0)}, tmp_path / "new" / f"{name}.svg") for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert Image.open(plot_training_curves({"a": history(loss=1.0)}, tmp_path / "curves.png")).width > 800
    assert {key: matplotlib.rcParams[key] for key in STYLE} == before


# Histories


def write_state(folder, step: int, **rest) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"global_step": step, "log_history": [{"step": step, "loss": 1.0}], **rest}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_a_runs_own_state_is_read_unless_a_checkpoint_is_later(tmp_path):
    for step in (900, 1000):
        write_state(tmp_path / f"checkpoint-{step}", step)
    (tmp_path / "checkpoint-1100").mkdir()  # partially saved
    assert load_history(tmp_path)[0]["step"] == load_history(tmp_path / "checkpoint-1000")[0]["step"] == 1000
    write_state(tmp_path, 950)  # the end of the first part
    assert load_history(tmp_path)[0]["step"] == 1000
    write_state(tmp_path, 1000, log_history=[])
    assert load_history(tmp_path) == []


def test_a_folder_without_a_trainers_state_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name} nor .* has a trainer_state.json"):
        load_history(tmp_path)
    for text in ('{"log_history": [', "[]", '{"log_history": null}'):
        (tmp_path / "trainer_state.json").write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path.name}.*trainer_state.json"):
            load_history(tmp_path)


# Methods side by side

SCORES = {"alone": ([0.44, 0.46], None), "kd": ([0.47, 0.49], 0.03), "bad": ([0.3], None)}
CURVES = {"alone": [(10, 0.3, 0.0), (20, 0.45, 0.01)], "kd": [(30, 0.35, 0.0), (60, 0.48, 0.0)]}


def test_methods_are_sorted_by_mean_and_shown_with_gain_seeds_and_deviation(draw):
    (axes,) = draw(plot_method_scores, SCORES, title="").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "alone", "kd"]
    assert [text.get_text() for text in axes.texts] == ["30.00", "45.00", "48.00  (+3.00)"]
    (axes,) = draw(plot_method_scores, {"kd": SCORES["kd"]}, title="").axes
    marks = {line.get_marker(): list(line.get_xdata()) for line in axes.lines}
    assert marks["o"] == pytest.approx([48.0]) and marks["|"] == pytest.approx([47.0, 49.0])
    (bar,) = axes.containers[0].lines[2]
    assert bar.get_segments()[0][:, 0] == pytest.approx([48 - 2**0.5, 48 + 2**0.5])


def test_curves_are_drawn_over_time_and_the_legend_lists_the_best_first(draw):
    figure = draw(plot_score_over_time, CURVES, title="")
    axes, legend = figure.axes[0], figure.legends[0]
    assert axes.get_xlim()[0] == 0 and texts(legend) == ["kd", "alone"]
    colours = [handle.get_color() for handle in legend.legend_handles]
    drawn = {tuple(line.get_xdata()): line.get_color() for line in axes.lines if len(line.get_xdata()) == 2}
    assert colours == [drawn[(30, 60)], drawn[(10, 20)]]
    assert legend.get_title().get_text() == "at the end, best first;\nbars: standard deviation"
    styles = [series_style(index) for index in range(12)]
    assert len({tuple(style.values()) for style in styles}) == 12
