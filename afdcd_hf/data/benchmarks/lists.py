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
        return len(next(iter(self.rows.values()))) == 2

    def checked(self, found: Sequence[Path | None], problem: str, column: int = 0) -> tuple[Path, ...]:
        """What was `found` for each row; what is None is refused, and images listed more than once are a warning."""
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
    """Reads a list, from `root` if it is not there itself; blank lines and lines that begin with # say nothing.

    Columns are separated by tabs, or by blanks in lines without tab: paths with blanks need a tab after them. Lists
    made on Windows are read: UTF-16 with a byte order mark, backslashes, drives.

    FileNotFoundError if there is no such file; ValueError if it is not text, lists nothing, or a line has more than two
    columns or not as many as the others.
    """
    path = Path(path).expanduser()
    place = path if path.is_file() else root / path
    if not place.is_file():
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


def find_listed(entries: Iterable[str], bases: Sequence[Path]) -> list[Path | None]:
    """The files of listed paths below some folders, or None; a folder is read once, whatever the number of paths.

    A path that begins with a slash may be another machine's: folders are dropped from its left until it is found.
    """
    names: dict[str, dict[str, str]] = {}  # folder → name in one Unicode form → name as the disk spells it

    def below(folder: str, parts: Sequence[str]) -> Path | None:
        for part in parts:
            if folder not in names:
                names[folder] = {plain(name): name for name in os.listdir(folder)} if os.path.isdir(folder) else {}
            if part not in names[folder]:
                return None
            folder = os.path.join(folder, names[folder][part])
        return Path(folder)

    def find(entry: str) -> Path | None:
        parts = [part for part in entry.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ValueError(f"{entry}: listed paths must lie under data_dir, without '..'.")
        tails = [parts[dropped:] for dropped in range(len(parts) if entry.startswith("/") else min(len(parts), 1))]
        found = (below(str(base), tail) for tail in tails for base in dict.fromkeys(bases))
        return next((path for path in found if path is not None), None)

    return [find(entry) for entry in entries]
