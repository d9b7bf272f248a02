"""`verified.json`: what `afdcd verify` measured, on which weights and with what. A record, and no signature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic_io import written_whole
from ..cost.machine import library_versions, machine_name
from ..structured_files import read_json

if TYPE_CHECKING:
    from .verify import Verification

VERIFIED_NAME = "verified.json"


def checksums(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of files by name."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def statement(done: Verification) -> dict[str, Any]:
    """The outcome with date, machine and versions, as JSON has it; an undefined score is None."""
    made = {"date": date.today().isoformat(), "machine": machine_name(), "versions": library_versions()}
    text = json.dumps({"holds": done.holds, **asdict(done), **made})
    return json.loads(text, parse_constant=lambda _: None)  # NaN is not JSON


def write_statement(path: Path, done: Verification) -> None:
    """Write the outcome whole, or not at all."""
    with written_whole(path) as part:
        part.write_text(json.dumps(statement(done), indent=2) + "\n", "utf-8")


def doubts_of_statement(folder: Path, weights: Mapping[str, str], claimed: float) -> Iterator[str]:
    """Where a `verified.json` in the folder is of other weights (SHA-256 by file) or another score, a fraction.

    Raises:
        ValueError: the file is not such a statement.
    """
    path = folder / VERIFIED_NAME
    if not path.is_file():
        return
    known: dict[str, Any] = read_json(path, "what `afdcd verify --output` wrote")
    try:
        theirs, points, tolerance = known["weights"], known["mean_iou"], float(known["tolerance"])
        differs = points is None or abs(float(points) - claimed) > tolerance
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not what `afdcd verify --output` writes ({error!r}); remove it.") from error
    if theirs != weights:
        yield f"{VERIFIED_NAME} is of other weights than these (SHA-256): remove it"
    if differs:
        measured = "no score" if points is None else f"{100 * points:.2f} %"
        yield f"{VERIFIED_NAME} measured {measured}, where {100 * claimed:.2f} % are claimed"
