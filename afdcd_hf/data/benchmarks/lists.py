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

    def checked(self, found: Sequence[Path | None], problem: str, column: int = 0) -> tuple[Path, ...]:
        """What was `found` for each row; images that are listed more than once are a warning.

        Raises:
            FileNotFoundError: If something is None, with counts, names and line numbers.
        """
        rows = zip(self.rows, self.lines, found, strict=True)
        missing = [f"{row[column]} (line {line})" for row, line, path in rows if path is None]
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
            number than the first line.
    """
    path = Path(path).expanduser()
    place = next((place for place in (path, root / path) if place.is_file()), None)
    if place is None:
        raise FileNotFoundError(f"The list {path} is not there, nor in {root}; without a list, a split is read whole.")
    rows = {number: _columns(line) for number, line in enumerate(_text(place).splitlines(), 1)}
    rows = {number: columns for number, columns in rows.items() if columns}
    if not rows:
        raise ValueError(f"{place} lists no image.")
    _check_columns(place, rows)
    return ListFile(place, tuple(rows), tuple(rows.values()))


def _text(path: Path) -> str:
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The list {path} is not text in UTF-8 ({error}); save it in UTF-8.") from error
    if "\0" in text:
        raise ValueError(f"The list {path} is not text in UTF-8 (it holds zero bytes); save it in UTF-8.")
    return plain(text)


def _columns(line: str) -> tuple[str, ...]:
    if line.lstrip().startswith("#"):
        return ()
    parts = [part.strip() for part in (line.split("\t") if "\t" in line else line.split())]
    return tuple(_with_slashes(part) for part in parts if part)


def _with_slashes(entry: str) -> str:
    """C:\\data\\a.png becomes /data/a.png, a path of another machine."""
    entry = entry.replace("\\", "/")
    return entry[2:] if entry[1:3] == ":/" else entry


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

    def __init__(self, bases: Sequence[Path]) -> None:
        self._bases = [str(base) for base in dict.fromkeys(bases)]
        self._names: dict[str, dict[str, str]] = {}

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
                path = self._below(base, parts[dropped:])
                if path is not None:
                    return Path(path)
        return None

    def _below(self, path: str, parts: Sequence[str]) -> str | None:
        """The path with these parts below it, as they are spelled on the disk."""
        for part in parts:
            name = self._names_in(path).get(part)
            if name is None:
                return None
            path = os.path.join(path, name)
        return path

    def _names_in(self, folder: str) -> dict[str, str]:
        if folder not in self._names:
            names = os.listdir(folder) if os.path.isdir(folder) else ()
            self._names[folder] = {plain(name): name for name in names}
        return self._names[folder]
