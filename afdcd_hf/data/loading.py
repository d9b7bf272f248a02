"""Loading of labelled datasets by name: a built-in benchmark, or whatever `datasets` can load."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .benchmarks import BENCHMARKS, Benchmark, SplitFiles, find_files, get_benchmark
from .checks import check_labels, check_same_size
from .decoding import DecodedRows
from .scenes import generate_scene

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_benchmark(
    name: str,
    split: str = "train",
    data_dir: str | Path | None = None,
    *,
    list_file: str | Path | None = None,
    max_samples: int | None = None,
) -> Dataset:
    """Load one split of a benchmark.

    Rows have `image` (PIL, RGB), `label` (PIL, mode "L": train ids and the ignore index; None if the split is
    published without labels) and `name` (path under `data_dir`). Files are read and labels mapped on access by the
    dataset's transform (`DecodedRows`), which `select`, `shuffle` and `map` keep. The dataset stores the files' values,
    so that `dataset.with_format(None).save_to_disk(folder)` is read with `load_split(folder, "train", labels_as=name)`.
    A label returned by a function given to `map`, however, is stored as it is, with train ids.

    Args:
        name: Key in `BENCHMARKS`.
        split: One of the benchmark's splits.
        data_dir: Folder with the benchmark's files; not for `scenes`, which is generated.
        list_file: Text file that lists the images to use (and perhaps their labels), instead of the whole split.
        max_samples: Keep at most this many, the first ones.

    Raises:
        ValueError: If the name or the split is unknown, or an option is missing, not allowed or out of range.
        FileNotFoundError: If folders or files are missing, or an image or a label has no counterpart.
    """
    _check_number(max_samples)
    benchmark = get_benchmark(name)
    published = benchmark.split_sizes.get(split)
    if published is None:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(benchmark.split_sizes)}.")
    if benchmark.files is None:
        if data_dir is not None or list_file is not None:
            raise ValueError(f"{name} is generated and reads no files: leave out data_dir and list_file.")
        names = [f"scenes/{split}/{index:06d}" for index in range(published)][:max_samples]
        # Every split owns a range of 2^32 scene seeds, so that validation scenes can't have been trained on.
        images, labels = zip(*_draw_scenes(list(benchmark.split_sizes).index(split) << 32, len(names)), strict=True)
        return _rows(images, labels, names, {})
    root = _existing(benchmark, data_dir)
    files = find_files(benchmark, root, split, list_file)
    if len(files.images) != published and list_file is None:
        logger.warning("%s %s has %d images, not %d as published: %s", name, split, len(files.images), published, root)
    return file_rows(root, files, slice(max_samples))


def _check_number(max_samples: int | None) -> None:
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"A number of samples must be 1 or more, got {max_samples}.")


def _existing(benchmark: Benchmark, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise ValueError(f"{benchmark.name} is read from files: give data_dir, a folder with {benchmark.layout}.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir {root} is not a folder; {benchmark.name} needs one with {benchmark.layout}.")
    return root


@lru_cache(maxsize=4)  # one process often loads the same split again
def _draw_scenes(first_seed: int, count: int) -> list[tuple[Any, ...]]:
    def stored(pixels: np.ndarray, kind: str) -> dict[str, Any]:  # compressing a PNG takes as long as drawing a scene
        height, width = pixels.shape[:2]
        return {"bytes": f"{kind}\n{width} {height}\n255\n".encode() + pixels.tobytes(), "path": None}

    scenes = (generate_scene(first_seed + index) for index in range(count))
    return [(stored(image, "P6"), stored(label, "P5")) for image, label in scenes]


def file_rows(root: Path, files: SplitFiles, part: slice = slice(None)) -> Dataset:
    """Return a dataset of a split's files; names are paths below `root`."""
    images, labels = files.images[part], [None if label is None else str(label) for label in files.labels[part]]
    names = [image.relative_to(root).as_posix() for image in images]
    return _rows(list(map(str, images)), labels, names, files.label_map)


def _rows(images: Sequence[Any], labels: Sequence[Any], names: list[str], label_map: Mapping[int, int]) -> Dataset:
    from datasets import Dataset, Features, Image, Value

    undecoded = Image(decode=False)
    features = Features({"image": undecoded, "label": undecoded, "name": Value("string")})
    columns = {"image": list(images), "label": list(labels), "name": names}
    return Dataset.from_dict(columns, features=features).with_transform(DecodedRows.with_map(label_map))


def load_split(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    max_samples: int | None = None,
    *,
    list_file: str | Path | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_map: Mapping[Any, Any] | None = None,
    labels_as: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    labelled: bool = True,
    streaming: bool = False,
) -> Any:
    """Load one split of a benchmark or any other dataset, with the rows of `load_benchmark`.

    Args:
        name: A benchmark's name; a folder of Parquet files, of images with a metadata file, of `images/<split>` and
            `labels/<split>` (or `masks`) with the same file stems, or written by `save_to_disk`; a Parquet file; or a
            Hub id, whose files are kept in `datasets`' cache.
        split: Name of the split. Except for benchmarks, "val" also finds "validation" and vice versa, and slices
            such as "train[:80%]" are allowed. A Parquet file and a single saved dataset are the split "train" unless
            they say otherwise.
        data_dir: Folder of a benchmark's files; for another dataset, a folder inside it.
        max_samples: Keep at most this many, the first ones.
        list_file: As in `load_benchmark`. Benchmarks only; the next six are for other datasets only.
        image_column, label_column: By default "image" and "label": images, and images of class ids or null.
        label_map: Value in the labels → train id, 255 = ignored; unlisted values stay. Keys may be strings.
        labels_as: Benchmark whose files hold the same values as these labels; its map is used.
        config: Configuration of a Hub dataset that has several.
        revision: Branch, tag or commit of a Hub dataset.
        labelled: Whether to load labels; otherwise rows have only `image` and `name`.
        streaming: Neither download nor hold the dataset, but return `StreamedRows`, which are read in order. Not for
            benchmarks and paired folders, of which only paths are held.

    Raises:
        ValueError: If the dataset, its split or a column cannot be found or read, or an option is not for this dataset.
        FileNotFoundError: If files of the benchmark are missing, or an image or a label has no counterpart.
    """
    if name in BENCHMARKS:
        options: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "label_map": label_map}
        options |= {"labels_as": labels_as, "config": config, "revision": revision, "streaming": streaming or None}
        if given := sorted(option for option, value in options.items() if value is not None):
            raise ValueError(f"{', '.join(given)} cannot be given for the benchmark {name}, which defines it.")
        rows = load_benchmark(name, split, data_dir, list_file=list_file, max_samples=max_samples)
        return rows if labelled else rows.select_columns(["image", "name"])
    _check_number(max_samples)
    if list_file is not None:
        raise ValueError(f"list_file={str(list_file)!r} is only for benchmarks ({', '.join(sorted(BENCHMARKS))}).")
    if label_map is not None and labels_as is not None:
        raise ValueError(f"labels_as={labels_as!r} brings its own map; leave out label_map.")
    image_column, label_column = image_column or "image", label_column or "label"
    if image_column == label_column:
        raise ValueError(f"image_column and label_column are both {image_column!r}; they must be two columns.")
    from .other_datasets import load_other

    place = {"data_dir": str(data_dir) if data_dir else None, "name": config, "revision": revision}
    given_place = {option: value for option, value in place.items() if value is not None}
    columns = {image_column: "image"} | ({label_column: "label"} if labelled else {})
    decode = DecodedRows.with_map(get_benchmark(labels_as).label_map if labels_as else label_map or {})
    rows = load_other(name, split, given_place, columns, decode, streaming)
    if max_samples is None:
        return rows
    return rows.first(max_samples) if streaming else rows.select(range(min(max_samples, len(rows))))


def evenly_spaced(length: int, number: int) -> list[int]:
    """Return `number` indices (at most `length`) spread evenly over a dataset, from the first to the last."""
    return np.linspace(0, length - 1, min(number, length)).round().astype(int).tolist()


def class_names(name: str, given: Sequence[str] | None = None, labels_as: str | None = None) -> list[str]:
    """Return a benchmark's class names, or another dataset's: those given, or those of the benchmark `labels_as`."""
    if name in BENCHMARKS and not given and not labels_as:
        return list(BENCHMARKS[name].classes)
    if name in BENCHMARKS or bool(given) == bool(labels_as):
        raise ValueError(
            f"Benchmarks ({', '.join(sorted(BENCHMARKS))}) have their own class names; another dataset, as {name!r}, "
            "needs either class_names, in id order, or labels_as, if its labels are those of a benchmark."
        )
    names = list(given or get_benchmark(str(labels_as)).classes)
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise ValueError(f"class_names has {', '.join(twice)} more than once; each class needs its own name.")
    return names


@dataclass(frozen=True)
class SplitCheck:
    """The result of `check_layout` for one split."""

    split: str
    expected: int  # number of images as published
    found: int = 0  # 0 if the split cannot be used
    problem: str | None = None  # why it cannot be used, in one line; fewer images than published are not a problem


def check_layout(name: str, data_dir: str | Path | None) -> list[SplitCheck]:
    """Check all splits of a benchmark, and sizes and label values of each split's first pair.

    Raises ValueError if the benchmark is unknown or `data_dir` missing; FileNotFoundError if that is not a folder.
    """
    benchmark = get_benchmark(name)
    if benchmark.files is None:
        return [SplitCheck(split, size, size) for split, size in benchmark.split_sizes.items()]
    root = _existing(benchmark, data_dir)
    return [_check_split(benchmark, root, split) for split in benchmark.split_sizes]


def _check_split(benchmark: Benchmark, root: Path, split: str) -> SplitCheck:
    expected = benchmark.split_sizes[split]
    try:
        files = find_files(benchmark, root, split)
        row = file_rows(root, files, slice(1))[0]
        if row["label"] is not None:
            label = np.asarray(row["label"])
            check_same_size(row["image"], label, row["name"])
            check_labels(label, benchmark.num_labels, benchmark.ignore_index, row["name"])
    except (OSError, ValueError) as error:
        return SplitCheck(split, expected, problem=" ".join(str(error).split()))
    return SplitCheck(split, expected, len(files.images))
