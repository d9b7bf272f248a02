"""Predictions side by side: images, truths and predictions as a grid, with the classes that occur below."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .figures import FAINT, save_figure, styled_figure
from .label_maps import IGNORE_INDEX, Palette, as_colors, colorize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES = 24  # in the legend
CELL_WIDTH, TITLE_LENGTH = 2.7, 22  # inches, characters in a line


def plot_predictions(
    columns: Mapping[str, Sequence[np.ndarray]],
    palette: Palette,
    class_names: Sequence[str],
    path: str | Path,
    *,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Draw images, truths and predictions as a grid: one row for each image, one column for each source.

    Args:
        columns: title to arrays, in drawing order; all columns have the same length. `(H, W, 3)` uint8 RGB is shown as
            it is, an `(H, W)` integer map in its classes' colours, 255 black. Each row takes its proportions from its
            first array.
        palette: `(K, 3)` colours 0-255.
        class_names: K names; the legend lists the classes that occur, in their order. Of more than 24 it lists those
            that cover most of the maps, and says how many more there are.
        path: file to write; its suffix picks the format.
        notes: a line under the title of some columns, for example `{"teacher": "mIoU 61.2 %"}`.

    Raises:
        ValueError: columns are missing, empty or of different lengths, an array is neither RGB nor a label map, the
            names do not match the palette, or a note belongs to no column.
    """
    return save_figure(_predictions_figure(columns, palette, class_names, notes or {}), path)


def _predictions_figure(
    columns: Mapping[str, Sequence[np.ndarray]], palette: Palette, class_names: Sequence[str], notes: Mapping[str, str]
) -> Figure:
    colors = as_colors(palette)
    _check_grid(columns, colors, class_names, notes)
    entries = _legend_entries(columns, colors, class_names)
    heights = [CELL_WIDTH * array.shape[0] / array.shape[1] for array in next(iter(columns.values()))]
    width = CELL_WIDTH * len(columns)
    per_line = max(1, int(width / (0.65 + 0.105 * max((len(name) for name, _ in entries), default=0))))
    below = 0.3 * -(-len(entries) // per_line)
    with styled_figure(width, sum(heights) + 0.8 + 0.1 * len(heights) + below) as figure:
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        grid = figure.subplots(len(heights), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
        for column, (title, arrays) in enumerate(columns.items()):
            heading = textwrap.fill(title, TITLE_LENGTH, max_lines=2, placeholder="…")
            grid[0, column].set_title(heading, fontsize=14, pad=22 if notes else 6)
            if title in notes:
                grid[0, column].annotate(
                    notes[title], (0.5, 1), (0, 5), xycoords="axes fraction", textcoords="offset points", ha="center",
                    color=FAINT,
                )  # fmt: skip
            for axes, array in zip(grid[:, column], arrays, strict=True):
                is_map = array.ndim == 2  # blending neighbours would invent colours, hence classes
                shown, blend = (colorize(array, colors), "nearest") if is_map else (array, "antialiased")
                axes.imshow(shown, interpolation=blend, aspect="auto")
                axes.set_axis_off()
        if entries:
            _class_legend(figure, entries, per_line)
    return figure


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
    covered: Counter[int] = Counter()
    for array in (array for arrays in columns.values() for array in arrays if array.ndim == 2):
        for index, pixels in zip(*np.unique(array, return_counts=True), strict=True):
            covered[int(index)] += pixels / array.size  # large images count like small ones
    classes = [index for index in covered if index < len(colors) and index != IGNORE_INDEX]
    listed = sorted(sorted(classes, key=lambda index: (-covered[index], index))[:MOST_CLASSES])
    entries: list[tuple[str, np.ndarray | None]] = [(class_names[index], colors[index]) for index in listed]
    if IGNORE_INDEX in covered:
        entries.append(("ignored", np.zeros(3, np.uint8)))
    return entries + ([(f"+{len(classes) - len(listed)} more", None)] if len(classes) > len(listed) else [])


def _class_legend(figure: Figure, entries: list[tuple[str, np.ndarray | None]], per_line: int) -> None:
    from matplotlib.patches import Patch

    edge: dict[str, Any] = {"edgecolor": "#999999", "linewidth": 0.6}
    swatches = [
        Patch(visible=False, label=name) if color is None else Patch(facecolor=color / 255, label=name, **edge)
        for name, color in entries
    ]
    figure.legend(handles=swatches, loc="outside lower center", ncols=per_line, handlelength=1.3, columnspacing=1.4)
