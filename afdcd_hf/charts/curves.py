"""Training curves: the mIoU and the loss terms of several runs against the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import SERIES_COLORS, STYLE, add_legend, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # for grey prints
TERM_TITLES = {
    "loss": "Total loss",
    "loss_task": "Task loss",
    "loss_kd": "KD loss (logits)",
    "loss_feature": "Feature loss",
    "loss_contrast": "Contrastive loss",
}
PANELS_PER_ROW, PANEL_WIDTH, PANEL_HEIGHT = 3, 3.6, 2.8  # inches
LOG_SCALE_FROM_RATIO = 10.0
MARKERS_PER_CURVE = 8

Curves = Mapping[str, tuple[list[float], list[float]]]


def plot_training_curves(runs: Mapping[str, list[dict[str, Any]]], path: str | Path) -> Path:
    """Draws the mIoU and every logged loss term against the training step, all runs in each panel.

    Args:
        runs: Name of each run, such as "Af-DCD", to its Trainer's `state.log_history` (of a finished run:
            `load_history(folder)`): entries with "step" and any of "eval_mean_iou" (fraction 0-1), "loss" and
            "loss_<term>". Runs may lack some of these or all.
        path: File to write; its suffix picks the format (.png, .svg, .pdf). Missing folders are made.

    Returns:
        The path written.

    Raises:
        ValueError: If no run has anything to draw.
    """
    return save_figure(_curves_figure(runs), path)


def _series(history: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], float(entry[key])) for entry in history if key in entry and "step" in entry]
    return [step for step, _ in points], [value for _, value in points]


def _loss_terms(runs: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    keys = {key for history in runs.values() for entry in history for key in entry if "step" in entry}
    logged = {key for key in keys if key == "loss" or key.startswith("loss_")}
    return [term for term in TERM_TITLES if term in logged] + sorted(logged - set(TERM_TITLES))


def _title(term: str) -> str:
    """Of a panel; the terms of several map pairs are numbered, as in `loss_feature_2`."""
    name, _, number = term.rpartition("_")
    if name in TERM_TITLES and number.isdigit():
        return f"{TERM_TITLES[name]}, maps {number}"
    return TERM_TITLES.get(term, term)


def _curves_figure(runs: Mapping[str, list[dict[str, Any]]]) -> Figure:
    import matplotlib

    scores = {name: _series(history, "eval_mean_iou") for name, history in runs.items()}
    terms, has_scores = _loss_terms(runs), any(steps for steps, _ in scores.values())
    if not terms and not has_scores:
        raise ValueError(
            f"Nothing to draw: the histories of {list(runs) or 'no run'} hold neither 'eval_mean_iou' nor a 'loss'; "
            "pass each Trainer's state.log_history after training."
        )
    with matplotlib.rc_context(STYLE):
        figure, panels = _curve_panels(int(has_scores) + len(terms))
        if has_scores:
            percent = {name: (steps, [100 * value for value in values]) for name, (steps, values) in scores.items()}
            _draw_panel(panels[0], percent, "Mean IoU in evaluation")
            panels[0].set_ylabel("mIoU (%)")
        for axes, term in zip(panels[int(has_scores) :], terms, strict=True):
            curves = {name: _series(history, term) for name, history in runs.items()}
            _draw_panel(axes, curves, _title(term))
            _use_log_scale_over_decades(axes, curves)
        _run_legend(figure, scores)
    return figure


def _curve_panels(n_panels: int) -> tuple[Figure, list[Axes]]:
    """Rows of panels with no cell empty: the first panel, the most important one, takes what the others leave."""
    n_columns, n_rows = min(n_panels, PANELS_PER_ROW), math.ceil(n_panels / PANELS_PER_ROW)
    spare = n_columns * n_rows - n_panels
    figure = new_figure(max(7.0, PANEL_WIDTH * n_columns), 0.9 + PANEL_HEIGHT * n_rows, layout="constrained")
    grid = figure.add_gridspec(n_rows, n_columns)
    panels = [figure.add_subplot(grid[0, : spare + 1])]
    cells = [divmod(cell, n_columns) for cell in range(spare + 1, n_columns * n_rows)]
    panels += [figure.add_subplot(grid[cell], sharex=panels[0]) for cell in cells]
    for axes in panels[-n_columns:]:
        axes.set_xlabel("training step")
    return figure, panels


def _draw_panel(axes: Axes, curves: Curves, title: str) -> None:
    for index, (name, (steps, values)) in enumerate(curves.items()):
        if steps:
            every = math.ceil(len(steps) / MARKERS_PER_CURVE)
            axes.plot(steps, values, label=name, markevery=every, **_run_style(index))
    axes.set_title(title)
    axes.margins(x=0.04)
    axes.xaxis.get_major_locator().set_params(nbins=5, integer=True)
    axes.yaxis.get_major_locator().set_params(nbins=6)


def _use_log_scale_over_decades(axes: Axes, curves: Curves) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    values = [value for _, series in curves.values() for value in series if math.isfinite(value)]
    if not values or min(values) <= 0 or max(values) / min(values) < LOG_SCALE_FROM_RATIO:
        return
    axes.set_yscale("log")
    # Few and plain numbers: "0.2", where matplotlib would write a power of ten at each of nine small ticks.
    steps = (1, 2, 5) if max(values) / min(values) < LOG_SCALE_FROM_RATIO**2 else (1,)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _run_style(index: int) -> dict[str, Any]:
    return {
        "color": SERIES_COLORS[index % len(SERIES_COLORS)],
        "linestyle": "-" if index < len(SERIES_COLORS) else "--",
        "marker": RUN_MARKERS[index % len(RUN_MARKERS)],
    }


def _run_legend(figure: Figure, scores: Curves) -> None:
    from matplotlib.lines import Line2D

    def text(name: str) -> str:
        values = [value for value in scores[name][1] if math.isfinite(value)]
        return f"{name} (last mIoU {100 * values[-1]:.1f} %)" if values else name

    handles = [Line2D([], [], label=text(name), **_run_style(index)) for index, name in enumerate(scores)]
    add_legend(figure, handles, handlelength=2.8)
