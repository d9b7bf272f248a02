"""What has to be known about a benchmark: one row of the table, as its YAML file says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
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

    images: tuple[str, ...]
    labels: tuple[str, ...]
    label_endings: Mapping[str, Mapping[int, int] | None] = field(default_factory=lambda: {"": {}})
    homes: tuple[str, ...] = ()
    image_ending: str = ""
    split_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    without_list: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    nested: bool = False
    unlabelled: tuple[str, ...] = ()

    def paths(self, templates: tuple[str, ...], split: str) -> list[str]:
        """The templates with the split's names."""
        names = self.split_names.get(split, (split,))
        return list(dict.fromkeys(template.format(split=name) for template in templates for name in names))


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, in order.

    Attributes:
        images: Image files.
        labels: The label file of each image; None where the split is published without labels.
        label_map: Value in these label files → train id or ignore index; values not listed stay.
    """

    images: tuple[Path, ...]
    labels: tuple[Path | None, ...]
    label_map: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Submission:
    """How a benchmark's test server wants predictions.

    Attributes:
        label_ids: Train id → value in the PNG; values not listed stay.
        file_name: Name of an image (path under `data_dir`) → name of its PNG; by default its stem.
    """

    label_ids: Mapping[int, int]
    file_name: Callable[[str], str] = lambda name: f"{PurePosixPath(name).stem}.png"


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

    @property
    def id2label(self) -> dict[int, str]:
        """Class name by train id, as in a model's config."""
        return dict(enumerate(self.classes))

    @property
    def label2id(self) -> dict[str, int]:
        """Train id by class name."""
        return {name: index for index, name in enumerate(self.classes)}


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
    values = sorted(facts["classes"])
    label_map = {value: 255 for value in facts.get("ignored", ())}
    label_map |= {value: index for index, value in enumerate(values) if value != index}
    kinds = {"published": label_map, "train ids": {}, "other ids": None}
    files: dict[str, Any] = {
        name: tuple(given) if isinstance(given, list) else given for name, given in facts["files"].items()
    }
    endings = {ending: kinds[kind] for ending, kind in files.pop("label_endings", {"": "published"}).items()}
    files["split_names"] = {split: tuple(names) for split, names in files.get("split_names", {}).items()}
    layout = Layout(label_endings=endings, **files)
    rows = [facts["classes"][value] for value in values]
    return Benchmark(
        name=path.stem,
        classes=tuple(name for name, *_ in rows),
        palette=tuple((red, green, blue) for _, red, green, blue in rows),
        split_sizes=facts["splits"],
        files=layout,
        submission=_submission(facts["submission"], values, layout) if "submission" in facts else None,
        label_map=label_map,
        **{name: facts[name] for name in ("licence", "homepage", "citation", "layout")},
    )


def _facts(path: Path) -> dict[str, Any]:
    facts = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if "like" not in facts:
        return facts
    other = _facts(path.with_name(f"{facts['like']}.yaml"))
    return other | facts | {name: other[name] | facts.get(name, {}) for name in ("files", "classes")}


def _submission(facts: Mapping[str, Any], values: list[int], layout: Layout) -> Submission:
    label_ids = {index: value for index, value in enumerate(values) if index != value}
    if "ignored" in facts:
        label_ids[255] = facts["ignored"]
    return Submission(label_ids, partial(_result_name, layout.image_ending, facts.get("ending", ".png")))


def _result_name(image_ending: str, ending: str, name: str) -> str:
    return f"{PurePosixPath(name).stem.removesuffix(image_ending)}{ending}"
