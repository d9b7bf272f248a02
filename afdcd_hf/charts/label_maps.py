"""Label maps in colour: alone, over their image, side by side; and colours for classes that have none."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .figures import DPI, FAINT, figure_file

if TYPE_CHECKING:
    from matplotlib.patches import Patch

Palette = Sequence[Sequence[int]] | np.ndarray
Columns = Mapping[str, Sequence[np.ndarray | str]]
IGNORE_INDEX = 255
MAX_LEGEND_CLASSES = 24  # in the legend
CELL_WIDTH, TITLE_LENGTH = 2.7, 22  # inches, characters in a line
_LINE_WIDTH = 1 / 400  # relative to the image's shorter side
_LIGHT = 0.6  # Oklab lightness from which lines are black
_LIGHTNESS = (0.42, 0.92)  # black is 0, white 1: visible on both, and on dark and bright photos
# Oklab (B. Ottosson, 2020): linear sRGB to cone responses, and their cube roots to lightness, green-red, blue-yellow
_TO_RECEPTORS = np.array(
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_TO_OKLAB = np.array(
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def colorize(label: np.ndarray, palette: Palette) -> np.ndarray:
    """Colour a label map, `(H, W)` class ids of any integer dtype, as `(H, W, 3)` uint8 RGB; 255 = ignored is black.

    The palette has `(K, 3)` colours 0-255; an id without a colour raises a ValueError.
    """
    label, colors = np.asarray(label), as_colors(palette)
    ids = np.unique(label)
    unknown = ids[((ids < 0) | (ids >= len(colors))) & (ids != IGNORE_INDEX)].tolist()
    if label.ndim != 2 or label.dtype.kind not in "iu" or unknown:
        raise ValueError(
            f"The array has shape {label.shape}, dtype {label.dtype} and ids {unknown} outside 0..{len(colors) - 1}; "
            f"pass (H, W) class ids that the palette has colours for, or {IGNORE_INDEX} = ignored."
        )
    table = np.zeros((max(len(colors), IGNORE_INDEX + 1), 3), np.uint8)
    table[: len(colors)] = colors
    table[IGNORE_INDEX] = 0
    return table[label]


def as_colors(palette: Palette) -> np.ndarray:
    """Convert a palette to a `(K, 3)` uint8 table; a ValueError unless it is a list of colours 0-255."""
    colors = np.asarray(palette)
    if (
        colors.ndim != 2
        or colors.shape[1] != 3
        or colors.dtype.kind not in "iu"
        or not 0 <= colors.min() <= colors.max() <= 255
    ):
        raise ValueError(
            f"palette has shape {colors.shape} and dtype {colors.dtype}; pass K colours of 3 integers 0 to 255."
        )
    return colors.astype(np.uint8)


def draw_overlay(image: Image.Image, label_map: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Overlay an RGB image with the classes' colours `(K, 3)` and lines between classes: `(H, W, 3)` uint8 RGB."""
    overlay = np.array(Image.blend(image, Image.fromarray(colors[label_map]), 0.5))
    lines = class_borders(label_map, max(1, round(_LINE_WIDTH * min(label_map.shape))))
    overlay[lines] = line_colors(colors[label_map[lines]])
    return overlay


def class_borders(label_map: np.ndarray, width: int, unlined: Sequence[int] = ()) -> np.ndarray:
    """Mark lines of `width` pixels between the classes of an `(H, W)` map, except `unlined` ones; `(H, W)` bool."""
    lines = np.zeros(label_map.shape, bool)
    first = width // 2  # centres the line on the border
    for ids, marked in ((label_map, lines), (label_map.T, lines.T)):
        here, there = ids[:-width], ids[width:]
        differs = (here != there) & ~np.isin(here, unlined) & ~np.isin(there, unlined)
        marked[first : first + len(differs)] |= differs
    return lines


def line_colors(colors: np.ndarray) -> np.ndarray:
    """Choose white lines on dark colours `(..., 3)` uint8 and black ones on light colours, `(..., 1)` uint8."""
    # Colour-blind viewers may confuse the colours of two classes, but see lightness normally.
    return np.where(oklab(colors)[..., :1] < _LIGHT, 255, 0).astype(np.uint8)


def plot_predictions(
    columns: Columns,
    palette: Palette,
    class_names: Sequence[str],
    path: str | Path,
    *,
    notes: Mapping[str, str] | None = None,
    unlined: Sequence[int] = (),
) -> Path:
    """Draw images, ground truth and predictions as a grid, with one row per image and one column per source.

    Args:
        columns: title -> arrays, in drawing order, equally many per column. `(H, W, 3)` uint8 RGB is shown unchanged,
            an `(H, W)` integer map in its classes' colours with lines between them (255 is black), a string as text.
            The first array in a row determines the row's aspect ratio.
        palette: `(K, 3)` colours 0-255.
        class_names: K names. The legend lists the classes that occur, in their order; if there are more than 24, those
            that cover the largest areas, and the number of the others.
        path: file to write; its suffix determines the format.
        notes: a line under the title of some columns, for example `{"teacher": "mIoU 61.2 %"}`.
        unlined: classes without lines around them.
    """
    path, colors, notes = Path(path), as_colors(palette), notes or {}
    lengths = {title: len(arrays) for title, arrays in columns.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values() or len(class_names) != len(colors):
        raise ValueError(
            f"The columns hold {lengths} arrays, and {len(class_names)} class names came with {len(colors)} colours; "
            "pass the same number, at least one, in each column, and one name per colour."
        )
    unlined = [*unlined, IGNORE_INDEX]
    shown = {title: [_as_rgb(cell, colors, unlined) for cell in cells] for title, cells in columns.items()}
    rows = [[cell for cell in row if not isinstance(cell, str)] for row in zip(*columns.values(), strict=True)]
    swatches = _swatches([array for row in rows for array in row], colors, class_names)
    heights = [CELL_WIDTH * row[0].shape[0] / row[0].shape[1] for row in rows]
    width = CELL_WIDTH * len(columns)
    longest_name = max((len(str(swatch.get_label())) for swatch in swatches), default=0)
    per_line = max(1, int(width / (0.65 + 0.105 * longest_name)))
    below = 0.3 * -(-len(swatches) // per_line)
    under: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "color": FAINT}
    with figure_file(path, width, sum(heights) + 0.8 + 0.1 * len(heights) + below) as figure:
        figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        grid = figure.subplots(len(heights), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
        for column, (title, cells) in enumerate(columns.items()):
            heading = textwrap.fill(title, TITLE_LENGTH, max_lines=2, placeholder="…")
            grid[0, column].set_title(heading, fontsize=14, pad=22 if notes else 6)
            if title in notes:
                grid[0, column].annotate(notes[title], (0.5, 1), (0, 5), **under)
            for axes, cell, rgb in zip(grid[:, column], cells, shown[title], strict=True):
                axes.set_axis_off()
                if isinstance(cell, str):
                    axes.text(0.5, 0.5, cell, transform=axes.transAxes, ha="center", va="center", fontsize=11)
                else:  # interpolating a label map would create the colours of other classes
                    axes.imshow(rgb, interpolation="nearest" if cell.ndim == 2 else "antialiased", aspect="auto")
        if swatches:
            spacing: dict[str, Any] = {"ncols": per_line, "handlelength": 1.3, "columnspacing": 1.4}
            figure.legend(handles=swatches, loc="outside lower center", **spacing)
    return path


def plot_samples(
    rows: Sequence[Mapping[str, Any]], palette: Palette, class_names: Sequence[str], path: str | Path
) -> Path:
    """Draw each row's image, its labels over it, and the labels alone; arguments as in `plot_predictions`."""
    colors = np.zeros((max(len(palette), IGNORE_INDEX + 1), 3), np.uint8)
    colors[: len(palette)] = as_colors(palette)
    labels = [np.asarray(row["label"]) for row in rows]
    overlays = [draw_overlay(row["image"], label, colors) for row, label in zip(rows, labels, strict=True)]
    columns = {"image": [np.asarray(row["image"]) for row in rows], "labels over it": overlays, "labels": labels}
    return plot_predictions(columns, palette, class_names, path)


def _as_rgb(array: np.ndarray | str, colors: np.ndarray, unlined: Sequence[int]) -> np.ndarray | None:
    if isinstance(array, str):
        return None
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return array
    rgb = colorize(array, colors)
    drawn = round(CELL_WIDTH * DPI)  # pixels; maps are enlarged to at least twice that, so that lines can be thin
    times = -(-2 * drawn // array.shape[1])
    array, rgb = (each.repeat(times, 0).repeat(times, 1) for each in (array, rgb))
    lines = class_borders(array, -(-array.shape[1] // drawn), unlined)
    rgb[lines] = line_colors(rgb[lines])
    return rgb


def _swatches(arrays: Sequence[np.ndarray], colors: np.ndarray, class_names: Sequence[str]) -> list[Patch]:
    """List the legend's entries: classes in their order, ignored pixels, and the number of further classes."""
    from matplotlib.patches import Patch

    covered: Counter[int] = Counter()
    for array in (array for array in arrays if array.ndim == 2):
        for index, pixels in zip(*np.unique(array, return_counts=True), strict=True):
            covered[int(index)] += pixels / array.size  # images have equal weight, whatever their size
    ignored = covered.pop(IGNORE_INDEX, 0) > 0
    listed = sorted(sorted(covered, key=lambda index: (-covered[index], index))[:MAX_LEGEND_CLASSES])
    edge: dict[str, Any] = {"edgecolor": "#999999", "linewidth": 0.6}
    swatches = [Patch(facecolor=colors[index] / 255, label=class_names[index], **edge) for index in listed]
    if ignored:
        swatches.append(Patch(facecolor="black", label="ignored", **edge))
    if len(covered) > len(listed):
        swatches.append(Patch(visible=False, label=f"+{len(covered) - len(listed)} more"))
    return swatches


def distinct_palette(num_colors: int) -> np.ndarray:
    """Choose colours `(K, 3)` uint8 RGB that are as distinct as possible and are not black, white or grey.

    Each is farthest from all previous ones in Oklab, where distances are roughly perceptual, so the palette is
    deterministic and a shorter one is a prefix of a longer one.
    """
    steps = np.linspace(0, 255, 32).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = oklab(candidates)
    usable = (seen[:, 0] > _LIGHTNESS[0]) & (seen[:, 0] < _LIGHTNESS[1])
    candidates, seen = candidates[usable], seen[usable]
    # Greys are excluded from the start: ignored pixels are black, and much of a photo is grey.
    distance = np.hypot(seen[:, 1], seen[:, 2])
    chosen = []
    for _ in range(num_colors):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(seen - seen[chosen[-1]], axis=1))
    return candidates[chosen]


def oklab(colors: np.ndarray) -> np.ndarray:
    """Convert `(..., 3)` uint8 sRGB to `(..., 3)` float64 Oklab: lightness 0..1 and two colour axes around 0."""
    values = colors.astype(np.float64) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_RECEPTORS.T) @ _TO_OKLAB.T
