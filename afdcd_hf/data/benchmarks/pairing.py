"""Which label belongs to which image, and what the values in label files mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .files import IMAGE_SUFFIXES, first
from .lists import ListedFiles, ListFile
from .row import Benchmark, SplitFiles


@dataclass(frozen=True)
class LabelKind:
    """One of the ways in which a benchmark's label files are numbered, told by how their stems end.

    Attributes:
        ending: End of the file stem; where several kinds fit, the longest ending decides.
        label_map: Value in the file → train id or ignore index; values not listed stay. None: not to be used.
    """

    ending: str
    label_map: Mapping[int, int] | None


@dataclass(frozen=True)
class Found:
    """What lies in a split's folders.

    Attributes:
        images: Image files by key, in order.
        labels: Label files by key; empty where the split has none.
        label_map: As in `SplitFiles`.
        image_place: The images' folder, for messages.
        label_place: The labels' folder or folders, for messages.
        labels_optional: Whether the split is (also) published without labels.
    """

    images: Mapping[str, Path]
    labels: Mapping[str, Path]
    label_map: Mapping[int, int]
    image_place: str
    label_place: str
    labels_optional: bool = False


def kind_of(stem: str, kinds: Sequence[LabelKind]) -> LabelKind | None:
    """The kind with the longest ending that fits."""
    fitting = [kind for kind in kinds if stem.endswith(kind.ending)]
    return max(fitting, key=lambda kind: len(kind.ending), default=None)


def all_pairs(found: Found) -> SplitFiles:
    """Every image with its label.

    Raises:
        FileNotFoundError: If an image has no label or a label no image; both are counted and named.
    """
    images, labels = found.images, found.labels
    if found.labels_optional and not labels:
        return SplitFiles(tuple(images.values()), (None,) * len(images))
    problems = [
        f"{len(lonely)} in {place} without {counterpart} ({first(lonely)})"
        for place, counterpart, lonely in (
            (found.image_place, "label", [images[key].name for key in images if key not in labels]),
            (found.label_place, "image", [labels[key].name for key in labels if key not in images]),
        )
        if lonely
    ]
    if problems:
        raise FileNotFoundError(f"Images and labels must share their file stems: {'; '.join(problems)}.")
    return SplitFiles(tuple(images.values()), tuple(labels[key] for key in images), found.label_map)


def picked_pairs(found: Found, listed: ListFile, key_of: Callable[[str], str]) -> SplitFiles:
    """The images of a list of one column, with their labels; images that are not listed need none.

    Args:
        key_of: File stem or id → key.

    Raises:
        FileNotFoundError: If a listed image or its label is not there; they are counted, named and their lines given.
    """
    keys = [key_of(stem_of(entry)) for (entry,) in listed.rows]
    images = [_in_place(found.images.get(key), entry) for key, (entry,) in zip(keys, listed.rows, strict=True)]
    listed.check(images, f"are not in {found.image_place}")
    listed.warn_of_repetitions(images)
    labels = [found.labels.get(key) for key in keys]
    if found.labels_optional and not any(labels):
        return SplitFiles(tuple(images), tuple(labels))
    listed.check(labels, f"have no label in {found.label_place}")
    return SplitFiles(tuple(images), tuple(labels), found.label_map)


def listed_pairs(
    benchmark: Benchmark, listed: ListFile, bases: Sequence[Path], kinds: Sequence[LabelKind]
) -> SplitFiles:
    """The images and labels of a list of two columns, wherever they lie under `bases`.

    Raises:
        FileNotFoundError: If listed files are not there; they are counted, named and their lines given.
        ValueError: If the labels are not all of one kind, or of one that is not to be used.
    """
    label_map = _common_map(benchmark, listed, kinds)
    find, place = ListedFiles(bases), f"are not under {bases[-1]}"
    images = [find(image) for image, _ in listed.rows]
    listed.check(images, place)
    listed.warn_of_repetitions(images)
    labels = [find(label) for _, label in listed.rows]
    listed.check(labels, place, column=1)
    return SplitFiles(tuple(images), tuple(labels), label_map)


def _common_map(benchmark: Benchmark, listed: ListFile, kinds: Sequence[LabelKind]) -> Mapping[int, int]:
    lines: dict[str, int] = {}  # the first line of each kind
    for line, (_, label) in zip(listed.lines, listed.rows, strict=True):
        kind = kind_of(stem_of(label), kinds)
        if kind is None or kind.label_map is None:
            usable = " or ".join(f"*{kind.ending}.png" for kind in kinds if kind.label_map is not None)
            raise ValueError(
                f"{listed.path}, line {line}: {label} is no label file for {benchmark.name}, which wants {usable}"
                + ("." if kind is None else f", not *{kind.ending}.png: its class ids are numbered otherwise.")
            )
        lines.setdefault(kind.ending, line)
    if len(lines) > 1:
        mixed = " and ".join(f"*{ending}.png (line {line})" for ending, line in lines.items())
        raise ValueError(f"{listed.path} lists {mixed}, whose class ids are numbered differently: list one kind only.")
    return next(kind.label_map for kind in kinds if kind.ending in lines)


def stem_of(entry: str) -> str:
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
    return path if f"/{path.parent.as_posix()}".endswith(f"/{folders}") else None
