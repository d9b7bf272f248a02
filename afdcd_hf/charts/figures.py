"""What all figures share: resolution, style and colours, how they are made, labelled and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_io import written_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

DPI = 150
INK, FAINT = "#222222", "#666666"
# Okabe and Ito's colours, which stay apart for the common kinds of colour blindness.
SERIES_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "font.size": 12, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.edgecolor": "#999999", "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.titlesize": 13, "axes.titleweight": "bold", "axes.grid": True, "grid.color": "#E3E3E3",
    "lines.linewidth": 2.0, "lines.markersize": 6, "legend.frameon": False, "figure.constrained_layout.w_pad": 0.09,
    "figure.constrained_layout.h_pad": 0.09, "figure.titlesize": 14, "figure.titleweight": "bold",
    "text.parse_math": False,  # a "$" in a name is a dollar sign
}  # fmt: skip
# Without these the files would hold the time they were made.
UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """A white figure of that size in inches, unknown to pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes the figure and makes missing folders; returns the path. The same figure gives the same bytes."""
    import matplotlib

    path = Path(path)
    with written_whole(path) as part, matplotlib.rc_context({"svg.hashsalt": "afdcd_hf"}):
        figure.savefig(part, format=path.suffix[1:] or "png", dpi=DPI, metadata=UNDATED.get(path.suffix.lower()))
    return path


def add_legend(figure: Figure, handles: Sequence[Artist], *, max_columns: int = 3, **options: Any) -> Legend:
    """A legend below a figure in constrained layout, in as many columns as fit its width."""
    for columns in range(min(len(handles), max_columns), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, **options)
        if columns == 1 or legend.get_window_extent(figure.canvas.get_renderer()).width <= figure.bbox.width:
            break
        legend.remove()
    return legend


def shorten(text: str, length: int) -> str:
    """The text, cut to that many characters with an ellipsis at its end where it is longer."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
