"""List files: which images to take, one or two columns, as they circulate with the benchmarks."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import first

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListFile:
    """A list that was read.

    Attributes:
        path: The list.
        lines: Line number of each row, from 1.
        rows: Either all of one column (an image: id, file name or path) or all of two (paths of image and label).
    """

    path: Path
    lines: tuple[int, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def names_labels(self) -> bool:
        """Whether there are two columns."""
        return len(self.rows[0]) == 2

    def check(self, found: Sequence[Path | None], problem: str, column: int = 0) -> None:
        """Raise FileNotFoundError, with counts, names and line numbers, if something `found` for a row is None."""
        missing = [
            f"{row[column]} (line {line})"
            for row, line, path in zip(self.rows, self.lines, found, strict=True)
            if path is None
        ]
        if missing:
            files = ("images", "labels")[column]
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self.rows)} {files} listed in {self.path} {problem}: {first(missing)}."
            )

    def warn_of_repetitions(self, images: Sequence[Path]) -> None:
        """Log a warning if an image is listed more than once: training may want that, an evaluation hardly."""
        repeated = len(images) - len(set(images))
        if repeated:
            logger.warning("%s lists %d of its %d images more than once", self.path, repeated, len(images))


def read_list(path: Path, root: Path) -> ListFile:
    """Read a list; blank lines and lines that begin with # say nothing.

    Columns are separated by tabs, or by blanks in lines without tab: paths with blanks need a tab after them.

    Args:
        path: The list; if it is relative and not there, it is looked for in `root`.
        root: The user's data_dir.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lists nothing, or a line has more than two columns or another number than the first line.
    """
    path = Path(path).expanduser()
    places = [place for place in (path, root / path) if place.is_file()]
    if not places:
        raise FileNotFoundError(f"The list {path} is not there, nor in {root}; without a list, a split is read whole.")
    lines = places[0].read_text(encoding="utf-8-sig").splitlines()
    rows = {number: _columns(line) for number, line in enumerate(lines, 1) if not line.lstrip().startswith("#")}
    rows = {number: columns for number, columns in rows.items() if columns}
    if not rows:
        raise ValueError(f"{places[0]} lists no image.")
    _check_columns(places[0], rows)
    return ListFile(places[0], tuple(rows), tuple(rows.values()))


def _columns(line: str) -> tuple[str, ...]:
    parts = line.split("\t") if "\t" in line else line.split()
    return tuple(part.strip() for part in parts if part.strip())


def _check_columns(path: Path, rows: dict[int, tuple[str, ...]]) -> None:
    expected = len(next(iter(rows.values())))
    for number, columns in rows.items():
        if len(columns) > 2:
            raise ValueError(
                f"{path}, line {number}, has {len(columns)} columns; expected are one (image) or two (image and "
                "label). Where a path has blanks, put a tab after it."
            )
        if len(columns) != expected:
            raise ValueError(
                f"{path}, line {number}, has {len(columns)} columns, but the lines before it have {expected}: name the "
                "labels of all images or of none."
            )


class ListedFiles:
    """Finds listed paths; every folder is listed once, whatever the number of paths.

    Args:
        bases: Folders to which the paths may be relative, in this order.
    """

    def __init__(self, bases: Sequence[Path]):
        self._bases = [str(base) for base in dict.fromkeys(bases)]
        self._names: dict[str, frozenset[str]] = {}

    def __call__(self, entry: str) -> Path | None:
        """The file, or None.

        A path that begins with a slash may also be of another machine ("/SegNet/CamVid/train/a.png"): folders are
        dropped from its left until something is found.

        Raises:
            ValueError: If the path leaves its base.
        """
        parts = [part for part in entry.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ValueError(f"{entry}: listed paths must lie under data_dir, without '..'.")
        for dropped in range(len(parts) if entry.startswith("/") else min(len(parts), 1)):
            for base in self._bases:
                folder = os.path.join(base, *parts[dropped:-1])
                if parts[-1] in self._names_in(folder):
                    return Path(folder, parts[-1])
        return None

    def _names_in(self, folder: str) -> frozenset[str]:
        if folder not in self._names:
            self._names[folder] = frozenset(os.listdir(folder) if os.path.isdir(folder) else ())
        return self._names[folder]
