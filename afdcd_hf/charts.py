"""Pictures of a run: label maps in colour, training curves, and predictions side by side.

Figures are drawn without pyplot, so that nothing here touches a notebook's or another library's state, and sized to
stay readable when a README shows them at half their width. matplotlib is imported on the first drawing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Palette = Sequence[Sequence[int]] | np.ndarray
IGNORE_INDEX = 255
DPI = 150
# Okabe and Ito's colours, which stay apart for the common kinds of colour blindness; the markers serve grey prints.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RUN_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#666666"
STYLE = {
    "font.size": 12, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": "#999999", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.titlesize": 13, "axes.titleweight": "bold", "axes.grid": True, "grid.color": "#E3E3E3",
    "lines.linewidth": 2.0, "lines.markersize": 6, "legend.frameon": False, "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.09,
}  # fmt: skip
TERM_TITLES = {
    "loss": "Total loss",
    "loss_task": "Task loss",
    "loss_kd": "KD loss (logits)",
    "loss_feature": "Feature loss",
    "loss_contrast": "Contrastive loss",
}
LOG_SCALE_FROM_RATIO = 10.0
MARKERS_PER_CURVE = 8


def colorize(label: np.ndarray, palette: Palette, ignore_color: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """Paints a label map in the colours of its classes.

    Args:
        label: `(H, W)` class ids, any integer dtype, 255 = ignored.
        palette: `(K, 3)` colours 0-255, one for each class id.
        ignore_color: Colour of ignored pixels.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        ValueError: If `label` is no 2-D integer array, the palette no list of colours 0-255, or an id other than 255
            has no colour.
    """
    label, colors = np.asarray(label), _as_colors(palette)
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(f"label has shape {label.shape} and dtype {label.dtype}; pass an (H, W) array of class ids.")
    ids = np.unique(label)
    unknown = ids[((ids < 0) | (ids >= len(colors))) & (ids != IGNORE_INDEX)]
    if unknown.size:
        raise ValueError(
            f"The label map holds the ids {unknown.tolist()}, but the palette has colours for 0 to {len(colors) - 1} "
            f"only (and {IGNORE_INDEX} = ignored). Remap the labels or pass the data set's own palette."
        )
    table = np.zeros((max(len(colors), IGNORE_INDEX + 1), 3), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE_INDEX] = ignore_color
    return table[label]


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
    return _save(_curves_figure(runs), path)


def plot_predictions(
    columns: Mapping[str, Sequence[np.ndarray]],
    palette: Palette,
    class_names: Sequence[str],
    path: str | Path,
    *,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Draws images, truths and predictions as a grid: one row for each image, one column for each source.

    Args:
        columns: Title to arrays, in drawing order; all columns have the same length. `(H, W, 3)` uint8 RGB is shown
            as it is, an `(H, W)` integer map in its classes' colours, 255 black. Each row takes its proportions from
            its first array.
        palette: `(K, 3)` colours 0-255.
        class_names: K names; the legend lists the classes that occur.
        path: File to write; its suffix picks the format. Missing folders are made.
        notes: A line under the title of some columns, for example `{"teacher": "mIoU 61.2 %"}`.

    Returns:
        The path written.

    Raises:
        ValueError: If columns are missing, empty or of different lengths, an array is neither RGB nor a label map,
            the names do not match the palette, or a note belongs to no column.
    """
    return _save(_predictions_figure(columns, palette, class_names, notes or {}), path)


def _as_colors(palette: Palette) -> np.ndarray:
    colors = np.asarray(palette)
    is_table = colors.ndim == 2 and colors.shape[1] == 3 and len(colors) and np.issubdtype(colors.dtype, np.integer)
    if not is_table or colors.min() < 0 or colors.max() > 255:
        raise ValueError(
            f"palette has shape {colors.shape} and dtype {colors.dtype}; pass K colours of 3 integers 0 to 255."
        )
    return colors.astype(np.uint8)


def _new_figure(width: float, height: float, **options: Any) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


# Training curves


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
    figure = _new_figure(max(7.0, 2.8 * sum(widths)), 4.4 if n_rows == 1 else 6.2, layout="constrained")
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
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 3), handlelength=2.8)


# Grid of predictions; all lengths in inches

CELL_WIDTH, GAP, MARGIN = 2.7, 0.07, 0.12
TITLE_LINE, LEGEND_LINE, LEGEND_CHARACTER, LEGEND_SWATCH = 0.26, 0.29, 0.105, 0.65


def _predictions_figure(
    columns: Mapping[str, Sequence[np.ndarray]], palette: Palette, class_names: Sequence[str], notes: Mapping[str, str]
) -> Figure:
    import matplotlib

    colors = _as_colors(palette)
    _check_grid(columns, colors, class_names, notes)
    entries = _legend_entries(columns, colors, class_names)
    heights = [CELL_WIDTH * array.shape[0] / array.shape[1] for array in next(iter(columns.values()))]
    width = 2 * MARGIN + len(columns) * (CELL_WIDTH + GAP) - GAP
    per_line = _names_per_line(entries, width)
    below = MARGIN + (LEGEND_LINE * math.ceil(len(entries) / per_line) + MARGIN if entries else 0)
    above = TITLE_LINE * (2 if notes else 1) + MARGIN
    with matplotlib.rc_context(STYLE):
        figure = _new_figure(width, above + sum(heights) + GAP * (len(heights) - 1) + below)
        top = figure.get_figheight() - above
        for index, (title, arrays) in enumerate(columns.items()):
            left = MARGIN + index * (CELL_WIDTH + GAP)
            _column_title(figure, (left + CELL_WIDTH / 2) / width, top, title, notes.get(title), bool(notes))
            _draw_column(figure, left, top, arrays, heights, colors)
        if entries:
            _class_legend(figure, entries, per_line)
    return figure


def _names_per_line(entries: list[tuple[str, np.ndarray]], width: float) -> int:
    longest = max((len(name) for name, _ in entries), default=0)
    fitting = max(1, int(width / (LEGEND_SWATCH + LEGEND_CHARACTER * longest)))
    n_lines = math.ceil(len(entries) / fitting)
    return math.ceil(len(entries) / n_lines) if n_lines else 1  # lines of about equal length


def _draw_column(
    figure: Figure, left: float, top: float, arrays: Sequence[np.ndarray], heights: list[float], colors: np.ndarray
) -> None:
    width, height = figure.get_size_inches()
    for array, cell_height in zip(arrays, heights, strict=True):
        box = (left / width, (top - cell_height) / height, CELL_WIDTH / width, cell_height / height)
        _show(figure.add_axes(box), array, colors)
        top -= cell_height + GAP


def _check_grid(
    columns: Mapping[str, Sequence[np.ndarray]], colors: np.ndarray, class_names: Sequence[str],
    notes: Mapping[str, str],
) -> None:  # fmt: skip
    lengths = {title: len(arrays) for title, arrays in columns.items()}
    if not lengths or len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ValueError(
            f"The columns hold {lengths or 'nothing'} arrays; pass the same number, at least one, in each column."
        )
    if len(class_names) != len(colors):
        raise ValueError(f"{len(class_names)} class names came with {len(colors)} colours; pass one name per colour.")
    if stray := sorted(set(notes) - set(columns)):
        raise ValueError(f"notes={stray} belong to no column; the columns are {list(columns)}.")
    for title, arrays in columns.items():
        for row, array in enumerate(arrays):
            is_rgb = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
            if not is_rgb and not (array.ndim == 2 and np.issubdtype(array.dtype, np.integer)):
                raise ValueError(
                    f"Row {row} of column {title!r} has shape {array.shape} and dtype {array.dtype}; "
                    "pass (H, W, 3) uint8 RGB or an (H, W) integer label map."
                )


def _legend_entries(
    columns: Mapping[str, Sequence[np.ndarray]], colors: np.ndarray, class_names: Sequence[str]
) -> list[tuple[str, np.ndarray]]:
    maps = [array for arrays in columns.values() for array in arrays if array.ndim == 2]
    shown = sorted({int(index) for array in maps for index in np.unique(array)})
    entries = [(class_names[index], colors[index]) for index in shown if index < len(colors) and index != IGNORE_INDEX]
    return entries + ([("ignored", np.zeros(3, np.uint8))] if IGNORE_INDEX in shown else [])


def _column_title(figure: Figure, center: float, top: float, title: str, note: str | None, has_notes: bool) -> None:
    height = figure.get_figheight()
    figure.text(center, (top + TITLE_LINE * has_notes + GAP) / height, title, ha="center", fontsize=15, weight="bold")
    if note is not None:
        figure.text(center, (top + GAP) / height, note, ha="center", fontsize=13, color=FAINT)


def _show(axes: Axes, array: np.ndarray, colors: np.ndarray) -> None:
    is_map = array.ndim == 2  # blending neighbours would invent colours, hence classes
    shown, interpolation = (colorize(array, colors), "nearest") if is_map else (array, "antialiased")
    axes.imshow(shown, interpolation=interpolation, aspect="auto")
    axes.set_axis_off()


def _class_legend(figure: Figure, entries: list[tuple[str, np.ndarray]], per_line: int) -> None:
    from matplotlib.patches import Patch

    edge = {"edgecolor": "#999999", "linewidth": 0.6}
    swatches = [Patch(facecolor=color / 255, label=name, **edge) for name, color in entries]
    figure.legend(
        handles=swatches, loc="lower center", ncols=per_line, handlelength=1.3, handleheight=1.1, columnspacing=1.4,
        labelspacing=0.45, borderpad=0.0, borderaxespad=0.6, fontsize=13,
    )  # fmt: skip
