"""Training curves: the mIoU and the loss terms of several runs against the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import STYLE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which stay apart for the common kinds of colour blindness; the markers serve grey prints.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
TERM_TITLES = {
    "loss": "Total loss",
    "loss_task": "Task loss",
    "loss_kd": "KD loss (logits)",
    "loss_feature": "Feature loss",
    "loss_contrast": "Contrastive loss",
}
LOG_SCALE_FROM_RATIO = 10.0
MARKERS_PER_CURVE = 8


def plot_training_curves(runs: Mapping[str, list[dict[str, Any]]], path: str | Path) -> Path:
    """Draws the mIoU and every logged loss term against the training step, all runs in each panel.

    Args:
        runs: Name of each run, such as "Af-DCD", to its Trainer's `state.log_history`: entries with "step" and any of
            "eval_mean_iou" (fraction 0-1), "loss" and "loss_<term>". Runs may lack some of these or all.
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
        score_axes, term_axes, figure = _curve_panels(has_scores, len(terms))
        if score_axes is not None:
            percent = {name: (steps, [100 * value for value in values]) for name, (steps, values) in scores.items()}
            _draw_panel(score_axes, percent, "Mean IoU in evaluation", "mIoU (%)", list(runs))
        for axes, term in zip(term_axes, terms, strict=True):
            curves = {name: _series(history, term) for name, history in runs.items()}
            _draw_panel(axes, curves, TERM_TITLES.get(term, term), term, list(runs))
            _use_log_scale_over_decades(axes, curves)
        _run_legend(figure, runs, scores)
    return figure


def _curve_panels(has_scores: bool, n_terms: int) -> tuple[Axes | None, list[Axes], Figure]:
    """Lays out a wide panel for the scores, as high as the one or two rows of loss panels on its right."""
    n_rows = 2 if n_terms > 2 else 1
    n_columns = math.ceil(n_terms / n_rows)
    widths = [1.7] * has_scores + [1.0] * n_columns
    figure = new_figure(max(7.0, 2.8 * sum(widths)), 4.4 if n_rows == 1 else 6.2, layout="constrained")
    grid = figure.add_gridspec(n_rows, len(widths), width_ratios=widths)
    score_axes = figure.add_subplot(grid[:, 0]) if has_scores else None
    cells = [(index // n_columns, int(has_scores) + index % n_columns) for index in range(n_terms)]
    return score_axes, [figure.add_subplot(grid[cell]) for cell in cells], figure


def _draw_panel(
    axes: Axes, curves: Mapping[str, tuple[list[float], list[float]]], title: str, label: str, order: list[str]
) -> None:
    for name, (steps, values) in curves.items():
        if steps:
            every = math.ceil(len(steps) / MARKERS_PER_CURVE)
            axes.plot(steps, values, label=name, markevery=every, **_run_style(order.index(name)))
    axes.set(title=title, xlabel="training step", ylabel=label)
    axes.margins(x=0.03)
    axes.xaxis.get_major_locator().set_params(nbins=5, integer=True)


def _use_log_scale_over_decades(axes: Axes, curves: Mapping[str, tuple[list[float], list[float]]]) -> None:
    values = [value for _, series in curves.values() for value in series if math.isfinite(value)]
    if values and min(values) > 0 and max(values) / min(values) >= LOG_SCALE_FROM_RATIO:
        axes.set_yscale("log")


def _run_style(index: int) -> dict[str, Any]:
    return {
        "color": RUN_COLORS[index % len(RUN_COLORS)],
        "linestyle": "-" if index < len(RUN_COLORS) else "--",
        "marker": RUN_MARKERS[index % len(RUN_MARKERS)],
    }


def _run_legend(figure: Figure, runs: Iterable[str], scores: Mapping[str, tuple[list[float], list[float]]]) -> None:
    from matplotlib.lines import Line2D

    def text(name: str) -> str:
        values = scores[name][1]
        return f"{name} (last mIoU {100 * values[-1]:.1f} %)" if values else name

    handles = [Line2D([], [], label=text(name), **_run_style(index)) for index, name in enumerate(runs)]
    for columns in range(min(len(handles), 3), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.8)
        if columns == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width:
            return
        legend.remove()
