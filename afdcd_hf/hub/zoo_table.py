"""The table of published checkpoints, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from ..data.benchmarks import get_benchmark
from .zoo import CHECKPOINTS, CheckpointRow


def select(dataset: str | None = None) -> list[CheckpointRow]:
    """Rows of the table, those of one benchmark or all.

    Raises:
        ValueError: there is no such benchmark, or nothing is published for it.
    """
    if dataset is not None:
        get_benchmark(dataset)
    rows = [row for row in CHECKPOINTS.values() if dataset in (None, row.dataset)]
    if not rows:
        known = ", ".join(dict.fromkeys(row.dataset for row in CHECKPOINTS.values()))
        raise ValueError(f"No checkpoint is published for {dataset!r}; there are some for {known}.")
    return rows


def to_table(rows: Iterable[CheckpointRow]) -> str:
    """Lines of text: mIoU in percent, what others report and what we measured in columns of their own."""
    rows = list(rows)
    lines = [("checkpoint", "network", "dataset", "recipe", "reported", "measured", ""), *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"  {row.repo_id}: {row.source_doubts}." for row in rows if row.source_doubts]
    footer = "mIoU in percent. Reported: by the authors; measured: by us, from the converted weights. --json shows all."
    return "\n".join([*text, "", footer, *(["Sources in doubt:", *notes] if notes else [])])


def to_json(rows: Iterable[CheckpointRow]) -> str:
    """All fields of the rows; scores are fractions, null is what is not known."""
    found = [{**dataclasses.asdict(row), "role": row.role, "data_licence": row.data_licence} for row in rows]
    return json.dumps(found, indent=2)


def _cells(row: CheckpointRow) -> tuple[str, ...]:
    measured = "not measured" if row.measured is None else f"{100 * row.measured:.2f}"
    scores, doubt = (f"{100 * row.reported:.2f}", measured), "source in doubt" if row.source_doubts else ""
    return (row.repo_id, row.network, f"{row.dataset} {row.split}", row.recipe or row.role, *scores, doubt)
