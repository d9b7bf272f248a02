"""IoU by class: the results of one or more networks as grouped bars."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .class_table import Panel, Results, arrange, percent_table
from .figures import FAINT, INK, SERIES_COLORS, STYLE, add_legend, new_figure, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAIN_COLOR, LOSS_COLOR = "#00674B", "#A33B00"  # darker sisters of the series' green and vermilion, for text
NAME_LENGTH, MOST_RESULTS, MOST_EXTREMES = 26, 5, 15
# Lengths in inches; the bars' y coordinates are inches too
BAR, ROW_GAP = 0.2, 0.13
PANEL_HEIGHTS, EXTREMES_HEIGHT = (12.0, 14.0), 10.0  # the highest of one panel, and of two beside each other
BARS_WIDTH, CHARACTER, GAIN_WIDTH, AROUND = 3.4, 0.105, 0.6, 0.5


def plot_class_iou(results: Results, path: str | Path, *, title: str | None = None, order: str = "classes") -> Path:
    """Draws each class's IoU in one or more results as bars with their numbers; the mean is the first row.

    Two results get a column with the gain of the second over the first, in points. Many classes go into two panels.
    Where these would not do either (more than 51 classes of two results), the classes with the largest gains and losses
    of the last result over the first are drawn (of a single result the highest and the lowest), and the panels'
    headings say how many there are.

    Args:
        results: Name of each result, such as "Af-DCD", to its `per_category_iou`: class to fraction 0-1, None or NaN
            where the class is not in the data. The mean is over the other classes.
        path: File to write; its suffix picks the format. Missing folders are made.
        title: Line above the bars.
        order: "classes" (that of the first result) or "gain" (largest first, for two or more results).

    Returns:
        The path written.

    Raises:
        ValueError: If there is no result or more than five, if their classes differ, a value is no fraction, a result
            has no value at all, or the order is unknown or needs a second result.
    """
    return save_figure(_class_iou_figure(results, title, order), path)


def _class_iou_figure(results: Results, title: str | None = None, order: str = "classes") -> Figure:
    import matplotlib

    table = percent_table(results, MOST_RESULTS)
    panels = _panels(table, order)
    limit = 10 * math.ceil(max(np.nanmax(table.values), 1) / 10)
    with matplotlib.rc_context(STYLE):
        figure = _empty_figure(panels, has_title=title is not None)
        for axes, panel in zip(figure.axes, panels, strict=True):
            _frame(axes, panel, limit)
            _draw_bars(axes, panel, list(results))
            if len(results) == 2:
                _write_gains(axes, panel)
        _stress_mean(figure.axes[0], len(results))
        if title is not None:
            figure.suptitle(title)
        _result_legend(figure, list(results), table.means)
    return figure


def _panels(table: Panel, order: str) -> list[Panel]:
    row = _row_height(table.values.shape[1])
    most_extremes = min(MOST_EXTREMES, int(EXTREMES_HEIGHT / row))
    return arrange(table, order, [int(height / row) for height in PANEL_HEIGHTS], most_extremes)


def _row_height(n_results: int) -> float:
    return BAR * n_results + ROW_GAP


def _empty_figure(panels: list[Panel], has_title: bool) -> Figure:
    """An axes for each panel, all as high as the longest needs: bars are equally thick everywhere."""
    longest = max(len(shorten(name, NAME_LENGTH)) for panel in panels for name in panel.names)
    n_results = panels[0].values.shape[1]
    width = BARS_WIDTH + CHARACTER * longest + GAIN_WIDTH * (n_results == 2) + AROUND
    height = _row_height(n_results) * max(len(panel.names) for panel in panels)
    below = 0.75 + 0.25 * math.ceil(n_results / 2)
    figure = new_figure(max(7.0, width * len(panels)), height + below + 0.4 * has_title + 0.4, layout="constrained")
    for axes in figure.subplots(1, len(panels), squeeze=False)[0]:
        axes.set_ylim(height, 0)
        axes.grid(axis="y", visible=False)
    return figure


def _frame(axes: Axes, panel: Panel, limit: int) -> None:
    axes.set_yticks(_middles(panel), [shorten(name, NAME_LENGTH) for name in panel.names])
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, limit * 1.16)  # the number beside the longest bar needs the room
    axes.set_xticks(range(0, limit + 1, 20 if limit > 50 else 10))
    axes.set_xlabel("IoU (%)")
    axes.set_title(panel.heading, pad=20)
    axes.spines["left"].set_bounds(_row_height(panel.values.shape[1]) * len(panel.names), 0)


def _middles(panel: Panel) -> list[float]:
    return [_row_height(panel.values.shape[1]) * (index + 0.5) for index in range(len(panel.names))]


def _stress_mean(axes: Axes, n_results: int) -> None:
    axes.axhspan(0, _row_height(n_results), color="#F0F0F0", zorder=0)
    axes.get_yticklabels()[0].set_fontweight("bold")


def _draw_bars(axes: Axes, panel: Panel, results: list[str]) -> None:
    is_absent = np.isnan(panel.values).all(axis=1)
    for column, (name, color) in enumerate(zip(results, SERIES_COLORS)):  # noqa: B905
        values = panel.values[:, column]
        middles = [middle + BAR * (column - (len(results) - 1) / 2) for middle in _middles(panel)]
        bars = axes.barh(middles, np.nan_to_num(values), height=BAR * 0.88, color=color, label=name)
        texts = ["n/a" if math.isnan(value) else f"{value:.1f}" for value in values]
        texts = ["" if absent else text for text, absent in zip(texts, is_absent, strict=True)]
        axes.bar_label(bars, texts, padding=3, fontsize=10.5)
    for index in np.flatnonzero(is_absent):
        where = {"xy": (0, _middles(panel)[index]), "xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate("not in the data", **where, va="center", fontsize=10.5, color=FAINT)


def _write_gains(axes: Axes, panel: Panel) -> None:
    beside = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(1.13, -0.16, "gain", color=FAINT, **beside)
    for middle, gain in zip(_middles(panel), panel.gain, strict=True):
        if not math.isnan(gain):
            text, color = _signed(gain)
            axes.text(1.13, middle, text, color=color, fontweight="bold", **beside)


def _signed(gain: float) -> tuple[str, str]:
    """The gain in points with its sign, and its colour; what rounds to nothing has neither."""
    text = f"{gain:+.1f}"
    if float(text) == 0:
        return "0.0", INK
    return text.replace("-", "\N{MINUS SIGN}"), GAIN_COLOR if gain > 0 else LOSS_COLOR


def _result_legend(figure: Figure, results: list[str], means: np.ndarray) -> None:
    from matplotlib.patches import Patch

    texts = [f"{name} (mean {mean:.1f} %)" for name, mean in zip(results, means, strict=True)]
    handles = [Patch(color=color, label=text) for text, color in zip(texts, SERIES_COLORS)]  # noqa: B905
    add_legend(figure, handles, handlelength=1.3, handleheight=1.0)
