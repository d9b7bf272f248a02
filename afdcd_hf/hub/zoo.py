"""The checkpoints that this project publishes, from the table `zoo.yaml`: where each comes from, and its scores."""

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
    """What is known of one published model. Scores are fractions 0-1; None stands for what is not known."""

    repo_id: str  # repository on the Hub; the key in `CHECKPOINTS`
    network: str  # a key of `released_networks.RELEASED_NETWORKS`
    dataset: str  # benchmark it was trained for, a key of `data.BENCHMARKS`
    reported: float  # mIoU that its authors print
    source_file: str  # which file of `source_project`
    reported_in: str = "arXiv 2312.04168, results tables (single scale, whole image, no flip)"
    split: str = "val"  # that the scores belong to
    recipe: str | None = None  # of this package, for the same training; teachers have none
    teacher: str | None = None  # key of the teacher's row; None for teachers
    reported_alone: float | None = None  # mIoU that they print for the same student without distillation
    measured: float | None = None  # by us, from the converted folder under `afdcd evaluate`
    source_doubts: str | None = None  # why the link may not give that file
    remarks: str | None = None  # such as files that are easily mistaken for this one
    source_project: str = "OSVAI/Af-DCD on GitHub"
    weights_licence: str = (
        "not established: the terms of the released files were not checked here; ask their authors before "
        "redistributing"
    )

    @property
    def name(self) -> str:
        """Of the repository, without its owner."""
        return self.repo_id.split("/")[1]

    @property
    def data_licence(self) -> str:
        """Terms of the images it was trained on; whoever uses the weights should know them."""
        return get_benchmark(self.dataset).licence

    @property
    def role(self) -> str:
        """What it is in the published pairs: "teacher" or "student"."""
        return "student" if self.teacher else "teacher"


_ROWS = parse_yaml(Path(__file__).with_name("zoo.yaml").read_text(encoding="utf-8"))
CHECKPOINTS: dict[str, CheckpointRow] = {row["repo_id"]: CheckpointRow(**row) for row in _ROWS}


def get_checkpoint(repo_id: str) -> CheckpointRow:
    """The row of a published checkpoint; a ValueError lists the known ones if there is none of that name."""
    return chosen(CHECKPOINTS, repo_id, "published checkpoint")


def select(dataset: str | None = None) -> list[CheckpointRow]:
    """The rows of one benchmark, or all; a ValueError if there is no such benchmark or nothing published for it."""
    if dataset is not None:
        get_benchmark(dataset)
    rows = [row for row in CHECKPOINTS.values() if dataset in (None, row.dataset)]
    if not rows:
        known = ", ".join(dict.fromkeys(row.dataset for row in CHECKPOINTS.values()))
        raise ValueError(f"No checkpoint is published for {dataset!r}; there are some for {known}.")
    return rows


def to_table(rows: Iterable[CheckpointRow]) -> str:
    """Lines of text: mIoU in percent, what others report and what we measured in columns of their own."""
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
    """All fields of the rows; scores are fractions, null is what is not known."""
    found = [{**dataclasses.asdict(row), "role": row.role, "data_licence": row.data_licence} for row in rows]
    return json.dumps(found, indent=2)
