"""Distillation methods side by side: their scores, and their scores against the time they took."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .figures import FAINT, INK, SERIES_COLORS, STYLE, new_figure, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_MARKERS = "os^DvPX*<>ph"
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
    """Draws the mIoU of every method: mean, standard deviation and each seed; the best on top.

    Args:
        methods: Name to scores; at least one seed each.
        path: File to write; its suffix picks the format. Missing folders are made.
        title: Of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: If there is no method, or one without a score.
    """
    return save_figure(_scores_figure(methods, title), path)


def plot_score_over_time(methods: Mapping[str, MethodCurve], path: str | Path, *, title: str = "") -> Path:
    """Draws mIoU against the wall-clock time of training for every method; the last point is the finished network.

    Points before the last belong to networks whose learning rate has not come down yet. Bars show the standard
    deviation at the end.

    Args:
        methods: Name to curve.
        path: File to write; its suffix picks the format. Missing folders are made.
        title: Of the picture.

    Returns:
        The path written.

    Raises:
        ValueError: If there is no method, or one without a point.
    """
    return save_figure(_over_time_figure(methods, title), path)


def _scores_figure(methods: Mapping[str, MethodScore], title: str) -> Figure:
    import matplotlib

    if not methods or any(not score.mean_iou for score in methods.values()):
        raise ValueError("There is nothing to draw: give at least one method, and a score of each.")
    order = sorted(methods, key=lambda name: statistics.mean(methods[name].mean_iou))
    with matplotlib.rc_context(STYLE):
        figure = new_figure(7.5, 1.5 + 0.5 * len(order), layout="constrained")
        axes = figure.add_subplot()
        for row, name in enumerate(order):
            _draw_score(axes, row, methods[name])
        axes.set_yticks(range(len(order)), [shorten(name, _NAME_LENGTH) for name in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.06)
        axes.set_xlabel("mIoU (%): each seed, mean and standard deviation")
        axes.set_title("mean (gain over alone)", loc="right", fontsize=10, fontweight="normal", color=FAINT)
        if title:
            figure.suptitle(title)
    return figure


def _over_time_figure(methods: Mapping[str, MethodCurve], title: str) -> Figure:
    import matplotlib

    if not methods or any(not curve.seconds for curve in methods.values()):
        raise ValueError("There is nothing to draw: give at least one method, and a point of each.")
    best_first = sorted(methods, key=lambda name: -methods[name].mean_iou[-1])
    with matplotlib.rc_context(STYLE):
        figure = new_figure(8.5, 5.0, layout="constrained")
        axes = figure.add_subplot()
        lines = {name: _draw_curve(axes, index, curve) for index, (name, curve) in enumerate(methods.items())}
        axes.set_xlabel("wall-clock time of training (s), evaluations left out")
        axes.set_ylabel("mIoU (%)")
        axes.set_xlim(left=0)
        labels = [shorten(name, _NAME_LENGTH) for name in best_first]
        options = {"loc": "outside right upper", "title": "at the end, best first", "alignment": "left"}
        figure.legend([lines[name] for name in best_first], labels, **options)
        if title:
            figure.suptitle(title)
    return figure


def _draw_score(axes: Axes, row: int, score: MethodScore) -> None:
    percent = [100 * value for value in score.mean_iou]
    mean, color = statistics.mean(percent), FAINT if not score.gains else SERIES_COLORS[0]
    spread = statistics.stdev(percent) if len(percent) > 1 else 0.0
    axes.errorbar(mean, row, xerr=spread, fmt="o", color=color, markersize=9, capsize=5, zorder=3)
    axes.plot(percent, [row + 0.22] * len(percent), "|", color=INK, markersize=7, markeredgewidth=1.2)
    gain = f"  ({100 * statistics.mean(score.gains):+.2f})" if score.gains else ""
    axes.annotate(
        f"{mean:.2f}{gain}", (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
        va="center", fontsize=11,
    )  # fmt: skip


def _draw_curve(axes: Axes, index: int, curve: MethodCurve) -> Line2D:
    style = {
        "color": SERIES_COLORS[index % len(SERIES_COLORS)],
        "linestyle": "-" if index < len(SERIES_COLORS) else "--",
        "marker": _MARKERS[index % len(_MARKERS)],
    }
    percent = [100 * value for value in curve.mean_iou]
    (line,) = axes.plot(curve.seconds, percent, **style)
    if curve.deviation and curve.deviation[-1]:
        end, spread = (curve.seconds[-1], percent[-1]), 100 * curve.deviation[-1]
        axes.errorbar(*end, yerr=spread, color=style["color"], capsize=4, fmt="none")
    return line
