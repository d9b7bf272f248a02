"""Common parts of all figures: style, colours, creation and writing.

Figures are created without pyplot, so nothing here changes the state of a notebook or another library. matplotlib is
imported when the first figure is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_io import atomic_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

DPI = 150
INK, FAINT = "#222222", "#666666"
# Okabe and Ito's colours are distinct for the common kinds of colour blindness; markers are distinct in greyscale.
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX*<>ph"
STYLE = {
    "font.size": 12, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": "#999999", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.titlesize": 13, "axes.titleweight": "bold", "axes.grid": True, "grid.color": "#E3E3E3",
    "lines.linewidth": 2.0, "lines.markersize": 6, "legend.frameon": False, "figure.titlesize": 14,
    "figure.titleweight": "bold", "text.parse_math": False,  # a "$" in a name is a dollar sign
}  # fmt: skip
# Without these the files would contain their creation time.
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def figure_file(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a white figure, size in inches, and write it on exit; the same figure gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
    with atomic_write(path) as part, matplotlib.rc_context({"svg.hashsalt": "afdcd_hf"}):
        figure.savefig(part, format=path.suffix[1:] or "png", dpi=DPI, metadata=_UNDATED.get(path.suffix.lower()))


def series_style(index: int) -> dict[str, Any]:
    """Return the colour, line style and marker of a series; the first twelve all differ."""
    return {
        "color": SERIES_COLORS[index % len(SERIES_COLORS)],
        "linestyle": "-" if index < len(SERIES_COLORS) else "--",
        "marker": MARKERS[index % len(MARKERS)],
    }


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend below the figure, with as many columns as fit, up to three."""
    for columns in (3, 2, 1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def shorten(text: str, length: int) -> str:
    """Truncate text to `length` characters, ending in an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
