"""Rows of `profile_model` as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..atomic_io import written_whole

if TYPE_CHECKING:
    from .latency import ProfileRow

_COLUMNS = ("input", "batch", "GMACs", "median ms", "p95 ms", "images/s", "peak MiB", "passes")
_WIDTHS = (11, 7, 9, 11, 10, 10, 10, 8)
HEADER = "".join(f"{title:>{width}}" for title, width in zip(_COLUMNS, _WIDTHS, strict=True))


def format_row(row: ProfileRow) -> str:
    """One line under `HEADER`."""
    memory = "-" if row.peak_memory_mb is None else f"{row.peak_memory_mb:.0f}"
    cells = (
        f"{row.height}x{row.width}",
        f"{row.batch_size}",
        f"{row.macs / 1e9:.2f}",
        f"{1000 * row.median_seconds:.1f}",
        f"{1000 * row.p95_seconds:.1f}",
        f"{row.images_per_second:.2f}",
        memory,
        f"{row.repeats}",
    )
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def describe(row: ProfileRow) -> str:
    """What a row was measured on, and how."""
    return (
        f"{row.num_parameters / 1e6:.2f} M parameters; {row.device}; {row.setting}; {row.versions}; measured {row.date}"
    )


def format_profile(rows: Sequence[ProfileRow]) -> str:
    """A table of rows that were measured alike, with a line above it that says on what.

    "passes" are those that were counted, MACs multiply-accumulates of one image, "-" stands for not measured.
    """
    return "\n".join([describe(rows[0]), HEADER, *map(format_row, rows)])


def write_profile(path: str | Path, model: str, rows: Sequence[ProfileRow]) -> None:
    """Writes rows as JSON: `{"model": ..., "rows": [...]}` with the fields of `ProfileRow`, replacing the file."""
    with written_whole(Path(path)) as part:
        found = {"model": model, "rows": [asdict(row) for row in rows]}
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
