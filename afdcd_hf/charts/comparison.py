"""Distillation methods side by side: their scores, and their scores against the time they took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .figures import FAINT, INK, SERIES_COLORS, save_figure, series_style, shorten, styled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME_LENGTH = 32


class MethodScore(NamedTuple):
    """One method: `mean_iou` of each seed (fractions 0-1), and `gains` over the student alone (empty for itself)."""

    mean_iou: Sequence[float]
    gains: Sequence[float] = ()


class MethodCurve(NamedTuple):
    """One method on its way: seconds of training, mean mIoU and its standard deviation over seeds (fractions 0-1)."""

    seconds: Sequence[float]
    mean_iou: Sequence[float]
    deviation: Sequence[float]


def plot_method_scores(methods: Mapping[str, MethodScore], path: str | Path, *, title: str = "") -> Path:
    """Draw the mIoU of every method: mean, standard deviation and each seed; the best on top.

    Args:
        methods: name to scores; at least one seed each.
        path: file to write; its suffix picks the format.
        title: of the chart; name the data and the budget.

    Raises:
        ValueError: there is no method, or one without a score.
    """
    return save_figure(_scores_figure(methods, title), path)


def plot_score_over_time(methods: Mapping[str, MethodCurve], path: str | Path, *, title: str = "") -> Path:
    """Draw mIoU against the wall-clock time of training for every method; the last point is the finished model.

    Points before the last belong to models whose learning rate has not come down yet. Bars show the standard deviation
    at the end; where methods end at the same time they are drawn beside each other.

    Args:
        methods: name to curve.
        path: file to write; its suffix picks the format.
        title: of the chart; name the data and the budget.

    Raises:
        ValueError: there is no method, or one without a point.
    """
    return save_figure(_over_time_figure(methods, title), path)


def _scores_figure(methods: Mapping[str, MethodScore], title: str) -> Figure:
    if not methods or any(not score.mean_iou for score in methods.values()):
        raise ValueError("There is nothing to draw: give at least one method, and a score of each.")
    order = sorted(methods, key=lambda name: statistics.mean(methods[name].mean_iou))
    with styled_figure(7.5, 1.5 + 0.5 * len(order)) as figure:
        axes = figure.add_subplot()
        for row, name in enumerate(order):
            _draw_score(axes, row, methods[name])
        axes.set_yticks(range(len(order)), [shorten(name, _NAME_LENGTH) for name in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mIoU (%): each seed, mean and standard deviation")
        axes.set_title("mean (gain over alone)", loc="right", fontsize=10, fontweight="normal", color=FAINT)
        figure.suptitle(title)
    return figure


def _draw_score(axes: Any, row: int, score: MethodScore) -> None:
    percent = [100 * value for value in score.mean_iou]
    mean, color = statistics.mean(percent), SERIES_COLORS[0] if score.gains else FAINT
    spread = statistics.stdev(percent) if len(percent) > 1 else 0.0
    axes.errorbar(mean, row, xerr=spread, fmt="o", color=color, markersize=9, capsize=5, zorder=3)
    axes.plot(percent, [row + 0.22] * len(percent), "|", color=INK, markersize=7, markeredgewidth=1.2)
    gain = f"  ({100 * statistics.mean(score.gains):+.2f})" if score.gains else ""
    where = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points"}
    axes.annotate(f"{mean:.2f}{gain}", (1.0, row), va="center", fontsize=11, **where)


def _over_time_figure(methods: Mapping[str, MethodCurve], title: str) -> Figure:
    if not methods or any(not curve.seconds for curve in methods.values()):
        raise ValueError("There is nothing to draw: give at least one method, and a point of each.")
    best_first = sorted(methods, key=lambda name: -methods[name].mean_iou[-1])
    longest = max(curve.seconds[-1] for curve in methods.values())
    with styled_figure(8.5, 5.0) as figure:
        axes, lines = figure.add_subplot(), {}
        for index, (name, curve) in enumerate(methods.items()):
            percent = [100 * value for value in curve.mean_iou]
            (lines[name],) = axes.plot(curve.seconds, percent, **series_style(index))
            if curve.deviation and curve.deviation[-1]:
                # Equal budgets end at one x, where bars would hide each other.
                end = curve.seconds[-1] + 0.012 * longest * (index + 1)
                spread, color = 100 * curve.deviation[-1], lines[name].get_color()
                axes.errorbar(end, percent[-1], yerr=spread, color=color, capsize=3, fmt="_")
        axes.set_xlabel("wall-clock time of training (s), evaluations left out")
        axes.set_ylabel("mIoU (%)")
        axes.set_xlim(left=0)
        labels = [shorten(name, _NAME_LENGTH) for name in best_first]
        options = {"loc": "outside right upper", "title": "at the end, best first", "alignment": "left"}
        figure.legend([lines[name] for name in best_first], labels, **options)
        figure.suptitle(title)
    return figure
