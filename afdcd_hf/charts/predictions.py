"""Predictions side by side: images, truths and predictions as a grid, with the classes that occur below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .figures import FAINT, STYLE, new_figure, save_figure
from .palette import IGNORE_INDEX, Palette, as_colors, colorize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Lengths in inches
CELL_WIDTH, GAP, MARGIN = 2.7, 0.07, 0.12
TITLE_LINE, LEGEND_LINE, LEGEND_CHARACTER, LEGEND_SWATCH = 0.26, 0.29, 0.105, 0.65


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
    return save_figure(_predictions_figure(columns, palette, class_names, notes or {}), path)


def _predictions_figure(
    columns: Mapping[str, Sequence[np.ndarray]], palette: Palette, class_names: Sequence[str], notes: Mapping[str, str]
) -> Figure:
    import matplotlib

    colors = as_colors(palette)
    _check_grid(columns, colors, class_names, notes)
    entries = _legend_entries(columns, colors, class_names)
    heights = [CELL_WIDTH * array.shape[0] / array.shape[1] for array in next(iter(columns.values()))]
    width = 2 * MARGIN + len(columns) * (CELL_WIDTH + GAP) - GAP
    per_line = _names_per_line(entries, width)
    below = MARGIN + (LEGEND_LINE * math.ceil(len(entries) / per_line) + MARGIN if entries else 0)
    above = TITLE_LINE * (2 if notes else 1) + MARGIN
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, above + sum(heights) + GAP * (len(heights) - 1) + below)
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
