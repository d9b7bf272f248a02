"""What has to be known about a benchmark: one row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

RGB = tuple[int, int, int]


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


def _png_of_stem(name: str) -> str:
    return f"{PurePosixPath(name).stem}.png"


@dataclass(frozen=True)
class Submission:
    """How a benchmark's test server wants predictions.

    Attributes:
        label_ids: Train id → value in the PNG; values not listed stay.
        file_name: Name of an image (path under `data_dir`) → name of its PNG; by default its stem.
    """

    label_ids: Mapping[int, int]
    file_name: Callable[[str], str] = _png_of_stem


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
        find_files: `(benchmark, root, split, list_file) -> SplitFiles`, all under `root`, raising FileNotFoundError
            with what is missing and ValueError for a list that cannot be used. `list_file` is None or a list of the
            images to take: paths of image and label in two columns, or one column of ids, file names or paths that
            belong to the split. None where the images are generated.
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
    find_files: Callable[[Benchmark, Path, str, Path | None], SplitFiles] | None = None
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
