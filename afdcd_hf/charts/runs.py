"""Charts of runs: mIoU and loss terms over the steps; scores of methods, also over training time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..structured_files import read_json
from .figures import FAINT, INK, SERIES_COLORS, add_legend, figure_file, series_style, shorten

STATE_NAME = "trainer_state.json"
TERM_TITLES = {
    "loss": "Total loss",
    "loss_task": "Task loss",
    "loss_kd": "KD loss (logits)",
    "loss_feature": "Feature loss",
    "loss_contrast": "Contrastive loss",
}
Histories = Mapping[str, list[dict[str, Any]]]
_NAME_LENGTH = 32


def load_history(folder: str | Path) -> list[dict[str, Any]]:
    """Read the Trainer's `state.log_history` of a run from its `trainer_state.json`, for `plot_training_curves`.

    `folder` is a checkpoint or a run's output folder; of its own state and its checkpoints', the latest is read. A
    FileNotFoundError if there is no such file, a ValueError if it is not a Trainer's state.
    """
    folder = Path(folder)
    found = [path for path in (folder / STATE_NAME, *folder.glob(f"checkpoint-*/{STATE_NAME}")) if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"Neither {folder} nor a checkpoint-* folder in it has a {STATE_NAME}. Pass the --output_dir of a run "
            "that has finished or saved a checkpoint."
        )
    states: list[dict[str, Any]] = [read_json(path, "a Trainer's state") for path in found]
    for path, state in zip(found, states, strict=True):
        if not isinstance(state.get("log_history"), list):
            raise ValueError(f"{path} has no list 'log_history'; pass the output folder of a training.")
    # After a resumed run was interrupted, a checkpoint may be later than the folder's state; max prefers the first.
    return max(states, key=lambda state: state.get("global_step", 0))["log_history"]


def plot_training_curves(runs: Histories, path: str | Path, *, title: str | None = None) -> Path:
    """Draw the mIoU and every logged loss term over the training steps, with all runs in each panel.

    Args:
        runs: name of each run -> its Trainer's `state.log_history` (see `load_history`): entries with "step" and any of
            "eval_mean_iou" (fraction 0-1), "loss" and "loss_<term>". A total equal to the task loss is drawn only once.
        path: file to write; its suffix determines the format (.png, .svg, .pdf).
        title: line above the panels; name the data here.

    A ValueError if no run has anything to draw.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullLocator

    path = Path(path)
    scores = {name: _series(history, "eval_mean_iou", 100) for name, history in runs.items()}
    panels = {"Mean IoU in evaluation": scores} if any(scores.values()) else {}
    losses = {term: {name: _series(runs[name], term) for name in runs} for term in _loss_terms(runs)}
    for name, points in losses.get("loss", {}).items():  # without distillation the total is the task loss
        if points == losses.get("loss_task", {}).get(name):
            losses["loss"][name] = []
    panels |= {_title(term): curves for term, curves in losses.items() if any(curves.values())}
    if not panels:
        raise ValueError(
            f"Nothing to draw: the histories of {list(runs) or 'no run'} have neither 'eval_mean_iou' nor a 'loss'; "
            "pass each Trainer's state.log_history after training."
        )
    styles = {name: series_style(index) for index, name in enumerate(runs)}
    columns, rows = min(len(panels), 3), math.ceil(len(panels) / 3)
    with figure_file(path, max(7.0, 3.6 * columns), 0.9 + 2.8 * rows + 0.3 * bool(title)) as figure:
        figure.suptitle(title or "")
        first = None
        for index, (heading, curves) in enumerate(panels.items(), 1):
            axes = first = figure.add_subplot(rows, columns, index, sharex=first, title=heading)
            for name, points in curves.items():
                if points:
                    axes.plot(
                        *zip(*points, strict=True), label=name, markevery=math.ceil(len(points) / 8), **styles[name]
                    )
            axes.locator_params(axis="x", nbins=5, integer=True)
            if curves is scores:
                axes.set_ylabel("mIoU (%)")
            else:
                values = [value for points in curves.values() for _, value in points if math.isfinite(value)]
                if values and min(values) > 0 and max(values) >= 10 * min(values):
                    axes.set_yscale("log")
                    # Few ticks and plain numbers such as "0.2"; matplotlib would write powers of ten.
                    axes.yaxis.set_major_locator(
                        LogLocator(subs=(1, 2, 5) if max(values) < 100 * min(values) else (1,))
                    )
                    axes.yaxis.set_minor_locator(NullLocator())
                    axes.yaxis.set_major_formatter("{x:g}")
            if index > len(panels) - columns:
                axes.set_xlabel("training step")
        known = {name: [value for _, value in points if math.isfinite(value)] for name, points in scores.items()}
        last = {name: f" (last mIoU {values[-1]:.1f} %)" if values else "" for name, values in known.items()}
        add_legend(figure, [Line2D([], [], label=name + last[name], **styles[name]) for name in runs])
    return path


def _series(history: Iterable[Mapping[str, Any]], key: str, factor: float = 1) -> list[tuple[float, float]]:
    return [(entry["step"], factor * float(entry[key])) for entry in history if key in entry and "step" in entry]


def _loss_terms(runs: Histories) -> list[str]:
    keys = {key for history in runs.values() for entry in history for key in entry if "step" in entry}
    logged = {key for key in keys if key == "loss" or key.startswith("loss_")}
    return [term for term in TERM_TITLES if term in logged] + sorted(logged - set(TERM_TITLES))


def _title(term: str) -> str:
    """Return a panel's title; terms of several map pairs are numbered, as in `loss_feature_2`."""
    name, _, number = term.rpartition("_")
    if name in TERM_TITLES and number.isdigit():
        return f"{TERM_TITLES[name]}, maps {number}"
    return TERM_TITLES.get(term, term)


def plot_method_scores(methods: Mapping[str, tuple[Sequence[float], float | None]], path: Path, title: str) -> None:
    """Draw each method's mIoU per seed, mean and standard deviation, best on top, and its gain over alone."""
    order = sorted(methods, key=lambda name: statistics.mean(methods[name][0]))
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points"}
    with figure_file(path, 7.5, 1.5 + 0.5 * len(order)) as figure:
        axes = figure.add_subplot()
        for row, name in enumerate(order):
            scores, gain = methods[name]
            percent = [100 * value for value in scores]
            mean, spread = statistics.mean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0
            color = FAINT if gain is None else SERIES_COLORS[0]
            axes.errorbar(mean, row, xerr=spread, fmt="o", color=color, markersize=9, capsize=5, zorder=3)
            axes.plot(percent, [row + 0.22] * len(percent), "|", color=INK, markersize=7, markeredgewidth=1.2)
            text = f"{mean:.2f}" if gain is None else f"{mean:.2f}  ({100 * gain:+.2f})"
            axes.annotate(text, (1.0, row), va="center", fontsize=11, **beside)
        axes.set_yticks(range(len(order)), [shorten(name, _NAME_LENGTH) for name in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("mIoU (%): each seed, mean and standard deviation")
        axes.set_title("mean (gain over alone)", loc="right", fontsize=10, fontweight="normal", color=FAINT)
        figure.suptitle(title)


def plot_score_over_time(methods: Mapping[str, Sequence[tuple[float, float, float]]], path: Path, title: str) -> None:
    """Draw mIoU over wall-clock training time; the last point of a method is the finished model.

    Points are (seconds, mean mIoU, standard deviation over seeds), fractions 0-1; bars show the last one's deviation.
    """
    best_first = sorted(methods, key=lambda name: -methods[name][-1][1])
    longest = max(points[-1][0] for points in methods.values())
    with figure_file(path, 8.5, 5.0) as figure:
        axes, lines = figure.add_subplot(), {}
        for index, (name, points) in enumerate(methods.items()):
            seconds, percent = zip(*((second, 100 * score) for second, score, _ in points), strict=True)
            (lines[name],) = axes.plot(seconds, percent, **series_style(index))
            if spread := 100 * points[-1][2]:
                # Offset the bars: methods with equal budgets end at the same x.
                end = seconds[-1] + 0.012 * longest * (index + 1)
                axes.errorbar(end, percent[-1], yerr=spread, color=lines[name].get_color(), capsize=3, fmt="_")
        axes.set_xlabel("wall-clock training time without evaluations (s)")
        axes.set_ylabel("mIoU (%)")
        axes.set_xlim(left=0)
        labels = [shorten(name, _NAME_LENGTH) for name in best_first]
        spreads = any(points[-1][2] for points in methods.values())
        legend = "at the end, best first" + ";\nbars: standard deviation" * spreads
        options = {"loc": "outside right upper", "title": legend, "alignment": "left"}
        figure.legend([lines[name] for name in best_first], labels, **options)
        figure.suptitle(title)
