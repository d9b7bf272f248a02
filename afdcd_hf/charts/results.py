"""Charts of evaluation results: IoU by class as bars, confusion matrices as heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..metrics.confusion_csv import check_confusion_matrix
from .figures import FAINT, INK, SERIES_COLORS, add_legend, figure_file, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Mapping[str, Mapping[str, float | None]]
MAX_RESULTS, MAX_ROWS = 5, 40
WIDTH, BAR, ROW_GAP = 8.73, 0.2, 0.13  # inches, as are the bars' y coordinates
GAIN_COLOR, LOSS_COLOR = "#00674B", "#A33B00"  # darker shades of the series' green and vermilion, for text
NORMALIZATIONS = {"truth": "true", "prediction": "predicted"}
NUMBERS_UP_TO, NAMES_UP_TO = 20, 40  # classes; beyond, cells and ticks are too small for text
NUMBER_FROM = 0.05  # percent
_COUNTS = ("num_images", "num_pixels")  # these differ if other or fewer images were evaluated
_MODELS_OWN = {
    "model", "dtype", "logits_upsampling", "align_corners", "input_size", "input_resampling", "input_padding",
    "channel_order", "rescale_factor", "image_mean", "image_std", "boundary_ratio", "date", "machine", "versions",
}  # fmt: skip
_EMPTY: dict[str, Any] = {"facecolor": "#EFEFEF", "edgecolor": "#B5B5B5", "hatch": "///", "linewidth": 0.0}


def plot_class_iou(results: Results, path: str | Path, *, title: str | None = None, order: str = "classes") -> Path:
    """Draw each class's IoU in one to five results as bars with their values; the first row is the mean.

    For two results, a column shows the gain of the second over the first, in points. If there are more than 40 classes,
    only the 20 with the largest gains and the 20 with the largest losses from the first to the last result are drawn
    (for a single result, the highest and the lowest), and the heading says so.

    Args:
        results: name of each result -> its `per_category_iou`: class -> fraction 0-1, or None or NaN if the class is
            not in the data; this is shown as n/a and left out of the mean.
        path: file to write; its suffix determines the format.
        title: line above the bars; name the data here.
        order: "classes" (that of the first result) or "gain" (largest first, for two or more results).
    """
    from matplotlib.patches import Patch

    path = Path(path)
    names, values = _checked_percent(results)
    means = np.nanmean(values, axis=0)
    rows, heading = _shown_rows(values, order)
    names, values = ["mean", *(names[row] for row in rows)], np.vstack([means, values[rows]])
    row_height = BAR * len(results) + ROW_GAP
    middles = row_height * (np.arange(len(names)) + 0.5)
    height, limit = row_height * len(names), 10 * math.ceil(max(np.nanmax(values), 1) / 10)
    with figure_file(path, WIDTH, height + 1.6) as figure:
        axes = figure.add_subplot()
        for column, name in enumerate(results):
            ys, lengths = middles + BAR * (column - (len(results) - 1) / 2), np.nan_to_num(values[:, column])
            bars = axes.barh(ys, lengths, 0.88 * BAR, color=SERIES_COLORS[column], label=name)
            texts = ["n/a" if math.isnan(value) else f"{value:.1f}" for value in values[:, column]]
            axes.bar_label(bars, texts, padding=3, fontsize=10.5)
        axes.set_yticks(middles, [shorten(name, 26) for name in names])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.axhspan(0, row_height, color="#F0F0F0", zorder=0)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set(ylim=(height, 0), xlim=(0, 1.16 * limit), xticks=range(0, limit + 1, 20 if limit > 50 else 10))
        axes.set_xlabel("IoU (%)")
        axes.set_title("\n".join(filter(None, (title, heading))), pad=20)
        if len(results) == 2:
            _write_gains(axes, middles, values[:, 1] - values[:, 0])
        texts = [f"{name} (mean {mean:.1f} %)" for name, mean in zip(results, means, strict=True)]
        add_legend(figure, [Patch(color=SERIES_COLORS[index], label=text) for index, text in enumerate(texts)])
    return path


def data_title(protocol: Mapping[str, Any] | None) -> str | None:
    """Name the data of an evaluation's protocol for a title: `camvid val`; None if the protocol does not say."""
    if not protocol or not {"dataset", "split"} <= set(protocol):
        return None
    first = f", first {protocol['max_samples']} images" if protocol.get("max_samples") else ""
    return f"{Path(protocol['dataset']).name} {protocol['split']}{first}"


def model_and_data(protocol: Mapping[str, Any]) -> str:
    """Name an evaluation for a title: `student, camvid val`."""
    return ", ".join(filter(None, (Path(str(protocol.get("model") or "")).name, data_title(protocol))))


def protocol_differences(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List protocol differences between results (name -> content of results.json) that affect scores.

    Example: `["flip: False, True"]`. Missing fields are shown as None; fields that belong to the model may differ.
    """
    counted = [{name: one.get(name) for name in _COUNTS} | dict(one.get("protocol") or {}) for one in results.values()]
    differences = []
    for field in dict.fromkeys(field for one in counted for field in one if field not in _MODELS_OWN):
        values = [one.get(field) for one in counted]
        if any(value != values[0] for value in values):
            differences.append(f"{field}: {', '.join(map(str, values))}")
    return differences


def _checked_percent(results: Results) -> tuple[list[str], np.ndarray]:
    """Return the first result's class names and `(K, R)` percentages, NaN for classes not in the data."""
    if not 1 <= len(results) <= MAX_RESULTS:
        raise ValueError(f"{len(results)} results were passed; one to {MAX_RESULTS} fit in one chart.")
    first, names = next((name, list(classes)) for name, classes in results.items())
    for result, classes in results.items():
        if difference := sorted(set(names) ^ set(classes)):
            raise ValueError(
                f"The classes of {first!r} and {result!r} differ: only one of them has {difference[:10]}. "
                "Compare results on the same dataset."
            )
    columns = [[classes[name] for name in names] for classes in results.values()]
    values = 100 * np.array(columns, dtype=float).T  # None becomes NaN
    if np.isnan(values).all(axis=0).any():
        raise ValueError(f"One of the results {', '.join(results)} has no IoU of any class.")
    return names, values


def _shown_rows(values: np.ndarray, order: str) -> tuple[list[int], str]:
    """Choose the classes to draw, from top to bottom, and a heading that explains the choice."""
    count, single = len(values), values.shape[1] == 1
    if order not in ("classes", "gain") or (order == "gain" and single):
        raise ValueError(f"order={order!r}: expected classes or, for two or more results, gain.")
    ranked = values[:, 0] if single else values[:, -1] - values[:, 0]
    falling = [int(row) for row in np.argsort(-ranked, kind="stable")]  # NaN comes last
    if count <= MAX_ROWS:
        return (falling if order == "gain" else list(range(count))), ""
    known, half = [row for row in falling if not math.isnan(ranked[row])], MAX_ROWS // 2
    if len(known) <= MAX_ROWS:
        return known, f"{len(known)} of {count} classes are in the data"
    highest, lowest = ("highest", "lowest") if single else ("largest gains", "largest losses")
    return known[:half] + known[-half:], f"{half} {highest} and {half} {lowest} of {count} classes"


def _write_gains(axes: Axes, middles: np.ndarray, gains: np.ndarray) -> None:
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(1.13, -0.16, "gain", color=FAINT, **beside)
    for middle, gain in zip(middles, gains.round(1), strict=True):
        if not math.isnan(gain):
            text = f"{gain:+.1f}".replace("-", "\N{MINUS SIGN}") if gain else "0.0"
            color = GAIN_COLOR if gain > 0 else LOSS_COLOR if gain < 0 else INK
            axes.text(1.13, middle, text, color=color, fontweight="bold", **beside)


def plot_confusion_matrix(
    matrix: np.ndarray,
    class_names: Sequence[str],
    path: str | Path,
    *,
    title: str | None = None,
    normalize: str = "truth",
) -> Path:
    """Draw a confusion matrix in percent: correct pixels on the diagonal in blue, confusions in orange.

    Colours follow the square root of the share, so that a few percent are visible beside a diagonal near 100. With up
    to 20 classes the cells have numbers (if at least 0.05 %); with more than 40 the axes show class numbers instead of
    names. Classes without pixels are hatched.

    Args:
        matrix: `(K, K)` integer pixel counts, rows = truth, such as `evaluate_segmenter`'s "confusion_matrix".
        class_names: K names.
        path: file to write; its suffix determines the format.
        title: line above the map; name model and data here.
        normalize: what is 100 %: "truth" (each row; the diagonal is a class's accuracy) or "prediction" (each column;
            the diagonal is its precision).
    """
    from matplotlib.patches import Rectangle

    path, counts = Path(path), check_confusion_matrix(matrix, class_names)
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize={normalize!r} is unknown; expected one of {', '.join(NORMALIZATIONS)}.")
    if not counts.sum():
        raise ValueError("The confusion matrix has no pixels; evaluate on data with labels.")
    shares = 100 * counts / counts.sum(axis=int(normalize == "truth"), keepdims=True).clip(1)
    names, count = [shorten(name, 20) for name in class_names], len(class_names)
    side, empty = min(0.52 * count, 9.0), np.flatnonzero(np.isnan(shares.diagonal()))
    with figure_file(path, max(6.0, side + 2.5), max(4.0, side + 3.0)) as figure:
        axes = figure.add_subplot()
        _draw_shares(axes, shares)
        for index in map(float, empty):
            places = [((-0.5, index - 0.5), (count, 1)), ((index - 0.5, -0.5), (1, count))]
            corner, size = places[normalize == "prediction"]
            axes.add_patch(Rectangle(corner, *size, **_EMPTY))
        unit = "" if count <= NAMES_UP_TO else " (class number)"
        axes.set(xlabel=f"prediction{unit}", ylabel=f"truth{unit}")
        if count <= NAMES_UP_TO:
            axes.set_yticks(range(count), names)
            axes.set_xticks(range(count), names, rotation=90)
            axes.tick_params(length=0)
        for (row, column), share in np.ndenumerate(shares):
            if count <= NUMBERS_UP_TO and share >= NUMBER_FROM:
                color, text = "white" if share > 45 else INK, f"{share:.1f}" if share < 9.95 else f"{share:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=11, color=color)
        hatched = "\n(hatched: class without pixels)" if len(empty) else ""
        heading = f"{shorten(title, 48)}\n" if title else ""
        axes.set_title(f"{heading}% of the {NORMALIZATIONS[normalize]} class's pixels{hatched}", loc="left")
    return path


def _draw_shares(axes: Axes, shares: np.ndarray) -> None:
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    on_diagonal, norm = np.eye(len(shares), dtype=bool), PowerNorm(0.5, 0, 100)
    for name, shown in (("Blues", on_diagonal), ("Oranges", ~on_diagonal)):
        shades = ["white", *matplotlib.colormaps[name](np.linspace(0.1, 1, 32))]  # cells without confusions stay white
        colors = LinearSegmentedColormap.from_list(name, shades)
        axes.imshow(np.ma.masked_array(shares, ~shown), cmap=colors, norm=norm, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(True)
