"""Training curves: the mIoU and the loss terms of several runs against the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .figures import add_legend, save_figure, series_style, styled_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TERM_TITLES = {
    "loss": "Total loss",
    "loss_task": "Task loss",
    "loss_kd": "KD loss (logits)",
    "loss_feature": "Feature loss",
    "loss_contrast": "Contrastive loss",
}
Histories = Mapping[str, list[dict[str, Any]]]


def plot_training_curves(runs: Histories, path: str | Path) -> Path:
    """Draw the mIoU and every logged loss term against the training step, all runs in each panel.

    Args:
        runs: name of each run, such as "Af-DCD", to its Trainer's `state.log_history` (of a finished run:
            `load_history(folder)`): entries with "step" and any of "eval_mean_iou" (fraction 0-1), "loss" and
            "loss_<term>". A total that equals the only term is drawn once.
        path: file to write; its suffix picks the format (.png, .svg, .pdf).

    Raises:
        ValueError: no run has anything to draw.
    """
    return save_figure(_curves_figure(runs), path)


def _curves_figure(runs: Histories) -> Figure:
    scores = {name: _series(history, "eval_mean_iou", 100) for name, history in runs.items()}
    panels = {"Mean IoU in evaluation": scores} if any(steps for steps, _ in scores.values()) else {}
    panels |= {_title(term): {name: _series(runs[name], term) for name in runs} for term in _loss_terms(runs)}
    if not panels:
        raise ValueError(
            f"Nothing to draw: the histories of {list(runs) or 'no run'} hold neither 'eval_mean_iou' nor a 'loss'; "
            "pass each Trainer's state.log_history after training."
        )
    columns, rows = min(len(panels), 3), math.ceil(len(panels) / 3)
    with styled_figure(max(7.0, 3.6 * columns), 0.9 + 2.8 * rows) as figure:
        first = None
        for index, (title, curves) in enumerate(panels.items()):
            axes = first = figure.add_subplot(rows, columns, index + 1, sharex=first)
            _draw_panel(axes, curves, title)
            if curves is scores:
                axes.set_ylabel("mIoU (%)")
            else:
                _use_log_scale_over_a_decade(axes, curves)
            if index >= len(panels) - columns:
                axes.set_xlabel("training step")
        _run_legend(figure, scores)
    return figure


def _series(history: Iterable[Mapping[str, Any]], key: str, factor: float = 1) -> tuple[list[float], list[float]]:
    points = [(entry["step"], factor * float(entry[key])) for entry in history if key in entry and "step" in entry]
    return [step for step, _ in points], [value for _, value in points]


def _loss_terms(runs: Histories) -> list[str]:
    keys = {key for history in runs.values() for entry in history for key in entry if "step" in entry}
    logged = {key for key in keys if key == "loss" or key.startswith("loss_")}
    if logged == {"loss", "loss_task"}:  # trained on the labels alone: the total is the task loss
        logged = {"loss_task"}
    return [term for term in TERM_TITLES if term in logged] + sorted(logged - set(TERM_TITLES))


def _title(term: str) -> str:
    """Of a panel; the terms of several map pairs are numbered, as in `loss_feature_2`."""
    name, _, number = term.rpartition("_")
    if name in TERM_TITLES and number.isdigit():
        return f"{TERM_TITLES[name]}, maps {number}"
    return TERM_TITLES.get(term, term)


def _draw_panel(axes: Axes, curves: Mapping[str, tuple[list[float], list[float]]], title: str) -> None:
    for index, (name, (steps, values)) in enumerate(curves.items()):
        if steps:
            axes.plot(steps, values, label=name, markevery=math.ceil(len(steps) / 8), **series_style(index))
    axes.set_title(title)
    axes.locator_params(axis="x", nbins=5, integer=True)


def _use_log_scale_over_a_decade(axes: Axes, curves: Mapping[str, tuple[list[float], list[float]]]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    values = [value for _, series in curves.values() for value in series if math.isfinite(value)]
    if not values or min(values) <= 0 or max(values) / min(values) < 10:
        return
    axes.set_yscale("log")
    # Few and plain numbers: "0.2", where matplotlib would write a power of ten at each of nine small ticks.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) / min(values) < 100 else (1,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _run_legend(figure: Figure, scores: Mapping[str, tuple[list[float], list[float]]]) -> None:
    from matplotlib.lines import Line2D

    def text(name: str) -> str:
        values = [value for value in scores[name][1] if math.isfinite(value)]
        return f"{name} (last mIoU {values[-1]:.1f} %)" if values else name

    add_legend(figure, [Line2D([], [], label=text(name), **series_style(index)) for index, name in enumerate(scores)])
