"""Finds a split's files: every folder is listed once, and no file is looked at one by one (COCO has 118,287)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from .lists import ListedFiles, ListFile, first, plain, read_list
from .row import Benchmark, Layout, SplitFiles

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def find_files(benchmark: Benchmark, root: Path, split: str, list_file: str | Path | None = None) -> SplitFiles:
    """The files of a split, all under `root`.

    Args:
        benchmark: A benchmark with `files`.
        root: The user's data_dir.
        split: One of its splits.
        list_file: None, or a list of the images to take: paths of image and label in two columns, or one column of ids,
            file names or paths that belong to the split.

    Raises:
        FileNotFoundError: If folders or files are missing, or an image or a label has no counterpart; both are counted
            and named.
        ValueError: If two files have one key, or a list cannot be used.
    """
    assert benchmark.files is not None
    tree = _Tree(benchmark, benchmark.files, _home(benchmark, benchmark.files, root))
    path = list_file if list_file is not None else tree.own_list(split)
    listed = None if path is None else read_list(path, root)
    if listed is not None and listed.names_labels:
        return _listed_pairs(tree, listed, root)
    found = tree.scan(split)
    if listed is not None:
        return _picked_pairs(tree, found, listed)
    return _all_pairs(tree.chosen_without_list(split, found) if benchmark.files.lists else found)


def _home(benchmark: Benchmark, layout: Layout, root: Path) -> Path:
    """The data set's own root: `root`, or the first of the usual parents in it that holds a folder of images."""
    folders = [path for split in benchmark.split_sizes for path in layout.paths(layout.images, split)]
    homes = [root, *(root / home for home in layout.homes)]
    return next((home for home in homes if any((home / path).is_dir() for path in folders)), root)


@dataclass(frozen=True)
class _Found:
    """What lies in a split's folders: images and labels by key, in order; labels empty where the split has none."""

    images: Mapping[str, Path]
    labels: Mapping[str, Path]
    label_map: Mapping[int, int]
    image_place: str
    label_place: str
    labels_optional: bool


@dataclass(frozen=True)
class _Tree:
    """A benchmark's folders under its home."""

    benchmark: Benchmark
    layout: Layout
    home: Path

    def scan(self, split: str) -> _Found:
        layout, optional = self.layout, split in self.layout.unlabelled
        image_dirs, label_dirs = (self._there(paths, split) for paths in (layout.images, layout.labels))
        wanted = [(image_dirs, layout.images), *([] if optional else [(label_dirs, layout.labels)])]
        missing = [" or ".join(layout.paths(paths, split)) for there, paths in wanted if not there]
        if missing:
            raise self.lacking(split, f"folder {' and no '.join(missing)}")
        ending = layout.image_ending
        images = _by_key(_files(image_dirs[0], IMAGE_SUFFIXES, layout.nested), ending, image_dirs[0])
        if not images:
            raise _nothing_in(image_dirs[0], [f"{ending}{suffix}" for suffix in IMAGE_SUFFIXES])
        labels, label_map = self._labels(label_dirs, images)
        if not labels and not optional:
            usable = [f"{end}.png" for end, values in layout.label_endings.items() if values is not None]
            raise _nothing_in(label_dirs[0], usable)
        place = " or ".join(map(str, label_dirs)) or str(self.home)
        return _Found(images, labels, label_map, str(image_dirs[0]), place, optional)

    def _there(self, templates: tuple[str, ...], split: str) -> list[Path]:
        paths = [self.home / path for path in self.layout.paths(templates, split)]
        return [path for path in paths if path.is_dir()]

    def _labels(self, folders: list[Path], images: Mapping[str, Path]) -> tuple[dict[str, Path], Mapping[int, int]]:
        """The label files by key, and the map of their kind."""
        files = [(folder, _files(folder, (".png",), self.layout.nested)) for folder in folders]
        for ending, label_map in self.layout.label_endings.items():
            labels: dict[str, Path] = {}
            for folder, paths in files if label_map is not None else ():
                more = _by_key([path for path in paths if self.ending_of(path.stem) == ending], ending, folder)
                labels = {
                    key: path for key, path in more.items() if self.layout.lists or not labels or key in images
                } | labels
            if labels:
                return {key: labels[key] for key in sorted(labels)}, label_map or {}
        return {}, {}

    def ending_of(self, stem: str) -> str | None:
        """The longest ending of a label file that fits."""
        fitting = [ending for ending in self.layout.label_endings if stem.endswith(ending)]
        return max(fitting, key=len, default=None)

    def own_list(self, split: str) -> Path | None:
        """The list of a split that comes with the data."""
        paths = [self.home / path for path in self.layout.paths(self.layout.lists, split)]
        return next((path for path in paths if path.is_file()), None)

    def chosen_without_list(self, split: str, found: _Found) -> _Found:
        rule = self.layout.without_list.get(split, {})
        without = self.own_list(rule["but_not"]) if rule else None
        folder = self.home / rule.get("labels", "")
        if without is None or not folder.is_dir():
            wanted = self.layout.paths(self.layout.lists, split)[0]
            helpful = f" (or {rule['labels']}/*.png and a list of {rule['but_not']})" if rule else ""
            raise self.lacking(split, f"list {wanted}{helpful}")
        keys = set(_by_key(_files(folder, (".png",)), "", folder)) | self._ids(self.own_list(rule["and"]))
        keys -= self._ids(without)
        logger.info(
            "%s has no list of %s: taking the images with a label in %s and those of %s, without those of %s",
            self.home, split, rule["labels"], rule["and"], rule["but_not"],
        )  # fmt: skip
        of_split = [{key: path for key, path in part.items() if key in keys} for part in (found.images, found.labels)]
        return replace(found, images=of_split[0], labels=of_split[1])

    def _ids(self, path: Path | None) -> set[str]:
        return set() if path is None else {key_of(columns[0]) for columns in read_list(path, path.parent).rows}

    def lacking(self, split: str, what: str) -> FileNotFoundError:
        complete = filter(self._complete, self.benchmark.split_sizes)
        return FileNotFoundError(
            f"{self.home} has no {what}, needed for {self.benchmark.name}'s split {split}. Expected: "
            f"{self.benchmark.layout}. Splits found there: {first(complete, 9)}."
        )

    def _complete(self, split: str) -> bool:
        folders = [self.layout.images, *([] if split in self.layout.unlabelled else [self.layout.labels])]
        listed = not self.layout.lists or self.own_list(split) is not None
        return listed and all(self._there(paths, split) for paths in folders)


def _files(folder: Path, suffixes: tuple[str, ...], nested: bool = False) -> list[Path]:
    """Files ending in `suffixes` in either case, in order; hidden ones (such as macOS's `._x.png`) are no data."""
    if nested:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        return [path for name in inner for path in _files(folder / name, suffixes)]
    return [
        Path(folder, name)
        for name in sorted(os.listdir(folder))
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
    ]


def _by_key(paths: Iterable[Path], ending: str, folder: Path) -> dict[str, Path]:
    """Files by what images and labels have in common: the stem without its ending; files without it are no data."""
    keyed: dict[str, Path] = {}
    for path in paths:
        if not path.stem.endswith(ending):
            continue
        key = plain(path.stem.removesuffix(ending))
        if key in keyed:
            raise ValueError(f"{folder} has both {keyed[key].name} and {path.name}; remove one of them.")
        keyed[key] = path
    return keyed


def _nothing_in(folder: Path, endings: Iterable[str]) -> FileNotFoundError:
    return FileNotFoundError(f"{folder} holds no file ending in {', '.join(endings)} (in either case).")


def _all_pairs(found: _Found) -> SplitFiles:
    """Every image with its label."""
    images, labels = found.images, found.labels
    if found.labels_optional and not labels:
        return SplitFiles(tuple(images.values()), (None,) * len(images))
    lonely = [
        (found.image_place, "label", [path.name for key, path in images.items() if key not in labels]),
        (found.label_place, "image", [path.name for key, path in labels.items() if key not in images]),
    ]
    problems = [f"{len(names)} in {place} without {other} ({first(names)})" for place, other, names in lonely if names]
    if problems:
        raise FileNotFoundError(f"Images and labels must share their file stems: {'; '.join(problems)}.")
    return SplitFiles(tuple(images.values()), tuple(labels[key] for key in images), found.label_map)


def _picked_pairs(tree: _Tree, found: _Found, listed: ListFile) -> SplitFiles:
    """The images of a list of one column, with their labels; images that are not listed need none."""
    keys = [key_of(entry).removesuffix(tree.layout.image_ending) for (entry,) in listed.rows]
    images = [_in_place(found.images.get(key), entry) for key, (entry,) in zip(keys, listed.rows, strict=True)]
    paths = listed.checked(images, f"are not in {found.image_place}")
    labels = [found.labels.get(key) for key in keys]
    if found.labels_optional and not any(labels):
        return SplitFiles(paths, tuple(labels))
    return SplitFiles(paths, listed.checked(labels, f"have no label in {found.label_place}"), found.label_map)


def _listed_pairs(tree: _Tree, listed: ListFile, root: Path) -> SplitFiles:
    """The images and labels of a list of two columns, wherever they lie."""
    label_map = _common_map(tree, listed)
    find, place = ListedFiles((tree.home, root)), f"are not under {root}"
    images = listed.checked([find(image) for image, _ in listed.rows], place)
    return SplitFiles(images, listed.checked([find(label) for _, label in listed.rows], place, column=1), label_map)


def _common_map(tree: _Tree, listed: ListFile) -> Mapping[int, int]:
    endings = tree.layout.label_endings
    lines: dict[str, int] = {}  # the first line of each kind
    for line, (_, label) in zip(listed.lines, listed.rows, strict=True):
        ending = tree.ending_of(key_of(label))
        if ending is None or endings[ending] is None:
            usable = " or ".join(f"*{end}.png" for end, values in endings.items() if values is not None)
            raise ValueError(
                f"{listed.path}, line {line}: {label} is no label file for {tree.benchmark.name}, which wants {usable}"
                + ("." if ending is None else f", not *{ending}.png: its class ids are numbered otherwise.")
            )
        lines.setdefault(ending, line)
    if len(lines) > 1:
        mixed = " and ".join(f"*{ending}.png (line {line})" for ending, line in lines.items())
        raise ValueError(f"{listed.path} lists {mixed}, whose class ids are numbered differently: list one kind only.")
    return next(values or {} for ending, values in endings.items() if ending in lines)


def key_of(entry: str) -> str:
    """The id, file name or path without folders, and without the suffix if it is an image's: ids may have dots."""
    name = entry.rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _in_place(path: Path | None, entry: str) -> Path | None:
    """The path, unless the folders that the list names are other ones: an image of another split, say.

    Of a path that begins with a slash only the last folder counts: the others may be another machine's.
    """
    if path is None or "/" not in entry.lstrip("/"):
        return path
    parent = PurePosixPath(entry).parent
    folders = parent.name if entry.startswith("/") else parent.as_posix()
    return path if f"/{plain(path.parent.as_posix())}".endswith(f"/{folders}") else None
