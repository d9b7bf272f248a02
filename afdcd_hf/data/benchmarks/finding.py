"""Finding a split's files by listing each folder once, without looking at single files (COCO has 118,287)."""

from __future__ import annotations

import codecs
import logging
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from .row import Benchmark

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, in order."""

    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]  # of each image; None if the split is published without labels
    label_map: Mapping[int, int]  # value in these label files → train id or ignore index; unlisted values stay


def find_files(benchmark: Benchmark, root: Path, split: str, list_file: str | Path | None = None) -> SplitFiles:
    """Find the files of a split, all under `root`, the user's data_dir.

    `list_file` lists the images to use: paths of image and label in two columns, or one column of ids, file names or
    paths that belong to the split.

    Raises FileNotFoundError, with number and names, for missing folders and files and for images or labels without a
    counterpart; ValueError if two files have the same key, or a list cannot be used.
    """
    folders = _Folders(benchmark, root)
    path = list_file if list_file is not None else folders.own_list(split)
    listed = None if path is None else read_list(path, root)
    if listed is not None and listed.names_labels:
        return _listed_pairs(folders, listed, root)
    layout, optional = folders.layout, split in folders.layout.unlabelled
    image_dirs, label_dirs = folders.of_split(split)
    images = _by_key(_files(image_dirs[0], IMAGE_SUFFIXES, layout.nested), layout.image_ending)
    labels, label_map = folders.labels(label_dirs, images)
    for found, place, ends, suffixes in (
        (images, image_dirs, [layout.image_ending], IMAGE_SUFFIXES),
        (labels or optional, label_dirs, folders.usable, layout.label_suffixes),
    ):
        if not found:
            endings = ", ".join(f"{end}{suffix}" for end in ends for suffix in suffixes)
            raise FileNotFoundError(f"{place[0]} holds no file ending in {endings} (in either case).")
    label_place = " or ".join(map(str, label_dirs)) or str(folders.home)
    if listed is not None:  # images that are not listed need no label
        entries = [entry for (entry,) in listed.rows.values()]
        keys = [_key(entry).removesuffix(layout.image_ending) for entry in entries]
        places = [_in_place(images.get(key), entry) for key, entry in zip(keys, entries, strict=True)]
        paths = listed.checked(places, f"are not in {image_dirs[0]}")
        own = tuple(labels.get(key) for key in keys)
        if optional and not any(own):
            return SplitFiles(paths, own, {})
        return SplitFiles(paths, listed.checked(own, f"have no label in {label_place}"), label_map)
    if layout.lists:
        raise folders.lacking(split, f"list {layout.paths(layout.lists, split)[0]}")
    if optional and not labels:
        return SplitFiles(tuple(images.values()), (None,) * len(images), {})
    lonely = [
        (image_dirs[0], "label", [path.name for key, path in images.items() if key not in labels]),
        (label_place, "image", [path.name for key, path in labels.items() if key not in images]),
    ]
    problems = [f"{len(names)} in {place} without {other} ({first(names)})" for place, other, names in lonely if names]
    if problems:
        raise FileNotFoundError(f"Images and labels must share their file stems: {'; '.join(problems)}.")
    return SplitFiles(tuple(images.values()), tuple(labels[key] for key in images), label_map)


def _listed_pairs(folders: _Folders, listed: ListFile, root: Path) -> SplitFiles:
    """Find the images and labels of a two-column list, wherever they lie."""
    # one label of each kind, with its line
    kinds = {folders.ending_of(_key(row[1])): f"{row[1]} (line {line})" for line, row in listed.rows.items()}
    [ending, *others] = kinds
    if others or ending not in folders.usable:
        usable = " or all ".join(f"*{end}.png" for end in folders.usable)
        raise ValueError(
            f"{listed.path} lists {' and '.join(kinds.values())}, but the labels of {folders.benchmark.name} must be "
            f"all {usable}: others number the classes differently."
        )
    images, labels = (
        listed.checked(
            find_listed([row[column] for row in listed.rows.values()], (folders.home, root)),
            f"are not under {root}",
            column,
        )
        for column in (0, 1)
    )
    return SplitFiles(images, labels, folders.usable[ending])


class _Folders:
    """A benchmark's folders under its home: `root`, or the first of its usual subfolders with a folder of images."""

    def __init__(self, benchmark: Benchmark, root: Path) -> None:
        assert benchmark.files is not None
        self.benchmark, self.layout = benchmark, benchmark.files
        self.usable = {end: values for end, values in self.layout.label_endings.items() if values is not None}
        folders = [path for split in benchmark.split_sizes for path in self.layout.paths(self.layout.images, split)]
        homes = [root, *(root / home for home in self.layout.homes)]
        self.home = next((home for home in homes if any((home / path).is_dir() for path in folders)), root)

    def of_split(self, split: str) -> tuple[list[Path], list[Path]]:
        """Return the existing folders of the split's images and labels."""
        found: list[list[Path]] = []
        missing = []
        for templates, optional in ((self.layout.images, False), (self.layout.labels, split in self.layout.unlabelled)):
            paths = self.layout.paths(templates, split)
            found.append([self.home / path for path in paths if (self.home / path).is_dir()])
            missing += [] if found[-1] or optional else [" or ".join(paths)]
        if missing:
            raise self.lacking(split, f"folder {' and no '.join(missing)}")
        return found[0], found[1]

    def labels(self, folders: list[Path], images: Mapping[str, Path]) -> tuple[dict[str, Path], Mapping[int, int]]:
        """Return the label files by key, and the map of their kind."""
        files = [_files(folder, self.layout.label_suffixes, self.layout.nested) for folder in folders]
        for ending, label_map in self.usable.items():
            labels: dict[str, Path] = {}
            for paths in files:  # a later folder only adds labels that images still lack
                more = _by_key([path for path in paths if self.ending_of(path.stem) == ending], ending)
                labels = {key: path for key, path in more.items() if not labels or key in images} | labels
            if labels:
                return dict(sorted(labels.items())), label_map
        return {}, {}

    def ending_of(self, stem: str) -> str | None:
        """Return the longest ending of label files that fits."""
        return max((ending for ending in self.layout.label_endings if stem.endswith(ending)), key=len, default=None)

    def own_list(self, split: str) -> Path | None:
        """Return the split's list that comes with the data, if there is one."""
        paths = [self.home / path for path in self.layout.paths(self.layout.lists, split)]
        return next((path for path in paths if path.is_file()), None)

    def lacking(self, split: str, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.home} has no {what}, needed for {self.benchmark.name}'s split {split}. Expected: "
            f"{self.benchmark.layout}."
        )


def _files(folder: Path, suffixes: tuple[str, ...], nested: bool = False) -> list[Path]:
    """List files ending in `suffixes` in either case, sorted; hidden ones (such as macOS's `._x.png`) are skipped."""
    if nested:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        return [path for name in inner for path in _files(folder / name, suffixes)]
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [Path(folder, name) for name in names if os.path.splitext(name)[1].lower() in suffixes]


def _by_key(paths: Iterable[Path], ending: str) -> dict[str, Path]:
    """Index files by what image and label share: the stem without its ending; files without it are skipped."""
    keyed: dict[str, Path] = {}
    for path in paths:
        if path.stem.endswith(ending):
            other = keyed.setdefault(plain(path.stem.removesuffix(ending)), path)
            if other is not path:
                raise ValueError(f"{path.parent} has both {other.name} and {path.name}; remove one of them.")
    return keyed


def _key(entry: str) -> str:
    """Return the id, file name or path without folders, and without an image suffix; ids may have dots."""
    name = entry.rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _in_place(path: Path | None, entry: str) -> Path | None:
    """Return the path, unless the list names other folders: an image of another split, say.

    Of an absolute path, only the last folder counts: the others may be another machine's.
    """
    if path is None or "/" not in entry.lstrip("/"):
        return path
    parent = PurePosixPath(entry).parent
    folders = parent.name if entry.startswith("/") else parent.as_posix()
    return path if f"/{plain(path.parent.as_posix())}".endswith(f"/{folders}") else None


# List files, as they circulate with the benchmarks: one or two columns that say which images to use.


def plain(name: str) -> str:
    """Return a name in one Unicode form: "ü" may be one character or two, and differ between a list and a disk."""
    return unicodedata.normalize("NFC", name)


def first(names: Sequence[str]) -> str:
    """Return the first few names, for a message."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@dataclass(frozen=True)
class ListFile:
    """The content of a list: line number → an image (id, file name or path), or the paths of an image and its label."""

    path: Path
    rows: dict[int, tuple[str, ...]]

    @property
    def names_labels(self) -> bool:
        return len(next(iter(self.rows.values()))) == 2

    def checked(self, found: Sequence[Path | None], problem: str, column: int = 0) -> tuple[Path, ...]:
        """Return what was `found` for each row; FileNotFoundError for None, a warning for images listed twice."""
        rows = zip(self.rows.items(), found, strict=True)
        missing = [f"{row[column]} (line {line})" for (line, row), path in rows if path is None]
        if missing:
            files = ("images", "labels")[column]
            raise FileNotFoundError(
                f"{len(missing)} of the {len(self.rows)} {files} listed in {self.path} {problem}: {first(missing)}."
            )
        paths = tuple(path for path in found if path is not None)
        repeated = len(paths) - len(set(paths))
        if repeated and column == 0:  # useful in training, perhaps, but hardly in evaluation
            logger.warning("%s lists %d of its %d images more than once", self.path, repeated, len(paths))
        return paths


def read_list(path: str | Path, root: Path) -> ListFile:
    """Read a list, from `root` if `path` itself does not exist; blank lines and lines that begin with # are skipped.

    Columns are separated by tabs, or by spaces in lines without a tab: paths with spaces need a tab after them. Lists
    made on Windows are read: UTF-16 with a byte order mark, backslashes, drive letters.

    Raises FileNotFoundError if there is no such file; ValueError if it is not text, lists nothing, or a line has more
    than two columns or not as many as the others.
    """
    path = Path(path).expanduser()
    place = path if path.is_file() else root / path
    if not place.is_file():
        raise FileNotFoundError(f"There is no list {path}, here or in {root}; without a list, the whole split is used.")
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
                f"{place}, line {number}, has {len(columns)} columns; expected one (image) or two (image and "
                "label), as many as in the lines before it. If a path has spaces, put a tab after it."
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
    """Find the files of listed paths below some folders, or None; each folder is read once.

    An absolute path may be another machine's: leading folders are dropped until it is found.
    """

    @cache
    def inside(folder: Path) -> dict[str, Path]:  # by name in one Unicode form
        return {plain(path.name): path for path in folder.iterdir()} if folder.is_dir() else {}

    def below(base: Path, parts: Sequence[str]) -> Path | None:
        found: Path | None = base
        for part in parts:
            found = inside(found).get(part) if found else None
        return found

    def find(entry: str) -> Path | None:
        parts = [part for part in entry.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise ValueError(f"{entry}: listed paths must lie under data_dir, without '..'.")
        tails = [parts[dropped:] for dropped in range(len(parts) if entry.startswith("/") else min(len(parts), 1))]
        found = (below(base, tail) for tail in tails for base in dict.fromkeys(bases))
        return next((path for path in found if path), None)

    return [find(entry) for entry in entries]
