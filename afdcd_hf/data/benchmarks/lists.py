"""List files: which images to take, one or two columns, as they circulate with the benchmarks."""

from __future__ import annotations

import codecs
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


def plain(name: str) -> str:
    """A name in one Unicode form: "ü" may be one character or two, and differ between a list and a disk."""
    return unicodedata.normalize("NFC", name)


def first(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a message; "none" if there is none."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") if names else "none"


@dataclass(frozen=True)
class ListFile:
    """A list that was read: line number → an image (id, file name or path), or the paths of an image and its label."""

    path: Path
    rows: dict[int, tuple[str, ...]]

    @property
    def names_labels(self) -> bool:
        """Whether there are two columns."""
        return len(next(iter(self.rows.values()))) == 2

    def checked(self, found: Sequence[Path | None], problem: str, column: int = 0) -> tuple[Path, ...]:
        """What was `found` for each row; images that are listed more than once are a warning.

        Raises:
            FileNotFoundError: If something is None, with counts, names and line numbers.
        """
        rows = zip(self.rows.items(), found, strict=True)
        missing = [f"{row[column]} (line {line})" for (line, row), path in rows if path is None]
        if missing:
            files = ("images", "labels")[column]
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self.rows)} {files} listed in {self.path} {problem}: {first(missing)}."
            )
        paths = tuple(path for path in found if path is not None)
        repeated = len(paths) - len(set(paths))
        if repeated and column == 0:  # training may want that, an evaluation hardly
            logger.warning("%s lists %d of its %d images more than once", self.path, repeated, len(paths))
        return paths


def read_list(path: str | Path, root: Path) -> ListFile:
    """Reads a list; blank lines and lines that begin with # say nothing.

    Columns are separated by tabs, or by blanks in lines without tab: paths with blanks need a tab after them. Lists
    made on Windows are read: UTF-16 with a byte order mark, backslashes, drives.

    Args:
        path: The list; if it is relative and not there, it is looked for in `root`.
        root: The user's data_dir.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not text in UTF-8 or UTF-16, lists nothing, or a line has more than two columns or another
            number than the lines before it.
    """
    path = Path(path).expanduser()
    place = next((place for place in (path, root / path) if place.is_file()), None)
    if place is None:
        raise FileNotFoundError(f"The list {path} is not there, nor in {root}; without a list, a split is read whole.")
    content = place.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")
    if "\0" in text or "\ufffd" in text:
        raise ValueError(f"The list {place} is not text in UTF-8 or UTF-16; save it in UTF-8.")
    rows: dict[int, tuple[str, ...]] = {}
    for number, line in enumerate(plain(text).splitlines(), 1):
        columns = _columns(line)
        if columns and (len(columns) > 2 or len(columns) != len(next(iter(rows.values()), columns))):
            raise ValueError(
                f"{place}, line {number}, has {len(columns)} columns; expected are one (image) or two (image and "
                "label), as many as in the lines before it. Where a path has blanks, put a tab after it."
            )
        if columns:
            rows[number] = columns
    if not rows:
        raise ValueError(f"{place} lists no image.")
    return ListFile(place, rows)


def _columns(line: str) -> tuple[str, ...]:
    if line.lstrip().startswith("#"):
        return ()
    parts = [part.strip().replace("\\", "/") for part in (line.split("\t") if "\t" in line else line.split())]
    # C:\data\a.png becomes /data/a.png, a path of another machine
    return tuple(part[2:] if part[1:3] == ":/" else part for part in parts if part)


class ListedFiles:
    """Finds listed paths below some folders; each folder is read once, whatever the number of paths."""

    def __init__(self, bases: Sequence[Path]) -> None:
        self._bases = [str(base) for base in dict.fromkeys(bases)]
        self._names: dict[str, dict[str, str]] = {}

    def __call__(self, entry: str) -> Path | None:
        """The file, or None.

        Raises:
            ValueError: If the path leaves its base.
        """
        parts = [part for part in entry.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ValueError(f"{entry}: listed paths must lie under data_dir, without '..'.")
        # one that begins with a slash may be another machine's: folders are dropped from its left until it is found
        for dropped in range(len(parts) if entry.startswith("/") else min(len(parts), 1)):
            for base in self._bases:
                path = self._below(base, parts[dropped:])
                if path is not None:
                    return Path(path)
        return None

    def _below(self, folder: str, parts: Sequence[str]) -> str | None:
        """The path with these parts below the folder, as they are spelled on the disk."""
        for part in parts:
            if folder not in self._names:
                names = os.listdir(folder) if os.path.isdir(folder) else ()
                self._names[folder] = {plain(name): name for name in names}
            if part not in self._names[folder]:
                return None
            folder = os.path.join(folder, self._names[folder][part])
        return folder
