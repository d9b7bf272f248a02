"""IoU by class: the results of one or more models as grouped bars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import FAINT, INK, SERIES_COLORS, add_legend, save_figure, shorten, styled_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Mapping[str, float | None]]
ORDERS = ("classes", "gain")
MOST_RESULTS, MOST_ROWS, NAME_LENGTH = 5, 40, 26
BAR, ROW_GAP = 0.2, 0.13  # inches; the bars' y coordinates are inches too
GAIN_COLOR, LOSS_COLOR = "#00674B", "#A33B00"  # darker sisters of the series' green and vermilion, for text


def plot_class_iou(results: Results, path: str | Path, *, title: str | None = None, order: str = "classes") -> Path:
    """Draw each class's IoU in one or more results as bars with their numbers; the mean is the first row.

    Two results get a column with the gain of the second over the first, in points. Of more than 40 classes, the 20 with
    the largest gains and the 20 with the largest losses of the last result over the first are drawn (of a single
    result the highest and the lowest), and the heading says so.

    Args:
        results: name of each result, such as "Af-DCD", to its `per_category_iou`: class to fraction 0-1, None or NaN
            where the class is not in the data. The mean is over the other classes.
        path: file to write; its suffix picks the format.
        title: line above the bars; name the data here.
        order: "classes" (that of the first result) or "gain" (largest first, for two or more results).

    Raises:
        ValueError: no result or more than five, classes that differ, a value that is not a fraction, a result without
            any value, or an order that is unknown or needs a second result.
    """
    return save_figure(_class_iou_figure(results, title, order), path)


def _class_iou_figure(results: Results, title: str | None = None, order: str = "classes") -> Figure:
    names, values = _percent(results)
    means = np.nanmean(values, axis=0)
    rows, heading = _shown_rows(names, values, order)
    names, values = ["mean", *(names[row] for row in rows)], np.vstack([means, values[rows]])
    row_height = BAR * len(results) + ROW_GAP
    height = row_height * len(names)
    with styled_figure(max(7.0, 6.0 + 0.105 * NAME_LENGTH), height + 1.6) as figure:
        axes = figure.add_subplot()
        _draw_bars(axes, values, list(results), row_height)
        middles = row_height * (np.arange(len(names)) + 0.5)
        axes.set_yticks(middles, [shorten(name, NAME_LENGTH) for name in names])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.axhspan(0, row_height, color="#F0F0F0", zorder=0)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        limit = 10 * math.ceil(max(np.nanmax(values), 1) / 10)
        axes.set(ylim=(height, 0), xlim=(0, 1.16 * limit), xticks=range(0, limit + 1, 20 if limit > 50 else 10))
        axes.set_xlabel("IoU (%)")
        axes.set_title("\n".join(filter(None, (title, heading))), pad=20)
        if len(results) == 2:
            _write_gains(axes, middles, values[:, 1] - values[:, 0])
        _result_legend(figure, list(results), means)
    return figure


def _percent(results: Results) -> tuple[list[str], np.ndarray]:
    """Class names of the first result, and `(K, R)` percent with NaN where a class is not in the data."""
    if not 1 <= len(results) <= MOST_RESULTS:
        raise ValueError(f"{len(results)} results were passed; one to {MOST_RESULTS} fit in one chart.")
    (first, names), *others = ((name, list(classes)) for name, classes in results.items())
    for other, theirs in others:
        if difference := sorted(set(names) ^ set(theirs)):
            more = f" and {len(difference) - 10} more" if len(difference) > 10 else ""
            raise ValueError(
                f"The classes of {first!r} and {other!r} differ: only one of them has {difference[:10]}{more}. "
                "Compare results on the same dataset."
            )
    for result, classes in results.items():
        given = {name: value for name, value in classes.items() if value is not None and not math.isnan(value)}
        if not given:
            raise ValueError(f"{result!r} has no IoU of any class; evaluate it on data with labels.")
        for name, value in given.items():
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{result!r} gives {name!r} an IoU of {value}; pass fractions from 0 to 1, not percent."
                )
    columns = [[classes[name] for name in names] for classes in results.values()]
    return names, 100 * np.array(columns, dtype=float).T  # None becomes NaN


def _shown_rows(names: list[str], values: np.ndarray, order: str) -> tuple[list[int], str]:
    """The classes to draw, from top to bottom, and what the heading says of the choice."""
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is unknown; known are {', '.join(ORDERS)}.")
    if order == "gain" and values.shape[1] < 2:
        raise ValueError("order='gain' compares the last result with the first; pass a second one or order='classes'.")
    single = values.shape[1] == 1
    ranked = values[:, 0] if single else values[:, -1] - values[:, 0]
    falling = [int(row) for row in np.argsort(-ranked, kind="stable")]  # NaN comes last
    if len(names) > MOST_ROWS:
        known, half = [row for row in falling if not math.isnan(ranked[row])], MOST_ROWS // 2
        if len(known) > MOST_ROWS:
            what = ("highest", "lowest") if single else ("largest gains", "largest losses")
            heading = f"{half} {what[0]} and {half} {what[1]} of {len(names)} classes"
            return known[:half] + known[-half:], heading
        return known, f"{len(known)} of {len(names)} classes are in the data"
    return (falling if order == "gain" else list(range(len(names)))), ""


def _draw_bars(axes: Axes, values: np.ndarray, results: list[str], row_height: float) -> None:
    is_absent = np.isnan(values).all(axis=1)
    middles = row_height * (np.arange(len(values)) + 0.5)
    for column, name in enumerate(results):
        shift = BAR * (column - (len(results) - 1) / 2)
        bars = axes.barh(
            middles + shift, np.nan_to_num(values[:, column]), 0.88 * BAR, color=SERIES_COLORS[column], label=name
        )
        texts = ["n/a" if math.isnan(value) else f"{value:.1f}" for value in values[:, column]]
        texts = ["" if absent else text for text, absent in zip(texts, is_absent, strict=True)]
        axes.bar_label(bars, texts, padding=3, fontsize=10.5)
    for row in np.flatnonzero(is_absent):
        axes.annotate(
            "not in the data", (0, middles[row]), (3, 0), textcoords="offset points", va="center", fontsize=10.5,
            color=FAINT,
        )  # fmt: skip


def _write_gains(axes: Axes, middles: np.ndarray, gains: np.ndarray) -> None:
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(1.13, -0.16, "gain", color=FAINT, **beside)
    for middle, gain in zip(middles, gains, strict=True):
        if not math.isnan(gain):
            text = f"{gain:+.1f}".replace("-", "\N{MINUS SIGN}")
            is_zero = float(f"{gain:.1f}") == 0
            color = INK if is_zero else GAIN_COLOR if gain > 0 else LOSS_COLOR
            axes.text(1.13, middle, "0.0" if is_zero else text, color=color, fontweight="bold", **beside)


def _result_legend(figure: Figure, results: list[str], means: np.ndarray) -> None:
    from matplotlib.patches import Patch

    texts = [f"{name} (mean {mean:.1f} %)" for name, mean in zip(results, means, strict=True)]
    add_legend(figure, [Patch(color=SERIES_COLORS[index], label=text) for index, text in enumerate(texts)])
