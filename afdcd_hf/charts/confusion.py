"""Confusion matrices as heat maps in which the confusions stand out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..metrics.confusion_csv import check_confusion_matrix
from .figures import FAINT, INK, STYLE, new_figure, save_figure, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

NORMALIZATIONS = ("truth", "prediction")
NUMBERS_UP_TO, NAMES_UP_TO = 20, 40  # classes; beyond, cells and ticks are too small for text
NAME_LENGTH, NUMBER_FROM = 20, 0.05  # characters, percent
# Lengths in inches
CELL, SMALL_CELL, LARGE_MAP, CHARACTER, LIST_LINE, KEY = 0.52, 0.27, 8.0, 0.1, 0.31, 0.5
NUMBER_COLUMN = 0.8
COLOR_LAYERS = {"correct": "Blues", "confused": "Oranges"}
KEY_TICKS = (0, 1, 5, 20, 50, 100)  # percent


def plot_confusion_matrix(
    matrix: np.ndarray, class_names: Sequence[str], path: str | Path, *, normalize: str = "truth"
) -> Path:
    """Draws a confusion matrix in percent: correct pixels on the diagonal in blue, confusions in orange.

    Colours follow the square root of the share, so that a confusion of a few percent is seen beside a diagonal near
    100. Up to 20 classes have numbers in the cells (none below 0.05 %); more have a list of the largest confusions
    beside the map instead, and beyond 40 the axes count the classes instead of naming them. Classes without a pixel to
    divide by are hatched.

    Args:
        matrix: `(K, K)` integer pixel counts, rows = truth, such as `evaluate_segmenter`'s "confusion_matrix".
        class_names: K names.
        path: File to write; its suffix picks the format. Missing folders are made.
        normalize: What is 100 %: "truth" (the pixels of each true class, a row; the diagonal is the class's accuracy)
            or "prediction" (the pixels predicted as each class, a column; the diagonal is its precision).

    Returns:
        The path written.

    Raises:
        ValueError: If the matrix is not square, of integers and non-negative, counts no pixel or does not match the
            names, or if the normalisation is unknown.
    """
    return save_figure(_confusion_figure(matrix, class_names, normalize), path)


def _confusion_figure(matrix: np.ndarray, class_names: Sequence[str], normalize: str = "truth") -> Figure:
    import matplotlib

    shares = _percent(check_confusion_matrix(matrix, class_names), normalize)
    names = [shorten(name, NAME_LENGTH) for name in class_names]
    with matplotlib.rc_context(STYLE):
        if len(names) <= NUMBERS_UP_TO:
            figure, axes = _map_alone(names)
            _write_numbers(axes, shares)
        else:
            figure, axes = _map_with_list(names, shares)
        _draw_map(axes, shares)
        _hatch_empty(axes, shares, normalize)
        _label_classes(axes, names)
        kind = {"truth": "true", "prediction": "predicted"}[normalize]
        empty = "\n(hatched: class without pixels)" if np.isnan(shares).any() else ""
        axes.set_title(f"% of the {kind} class's pixels{empty}", loc="left")
    return figure


def _percent(counts: np.ndarray, normalize: str) -> np.ndarray:
    """(K, K) float percent, NaN in the rows (or columns) without a pixel."""
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is unknown; known are {', '.join(NORMALIZATIONS)}.")
    if not counts.sum():
        raise ValueError("The confusion matrix counts no pixel; evaluate on data with labels.")
    whole = counts.sum(axis=int(normalize == "truth"), keepdims=True) * np.ones_like(counts)
    return np.divide(100.0 * counts, whole, out=np.full(counts.shape, np.nan), where=whole > 0)


def _map_alone(names: Sequence[str]) -> tuple[Figure, Axes]:
    side, label = CELL * len(names), CHARACTER * max(map(len, names))
    figure = new_figure(max(6.0, side + label + 0.8), max(3.0, side + 0.75 * label + 1.2), layout="constrained")
    return figure, figure.add_subplot()


def _map_with_list(names: Sequence[str], shares: np.ndarray) -> tuple[Figure, Axes]:
    """The map's axes on the left; on the right the list of confusions, above the key to the colours."""
    is_named = len(names) <= NAMES_UP_TO
    side = SMALL_CELL * len(names) if is_named else LARGE_MAP
    lines = _confusion_lines(shares, names, most=int((side - 0.5) / LIST_LINE) - 1)
    margin = CHARACTER * max(map(len, names)) if is_named else 0.4
    beside = max([4.0, *(NUMBER_COLUMN + CHARACTER * len(text) for _, text in lines)])
    figure = new_figure(side + margin + beside + 0.7, side + margin + 1.0, layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[side + margin, beside], height_ratios=[side + margin - KEY, KEY])
    axes, listed, key = (figure.add_subplot(cell) for cell in (grid[:, 0], grid[0, 1], grid[1, 1]))
    axes.set_anchor("NW")
    listed.set(xlim=(0, beside), ylim=((side + margin - KEY) / LIST_LINE, 0))
    _write_list(listed, lines)
    _draw_key(key)
    return figure, axes


def _color_map(name: str) -> Colormap:
    """matplotlib's map of that name, from pure white on: nothing confused, nothing seen."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(name, ["white", *matplotlib.colormaps[name](np.linspace(0.1, 1, 32))])


def _draw_map(axes: Axes, shares: np.ndarray) -> None:
    from matplotlib.colors import PowerNorm

    on_diagonal, is_empty = np.eye(len(shares), dtype=bool), np.isnan(shares)
    for colors, shown in zip(COLOR_LAYERS.values(), (on_diagonal, ~on_diagonal), strict=True):
        layer = np.ma.masked_array(shares, mask=~shown | is_empty)
        axes.imshow(layer, cmap=_color_map(colors), norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(True)
    axes.set(xlabel="prediction", ylabel="truth")


def _label_classes(axes: Axes, names: Sequence[str]) -> None:
    n_classes = len(names)
    axes.tick_params(length=0 if n_classes <= NAMES_UP_TO else 3)
    if n_classes > NAMES_UP_TO:
        axes.set(xlabel="prediction (class number)", ylabel="truth (class number)")
        return
    axes.set_yticks(range(n_classes), names)
    if n_classes <= NUMBERS_UP_TO:
        axes.set_xticks(range(n_classes), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        axes.set_xticks(range(n_classes), names, rotation=90)
    edges = np.arange(n_classes + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(True, which="minor", color="#E8E8E8", linewidth=0.8)


def _write_numbers(axes: Axes, shares: np.ndarray) -> None:
    for (row, column), share in np.ndenumerate(shares):
        if share >= NUMBER_FROM:  # False for NaN
            color = "white" if share > 45 else INK
            axes.text(column, row, _short(share), ha="center", va="center", fontsize=11, color=color)


def _hatch_empty(axes: Axes, shares: np.ndarray, normalize: str) -> None:
    from matplotlib.patches import Rectangle

    n_classes = len(shares)
    style = {"facecolor": "#EFEFEF", "edgecolor": "#B5B5B5", "hatch": "///", "linewidth": 0.0}
    for index in np.flatnonzero(np.isnan(shares.diagonal())):
        corner, size = (-0.5, index - 0.5), (n_classes, 1)
        if normalize == "prediction":
            corner, size = corner[::-1], size[::-1]
        axes.add_patch(Rectangle(corner, *size, **style))


def _largest_confusions(shares: np.ndarray, most: int) -> list[tuple[int, int, float]]:
    """Truth, prediction and percent, the largest first; equal ones in the order of their classes."""
    off_diagonal = np.where(np.eye(len(shares), dtype=bool) | np.isnan(shares), 0.0, shares)
    order = np.argsort(-off_diagonal, axis=None, kind="stable")[:most]
    cells = [divmod(int(cell), len(shares)) for cell in order]
    return [(truth, guess, off_diagonal[truth, guess]) for truth, guess in cells if off_diagonal[truth, guess] > 0]


def _confusion_lines(shares: np.ndarray, names: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Percent and classes of each confusion to list; with class numbers where the axes have them."""
    labels = names if len(names) <= NAMES_UP_TO else [f"{name} ({index})" for index, name in enumerate(names)]
    return [
        (f"{_short(share)} %", f"{labels[truth]} → {labels[guess]}")
        for truth, guess, share in _largest_confusions(shares, most)
    ]


def _short(share: float) -> str:
    return f"{share:.1f}" if share < 9.95 else f"{share:.0f}"


def _write_list(axes: Axes, lines: Sequence[tuple[str, str]]) -> None:
    axes.set_axis_off()
    axes.set_title("Largest confusions", loc="left")
    axes.text(NUMBER_COLUMN, 0.5, "truth → prediction", va="center", color=FAINT)
    for index, (number, classes) in enumerate(lines, start=1):
        axes.text(NUMBER_COLUMN - 0.18, index + 0.5, number, va="center", ha="right")
        axes.text(NUMBER_COLUMN, index + 0.5, classes, va="center")


def _draw_key(axes: Axes) -> None:
    """Both colour scales, one above the other."""
    ramps = [_color_map(colors)(np.linspace(0, 1, 256)) for colors in COLOR_LAYERS.values()]
    axes.imshow(np.stack(ramps), aspect="auto", extent=(0, 1, 2, 0), interpolation="nearest")
    axes.set_yticks([0.5, 1.5], list(COLOR_LAYERS))
    axes.set_xticks([(tick / 100) ** 0.5 for tick in KEY_TICKS], [*map(str, KEY_TICKS[:-1]), f"{KEY_TICKS[-1]} %"])
    axes.tick_params(axis="y", length=0)
    axes.grid(False)
