"""Confusion matrices as heat maps in which the confusions stand out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics.confusion_csv import check_confusion_matrix
from .figures import INK, save_figure, shorten, styled_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

NORMALIZATIONS = ("truth", "prediction")
NUMBERS_UP_TO, NAMES_UP_TO = 20, 40  # classes; beyond, cells and ticks are too small for text
NUMBER_FROM = 0.05  # percent
MOST_LISTED = 15


def plot_confusion_matrix(
    matrix: np.ndarray, class_names: Sequence[str], path: str | Path, *, normalize: str = "truth"
) -> Path:
    """Draw a confusion matrix in percent: correct pixels on the diagonal in blue, confusions in orange.

    Colours follow the square root of the share, so that a confusion of a few percent is seen beside a diagonal near
    100. Up to 20 classes have numbers in the cells (none below 0.05 %); more have a list of the largest confusions
    below the map instead, and beyond 40 the axes count the classes instead of naming them. Classes without a pixel to
    divide by are hatched.

    Args:
        matrix: `(K, K)` integer pixel counts, rows = truth, such as `evaluate_segmenter`'s "confusion_matrix".
        class_names: K names.
        path: file to write; its suffix picks the format.
        normalize: what is 100 %: "truth" (the pixels of each true class, a row; the diagonal is the class's accuracy)
            or "prediction" (the pixels predicted as each class, a column; the diagonal is its precision).

    Raises:
        ValueError: the matrix is not square, of integers and non-negative, counts no pixel or does not match the
            names, or the normalisation is unknown.
    """
    return save_figure(_confusion_figure(matrix, class_names, normalize), path)


def _confusion_figure(matrix: np.ndarray, class_names: Sequence[str], normalize: str = "truth") -> Figure:
    shares = _percent(check_confusion_matrix(matrix, class_names), normalize)
    names, count = [shorten(name, 20) for name in class_names], len(class_names)
    lines = [] if count <= NUMBERS_UP_TO else _largest_confusions(shares, names)
    side = min(0.52 * count, 9.0)
    with styled_figure(max(6.0, side + 2.5), max(4.0, side + 3.0) + 0.3 * len(lines)) as figure:
        axes = figure.add_subplot()
        _draw_map(axes, shares)
        _hatch_empty(axes, shares, normalize)
        _label_classes(axes, names)
        if count <= NUMBERS_UP_TO:
            for (row, column), share in np.ndenumerate(shares):
                if share >= NUMBER_FROM:  # False for NaN
                    color = "white" if share > 45 else INK
                    axes.text(column, row, _short(share), ha="center", va="center", fontsize=11, color=color)
        kind = {"truth": "true", "prediction": "predicted"}[normalize]
        empty = "\n(hatched: class without pixels)" if np.isnan(shares).any() else ""
        axes.set_title(f"% of the {kind} class's pixels{empty}", loc="left")
        if lines:
            text = "\n".join(["Largest confusions, truth → prediction:", *lines])
            figure.supxlabel(text, x=0.05, ha="left", fontsize=11)
    return figure


def _percent(counts: np.ndarray, normalize: str) -> np.ndarray:
    """`(K, K)` float percent, NaN in the rows (or columns) without a pixel."""
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is unknown; known are {', '.join(NORMALIZATIONS)}.")
    if not counts.sum():
        raise ValueError("The confusion matrix counts no pixel; evaluate on data with labels.")
    whole = counts.sum(axis=int(normalize == "truth"), keepdims=True) * np.ones_like(counts)
    return np.divide(100.0 * counts, whole, out=np.full(counts.shape, np.nan), where=whole > 0)


def _color_map(name: str) -> Colormap:
    """matplotlib's map of that name, from pure white on: nothing confused, nothing seen."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list(name, ["white", *matplotlib.colormaps[name](np.linspace(0.1, 1, 32))])


def _draw_map(axes: Axes, shares: np.ndarray) -> None:
    from matplotlib.colors import PowerNorm

    on_diagonal = np.eye(len(shares), dtype=bool)
    for colors, shown in (("Blues", on_diagonal), ("Oranges", ~on_diagonal)):
        layer = np.ma.masked_array(shares, mask=~shown | np.isnan(shares))
        axes.imshow(layer, cmap=_color_map(colors), norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(True)


def _label_classes(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > NAMES_UP_TO:
        axes.set(xlabel="prediction (class number)", ylabel="truth (class number)")
        return
    axes.set(xlabel="prediction", ylabel="truth")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.tick_params(length=0)


def _hatch_empty(axes: Axes, shares: np.ndarray, normalize: str) -> None:
    from matplotlib.patches import Rectangle

    style: dict[str, Any] = {"facecolor": "#EFEFEF", "edgecolor": "#B5B5B5", "hatch": "///", "linewidth": 0.0}
    for index in np.flatnonzero(np.isnan(shares.diagonal())):
        x, y, width, height = -0.5, float(index) - 0.5, len(shares), 1
        if normalize == "prediction":
            x, y, width, height = y, x, height, width
        axes.add_patch(Rectangle((x, y), width, height, **style))


def _largest_confusions(shares: np.ndarray, names: Sequence[str]) -> list[str]:
    """A line for each, the largest first; with class numbers where the axes have them."""
    labels = names if len(names) <= NAMES_UP_TO else [f"{name} ({index})" for index, name in enumerate(names)]
    wrong = np.where(np.eye(len(shares), dtype=bool) | np.isnan(shares), 0.0, shares)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_LISTED]
    cells = [divmod(int(cell), len(shares)) for cell in order]
    return [
        f"{_short(wrong[truth, guess])} %  {labels[truth]} → {labels[guess]}"
        for truth, guess in cells
        if wrong[truth, guess] > 0
    ]


def _short(share: float) -> str:
    return f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
