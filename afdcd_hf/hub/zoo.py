"""The checkpoints that this project publishes, from the table `zoo.yaml`: their sources and scores."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..data.benchmarks import get_benchmark
from ..messages import chosen
from ..structured_files import parse_yaml


@dataclass(frozen=True)
class CheckpointRow:
    """What is known about one published model. Scores are fractions 0-1; None means unknown."""

    repo_id: str  # repository on the Hub; the key in `CHECKPOINTS`
    network: str  # a key of `released_networks.RELEASED_NETWORKS`
    dataset: str  # benchmark it was trained for, a key of `data.BENCHMARKS`
    reported: float  # mIoU that its authors report
    source_file: str  # which file of `source_project`
    reported_in: str = "arXiv 2312.04168, results tables (single scale, whole image, no flip)"
    split: str = "val"  # on which the scores were measured
    recipe: str | None = None  # of this package, for the same training; None for teachers
    teacher: str | None = None  # key of the teacher's row; None for teachers
    reported_alone: float | None = None  # mIoU that they report for the same student without distillation
    measured: float | None = None  # by us, with `afdcd evaluate` on the converted folder
    source_doubts: str | None = None  # why the link may lead to another file
    remarks: str | None = None  # such as files that are easily mistaken for this one
    source_project: str = "OSVAI/Af-DCD on GitHub"
    weights_licence: str = (
        "unknown; we have not checked the terms of the released files, so ask their authors before redistributing"
    )

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repo_id.split("/")[1]

    @property
    def data_licence(self) -> str:
        """Terms of the training images, which also concern users of the weights."""
        return get_benchmark(self.dataset).licence

    @property
    def role(self) -> str:
        """Role in the published pairs: "teacher" or "student"."""
        return "student" if self.teacher else "teacher"


_ROWS = parse_yaml(Path(__file__).with_name("zoo.yaml").read_text(encoding="utf-8"))
CHECKPOINTS: dict[str, CheckpointRow] = {row["repo_id"]: CheckpointRow(**row) for row in _ROWS}


def get_checkpoint(repo_id: str) -> CheckpointRow:
    """Look up a published checkpoint's row; a ValueError lists the known ones."""
    return chosen(CHECKPOINTS, repo_id, "published checkpoint")


def select(dataset: str | None = None) -> list[CheckpointRow]:
    """List the rows of one benchmark, or all; a ValueError if it is unknown or has no published checkpoint."""
    if dataset is not None:
        get_benchmark(dataset)
    rows = [row for row in CHECKPOINTS.values() if dataset in (None, row.dataset)]
    if not rows:
        known = ", ".join(dict.fromkeys(row.dataset for row in CHECKPOINTS.values()))
        raise ValueError(f"No checkpoint is published for {dataset!r}; published ones are for {known}.")
    return rows


def to_table(rows: Iterable[CheckpointRow]) -> str:
    """Format rows as a text table, with mIoU in percent; reported and measured scores have separate columns."""
    rows, lines = list(rows), [("checkpoint", "network", "dataset", "recipe", "reported", "measured", "")]
    for row in rows:
        measured = "not measured" if row.measured is None else f"{100 * row.measured:.2f}"
        doubt = "source in doubt" if row.source_doubts else ""
        data, reported = f"{row.dataset} {row.split}", f"{100 * row.reported:.2f}"
        lines.append((row.repo_id, row.network, data, row.recipe or row.role, reported, measured, doubt))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = [f"  {row.repo_id}: {row.source_doubts}." for row in rows if row.source_doubts]
    footer = "mIoU in percent. Reported: by the authors; measured: by us, from the converted weights. --json shows all."
    return "\n".join([*text, "", footer, *(["Sources in doubt:", *notes] if notes else [])])


def to_json(rows: Iterable[CheckpointRow]) -> str:
    """Serialise all fields of the rows; scores are fractions, null means unknown."""
    found = [{**dataclasses.asdict(row), "role": row.role, "data_licence": row.data_licence} for row in rows]
    return json.dumps(found, indent=2)
