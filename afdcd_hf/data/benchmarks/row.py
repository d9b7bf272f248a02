"""The definition of a benchmark: one row of the table, read from its YAML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """The layout of the files. Images and labels are paired by a key, the part of their stems that they share."""

    # Folders that may hold them, `{split}` for the split's name. Of the image folders, the first that exists is used;
    # label folders after the first only supply labels that it lacks.
    images: Sequence[str]
    labels: Sequence[str]
    # End of the label files' stems → value in the file → train id or ignore index, unlisted values stay; None if the
    # values mean something else. The longest ending that fits a file counts; of those with a map, the first that has
    # files is used.
    label_endings: Mapping[str, Mapping[int, int] | None] = field(default_factory=lambda: {"": {}})
    homes: Sequence[str] = ()  # folders in `data_dir` that may hold all this instead
    label_suffixes: tuple[str, ...] = (".png",)  # in lower case
    image_ending: str = ""  # of the image files' stems; files without it are skipped
    split_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # in the paths, if not its own
    lists: Sequence[str] = ()  # files with the ids of a split's images, if all splits share their folders
    nested: bool = False  # whether the files lie one level deeper, in a folder per city
    unlabelled: Sequence[str] = ()  # splits that are (also) published without labels

    def paths(self, templates: Sequence[str], split: str) -> list[str]:
        """Fill in the templates with the split's names."""
        names = self.split_names.get(split, (split,))
        return list(dict.fromkeys(template.format(split=name) for template in templates for name in names))


@dataclass(frozen=True)
class Submission:
    """The form in which a benchmark's test server expects predictions."""

    label_ids: Mapping[int, int]  # train id → value in the PNG; unlisted values stay
    file_name: Callable[[str], str]  # name of an image (path under `data_dir`) → name of its PNG


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's classes, splits, terms and files."""

    name: str  # key in `BENCHMARKS`
    title: str  # as usually written
    classes: tuple[str, ...]  # position = train id
    palette: tuple[RGB, ...]  # one colour per class, 0..255
    split_sizes: Mapping[str, int]  # number of images of each split as published
    licence: str  # terms of the images
    homepage: str  # where the data comes from
    citation: str
    layout: str  # the files expected under `data_dir`, in words, for error messages
    files: Layout | None = None  # the same for `find_files`; None if the images are generated
    submission: Submission | None = None  # what the test server expects; None if there is none
    # Value in the label files as published → train id or ignore index; unlisted values stay.
    label_map: Mapping[int, int] = field(default_factory=dict)
    ignore_index: int = 255  # label of pixels that are neither trained on nor scored

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.classes)


def read_benchmark(path: Path) -> Benchmark:
    """Read a benchmark's file, which has these keys besides the attributes of `Benchmark` of the same name.

    - `splits`: `split_sizes`.
    - `classes`: value in the label files → name, red, green, blue; `ignored`: the values that are not trained on.
    - `files`, if there are any: the attributes of `Layout`; `label_endings` are `published` (values as in `classes`),
      `train ids` or `other ids`.
    - `submission`: the value of `ignored` pixels, and the `ending` of the PNGs' names.
    - `like`: another file, whose values are the defaults; `classes` are added to its classes.
    """
    facts: dict[str, Any] = _facts(path)
    rows, files = dict(sorted(facts.pop("classes").items())), facts.pop("files", None)
    label_map = dict.fromkeys(facts.pop("ignored", ()), 255)
    label_map |= {value: index for index, value in enumerate(rows) if value != index}
    kinds = {"published": label_map, "train ids": {}, "other ids": None}
    if files is not None:
        endings = files.pop("label_endings", {"": "published"})
        files = Layout(label_endings={ending: kinds[kind] for ending, kind in endings.items()}, **files)
    if (submission := facts.pop("submission", None)) is not None:
        label_ids = {index: value for index, value in enumerate(rows) if value != index}
        label_ids |= {255: submission["ignored"]} if "ignored" in submission else {}
        end = submission.get("ending", ".png")
        submission = Submission(label_ids, lambda name: PurePosixPath(name).stem.removesuffix(files.image_ending) + end)
    return Benchmark(
        name=path.stem,
        classes=tuple(name for name, *_ in rows.values()),
        palette=tuple((red, green, blue) for _, red, green, blue in rows.values()),
        split_sizes=facts.pop("splits"),
        files=files,
        submission=submission,
        label_map=label_map,
        **facts,
    )


def _facts(path: Path) -> dict[str, Any]:
    facts = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if "like" not in facts:
        return facts
    other = _facts(path.with_name(f"{facts.pop('like')}.yaml"))
    return other | facts | {name: other[name] | facts.get(name, {}) for name in ("files", "classes")}
