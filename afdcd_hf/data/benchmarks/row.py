"""What has to be known about a benchmark: one row of the table, as its YAML file says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Layout:
    """Where the files lie. The part of their stems that an image and its label share, the key, pairs them.

    Attributes:
        images: Folders in which the images may lie, `{split}` for the split's name; the first that is there is taken.
        labels: The same of the labels; those after the first only have the labels that it lacks.
        label_endings: End of the label files' stems → value in the file → train id or ignore index, values not listed
            stay; None where the values mean something else. The longest ending that fits a file decides; of those with
            a map, the first of which there are files is taken.
        homes: Folders that may hold all this, besides `data_dir` itself.
        image_ending: End of the image files' stems; files without it are no data.
        split_names: What a split is called in the paths, where not by its own name.
        lists: Files with the ids of a split's images, where all splits share their folders.
        without_list: Split → how its images are found where there is no list: those with `labels` in that folder `and`
            those of another split, `but_not` those of a third.
        nested: Whether the files lie one level deeper, in a folder a city.
        unlabelled: Splits that are (also) published without labels.
    """

    images: Sequence[str]
    labels: Sequence[str]
    label_endings: Mapping[str, Mapping[int, int] | None] = field(default_factory=lambda: {"": {}})
    homes: Sequence[str] = ()
    image_ending: str = ""
    split_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    lists: Sequence[str] = ()
    without_list: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nested: bool = False
    unlabelled: Sequence[str] = ()

    def paths(self, templates: Sequence[str], split: str) -> list[str]:
        """The templates with the split's names."""
        names = self.split_names.get(split, (split,))
        return list(dict.fromkeys(template.format(split=name) for template in templates for name in names))


@dataclass(frozen=True)
class Submission:
    """How a benchmark's test server wants predictions.

    Attributes:
        label_ids: Train id → value in the PNG; values not listed stay.
        file_name: Name of an image (path under `data_dir`) → name of its PNG.
    """

    label_ids: Mapping[int, int]
    file_name: Callable[[str], str]


@dataclass(frozen=True)
class Benchmark:
    """What has to be known about a benchmark besides its files.

    Attributes:
        name: Key in `BENCHMARKS`.
        classes: Class names; position = train id.
        palette: One RGB colour per class, 0..255.
        split_sizes: Number of images of each split as published.
        licence: Terms of the images.
        homepage: Where the data comes from.
        citation: What to cite.
        layout: The files expected under `data_dir`, in words, for error messages.
        files: The same for `find_files`; None where the images are generated.
        submission: What the test server wants; None where there is none.
        label_map: Value in the label files as published → train id or ignore index; values not listed stay.
        ignore_index: Label of pixels that are neither trained on nor scored.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[RGB, ...]
    split_sizes: Mapping[str, int]
    licence: str
    homepage: str
    citation: str
    layout: str
    files: Layout | None = None
    submission: Submission | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    ignore_index: int = 255

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.classes)


def read_benchmark(path: Path) -> Benchmark:
    """The row of a file of the table, with these keys besides the attributes of `Benchmark` of the same name.

    - `splits`: `split_sizes`.
    - `classes`: value in the label files → name, red, green, blue; `ignored`: the values that are not trained on.
    - `files`: the attributes of `Layout`; `label_endings` say `published` (values as in `classes`), `train ids`
      or `other ids`.
    - `submission`: the value of `ignored` pixels, and the `ending` of the PNGs' names.
    - `like`: another file; what is not said here is as there, and `classes` are more classes.
    """
    facts = _facts(path)
    rows, files = dict(sorted(facts.pop("classes").items())), facts.pop("files")
    label_map = dict.fromkeys(facts.pop("ignored", ()), 255)
    label_map |= {value: index for index, value in enumerate(rows) if value != index}
    kinds = {"published": label_map, "train ids": {}, "other ids": None}
    endings = files.pop("label_endings", {"": "published"})
    if (submission := facts.pop("submission", None)) is not None:
        label_ids = {index: value for index, value in enumerate(rows) if value != index}
        label_ids |= {255: submission["ignored"]} if "ignored" in submission else {}
        removed, ending = files.get("image_ending", ""), submission.get("ending", ".png")
        submission = Submission(label_ids, lambda name: PurePosixPath(name).stem.removesuffix(removed) + ending)
    return Benchmark(
        name=path.stem,
        classes=tuple(name for name, *_ in rows.values()),
        palette=tuple((red, green, blue) for _, red, green, blue in rows.values()),
        split_sizes=facts.pop("splits"),
        files=Layout(label_endings={ending: kinds[kind] for ending, kind in endings.items()}, **files),
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
