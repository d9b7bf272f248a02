"""Charts of a comparison: order, values, and what they refuse."""

from __future__ import annotations

import pytest
from PIL import Image

from afdcd_hf.charts.comparison import (
    MethodCurve,
    MethodScore,
    _over_time_figure,
    _scores_figure,
    plot_method_scores,
    plot_score_over_time,
)

SCORES = {"alone": MethodScore([0.44, 0.46]), "kd": MethodScore([0.47, 0.49], [0.03, 0.03]), "bad": MethodScore([0.3])}
CURVES = {
    "alone": MethodCurve([10, 20], [0.3, 0.45], [0.0, 0.01]),
    "kd": MethodCurve([30, 60], [0.35, 0.48], [0.0, 0.0]),
}


def test_methods_stand_in_the_order_of_their_means_with_the_gain_beside():
    axes = _scores_figure(SCORES, "").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "alone", "kd"]
    assert [text.get_text() for text in axes.texts] == ["30.00", "45.00", "48.00  (+3.00)"]


def test_each_seed_the_mean_and_the_deviation_are_drawn():
    axes = _scores_figure({"kd": SCORES["kd"]}, "").axes[0]
    marks = {line.get_marker(): list(line.get_xdata()) for line in axes.lines}
    assert marks["o"] == pytest.approx([48.0]) and marks["|"] == pytest.approx([47.0, 49.0])
    (bar,) = axes.containers[0].lines[2]
    assert bar.get_segments()[0][:, 0] == pytest.approx([48 - 2**0.5, 48 + 2**0.5])


def test_curves_run_over_time_and_the_legend_has_the_best_first():
    figure = _over_time_figure(CURVES, "")
    axes, legend = figure.axes[0], figure.legends[0]
    assert axes.get_xlim()[0] == 0
    assert [text.get_text() for text in legend.get_texts()] == ["kd", "alone"]
    colours = [handle.get_color() for handle in legend.legend_handles]
    drawn = {tuple(line.get_xdata()): line.get_color() for line in axes.lines if len(line.get_xdata()) == 2}
    assert colours == [drawn[(30, 60)], drawn[(10, 20)]]


def test_twelve_methods_look_different():
    methods = {f"m{i}": MethodCurve([i, i + 1], [0.1, 0.2], [0, 0]) for i in range(12)}
    lines = _over_time_figure(methods, "").axes[0].lines
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines}) == 12


def test_pictures_are_written_and_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        plot_method_scores(SCORES, tmp_path / name / "scores.png", title="T")
        plot_score_over_time(CURVES, tmp_path / name / "time.png", title="T")
    for picture in ("scores.png", "time.png"):
        assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()
        assert Image.open(tmp_path / "a" / picture).size[0] > 1000


@pytest.mark.parametrize("methods", [{}, {"kd": MethodScore([])}])
def test_scores_of_nothing_are_refused(methods, tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_method_scores(methods, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_curves_of_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_score_over_time({"kd": MethodCurve([], [], [])}, tmp_path / "x.png")
