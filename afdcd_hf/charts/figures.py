"""What all figures share: style, colours, how they are made and written.

Figures are made without pyplot, so that nothing here touches a notebook's or another library's state. matplotlib is
imported on the first drawing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_io import written_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

DPI = 150
INK, FAINT = "#222222", "#666666"
# Okabe and Ito's colours stay apart for the common kinds of colour blindness; markers do so in grey prints.
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^DvPX*<>ph"
STYLE = {
    "font.size": 12, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": "#999999", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.titlesize": 13, "axes.titleweight": "bold", "axes.grid": True, "grid.color": "#E3E3E3",
    "lines.linewidth": 2.0, "lines.markersize": 6, "legend.frameon": False, "figure.titlesize": 14,
    "figure.titleweight": "bold", "text.parse_math": False,  # a "$" in a name is a dollar sign
}  # fmt: skip
# Without these the files would hold the time they were made.
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@contextmanager
def figure_file(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A white figure of that many inches to draw on, written at the end: the same figure gives the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
    with written_whole(path) as part, matplotlib.rc_context({"svg.hashsalt": "afdcd_hf"}):
        figure.savefig(part, format=path.suffix[1:] or "png", dpi=DPI, metadata=_UNDATED.get(path.suffix.lower()))


def series_style(index: int) -> dict[str, Any]:
    """Colour, line and marker of the series with that number; no two of the first twelve are alike."""
    return {
        "color": SERIES_COLORS[index % len(SERIES_COLORS)],
        "linestyle": "-" if index < len(SERIES_COLORS) else "--",
        "marker": MARKERS[index % len(MARKERS)],
    }


def add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """A legend below the figure, in up to three columns: as many as fit its width."""
    for columns in (3, 2, 1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def shorten(text: str, length: int) -> str:
    """The text, cut to that many characters with an ellipsis at its end where it is longer."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
