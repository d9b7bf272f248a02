"""Predictions side by side: images, truths and predictions as a grid, with the classes that occur below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .figures import FAINT, STYLE, new_figure, save_figure
from .palette import IGNORE_INDEX, Palette, as_colors, colorize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

TITLE_LENGTHS, TITLE_LINES = (20, 32), 2  # characters in a line above a column: at full size, at most
MOST_CLASSES = 24  # in the legend
# Lengths in inches
CELL_WIDTH, GAP, MARGIN = 2.7, 0.07, 0.12
TITLE_LINE, LEGEND_LINE, LEGEND_CHARACTER, LEGEND_SWATCH = 0.26, 0.275, 0.105, 0.65


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
        columns: Title to arrays, in drawing order; all columns have the same length. A long title takes two lines.
            `(H, W, 3)` uint8 RGB is shown as it is, an `(H, W)` integer map in its classes' colours, 255 black. Each
            row takes its proportions from its first array.
        palette: `(K, 3)` colours 0-255.
        class_names: K names; the legend lists the classes that occur, in their order. Of more than 24 it lists those
            that cover most of the maps, and says how many more there are.
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
    titles = {title: _title_lines(title) for title in columns}
    above = TITLE_LINE * (max(map(len, titles.values())) + bool(notes)) + MARGIN
    with matplotlib.rc_context(STYLE):
        figure = new_figure(width, above + sum(heights) + GAP * (len(heights) - 1) + below)
        top = figure.get_figheight() - above
        for index, (title, arrays) in enumerate(columns.items()):
            left = MARGIN + index * (CELL_WIDTH + GAP)
            _column_title(figure, (left + CELL_WIDTH / 2) / width, top, titles[title], notes.get(title), bool(notes))
            _draw_column(figure, left, top, arrays, heights, colors)
        if entries:
            _class_legend(figure, entries, per_line)
    return figure


def _names_per_line(entries: list[tuple[str, np.ndarray | None]], width: float) -> int:
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
) -> list[tuple[str, np.ndarray | None]]:
    """Name and colour of each class to list, in class order; what stands for the others has no colour."""
    covered: dict[int, float] = {}
    for array in (array for arrays in columns.values() for array in arrays if array.ndim == 2):
        for index, pixels in zip(*np.unique(array, return_counts=True), strict=True):
            covered[int(index)] = covered.get(int(index), 0.0) + pixels / array.size  # large images count like small
    classes = [index for index in covered if index < len(colors) and index != IGNORE_INDEX]
    listed = sorted(sorted(classes, key=lambda index: (-covered[index], index))[:MOST_CLASSES])
    entries: list[tuple[str, np.ndarray | None]] = [(class_names[index], colors[index]) for index in listed]
    if IGNORE_INDEX in covered:
        entries.append(("ignored", np.zeros(3, np.uint8)))
    return entries + ([(f"+{len(classes) - len(listed)} more", None)] if len(classes) > len(listed) else [])


def _title_lines(title: str) -> list[str]:
    shortest, longest = TITLE_LENGTHS
    wrapped = (textwrap.wrap(title, length) for length in range(shortest, longest + 1))
    fitting = next((lines for lines in wrapped if len(lines) <= TITLE_LINES), None)
    return fitting or textwrap.wrap(title, longest, max_lines=TITLE_LINES, placeholder="…") or [""]


def _column_title(
    figure: Figure, center: float, top: float, lines: list[str], note: str | None, has_notes: bool
) -> None:
    height, bottom = figure.get_figheight(), top + TITLE_LINE * has_notes + GAP
    for number, line in enumerate(reversed(lines)):  # a text each: one of two lines hangs from its upper baseline
        where = (center, (bottom + TITLE_LINE * number) / height)
        _fit(figure.text(*where, line, ha="center", fontsize=15, weight="bold"))
    if note is not None:
        _fit(figure.text(center, (top + GAP) / height, note, ha="center", fontsize=13, color=FAINT))


def _fit(text: Text) -> None:
    """Makes the text smaller until it is no wider than its column."""
    renderer, most = text.figure.canvas.get_renderer(), CELL_WIDTH * text.figure.dpi
    while text.get_window_extent(renderer).width > most:  # step by step: hinted letters do not scale evenly
        text.set_fontsize(text.get_fontsize() - 0.5)


def _show(axes: Axes, array: np.ndarray, colors: np.ndarray) -> None:
    is_map = array.ndim == 2  # blending neighbours would invent colours, hence classes
    shown, interpolation = (colorize(array, colors), "nearest") if is_map else (array, "antialiased")
    axes.imshow(shown, interpolation=interpolation, aspect="auto")
    axes.set_axis_off()


def _class_legend(figure: Figure, entries: list[tuple[str, np.ndarray | None]], per_line: int) -> None:
    from matplotlib.patches import Patch

    edge = {"edgecolor": "#999999", "linewidth": 0.6}
    swatches = [
        Patch(visible=False, label=name) if color is None else Patch(facecolor=color / 255, label=name, **edge)
        for name, color in entries
    ]
    figure.legend(
        handles=swatches, loc="lower center", ncols=per_line, handlelength=1.3, handleheight=1.1, columnspacing=1.4,
        labelspacing=0.45, borderpad=0.0, borderaxespad=0.6, fontsize=13,
    )  # fmt: skip
