"""Any labelled dataset by name: a benchmark of ours, or what `datasets` can load."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .benchmarks import BENCHMARKS, Benchmark, SplitFiles, get_benchmark
from .checks import check_labels, check_same_size
from .decoding import DecodedRows
from .scenes import scene_columns

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_benchmark(
    name: str,
    split: str = "train",
    data_dir: str | Path | None = None,
    *,
    list_file: str | Path | None = None,
    legacy_182: bool = False,
    **options: Any,
) -> Dataset:
    """One split of a benchmark.

    Rows have `image` (PIL, RGB), `label` (PIL, mode "L": train ids and the ignore index; None where the split is
    published without labels) and `name` (path under `data_dir`). Files are read and labels mapped on access, by the
    dataset's transform (`DecodedRows`): `select`, `shuffle` and `map` keep it. A label that a function given to `map`
    returns is stored, and stays, as it is returned, with train ids.

    What is stored otherwise is the files' own values. `to_parquet` writes the paths; `save_to_disk` writes the files'
    content, but refuses datasets with a transform: `dataset.with_format(None).save_to_disk(folder)`, to be read with
    `load_split(folder, "train", labels_as=name)`. With `dataset.map(lambda row: {"label": row["label"]})` before, train
    ids are written, which `load_split` reads without `labels_as`.

    Args:
        name: Key in `BENCHMARKS`.
        split: One of the benchmark's splits.
        data_dir: Folder with the benchmark's files; not for `scenes`, which is generated.
        list_file: Text file with the images to take (and perhaps their labels), instead of all of the split.
        legacy_182: `coco_stuff` only: all 182 ids instead of the 171 that are annotated, as the benchmark
            `coco_stuff_182`.
        **options: `scenes` only: `size` (height, width), default (96, 192); `num_images`, default that of the table;
            `seed`, default 0. Splits and seeds never share a scene.

    Raises:
        ValueError: If the name, the split or an option is unknown, `data_dir` is missing or not wanted, or there is no
            image in the split.
        FileNotFoundError: If folders or files are missing, or an image or a label has no counterpart.
    """
    benchmark = get_benchmark(_with_all_ids(name) if legacy_182 else name)
    _check_split(benchmark, split)
    accepted = ("size", "num_images", "seed") if name == "scenes" else ()
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"Unknown options {unknown} for {name}; accepted are: {', '.join(accepted) or 'none'}.")
    if benchmark.find_files is not None:
        return _from_files(benchmark, split, _existing(benchmark, data_dir), list_file)
    if data_dir is not None or list_file is not None:
        given = f"data_dir={str(data_dir)!r}" if data_dir is not None else f"list_file={str(list_file)!r}"
        raise ValueError(f"scenes is generated and reads no files: leave out {given}.")
    options.setdefault("num_images", benchmark.split_sizes[split])
    return _as_dataset(scene_columns(split, tuple(benchmark.split_sizes), **options), {})


def load_split(
    name: str,
    split: str,
    data_dir: str | Path | None = None,
    max_samples: int | None = None,
    *,
    list_file: str | Path | None = None,
    **mapping: Any,
) -> Dataset:
    """One split of a benchmark or of any other dataset, with the rows of `load_benchmark`.

    Args:
        name: A benchmark's name; else a dataset for `load_other`: a folder, a Parquet file or a Hub id.
        split: Name of the split.
        data_dir: Folder of a benchmark's files; of another dataset, the folder inside it.
        max_samples: Keep only the first so many.
        list_file: As in `load_benchmark`; benchmarks only.
        **mapping: What `load_other` needs to know of a dataset that is no benchmark: `image_column`, `label_column`,
            `label_map`, `labels_as`, `config`, `revision`.

    Raises:
        ValueError: If the dataset, the split or a column is unknown, the split is empty, or an option is not for this
            kind of dataset.
        FileNotFoundError: If files of the benchmark are missing.
    """
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"A number of samples must be 1 or more, got {max_samples}.")
    if name in BENCHMARKS:
        if mapping:
            raise ValueError(f"{', '.join(sorted(mapping))} cannot be given for the benchmark {name}, which knows it.")
        dataset = load_benchmark(name, split, data_dir, list_file=list_file)
    else:
        from .other_datasets import load_other

        if list_file is not None:
            raise ValueError(f"list_file={str(list_file)!r} is only for benchmarks ({', '.join(sorted(BENCHMARKS))}).")
        dataset = load_other(name, split, data_dir, **mapping)
    return dataset if max_samples is None else dataset.select(range(min(max_samples, len(dataset))))


def class_names(name: str, given: Sequence[str] | None = None, labels_as: str | None = None) -> list[str]:
    """The class names of a benchmark, or those of another dataset: given, or of the benchmark `labels_as`.

    Raises:
        ValueError: If names come from more than one place or from none.
    """
    if name in BENCHMARKS:
        if given or labels_as:
            option = "class_names" if given else "labels_as"
            raise ValueError(f"{option} is only for datasets that are no benchmark; {name!r} has its own.")
        return list(BENCHMARKS[name].classes)
    if given and labels_as:
        raise ValueError(f"labels_as={labels_as!r} brings the class names; leave out class_names.")
    if labels_as:
        return list(get_benchmark(labels_as).classes)
    if not given:
        raise ValueError(
            f"Dataset {name!r} is no benchmark ({', '.join(sorted(BENCHMARKS))}): give its class_names, in id order, "
            "or labels_as, if its labels are those of a benchmark."
        )
    return list(given)


@dataclass(frozen=True)
class SplitCheck:
    """What `check_layout` saw of one split.

    Attributes:
        split: Name of the split.
        expected: Number of images as published.
        found: Number of images found; 0 if the split cannot be used.
        labelled: How many of them have a label.
        problem: Why the split cannot be used, in one line; None if it can. Fewer images than published are none.
    """

    split: str
    expected: int
    found: int = 0
    labelled: int = 0
    problem: str | None = None


def check_layout(name: str, data_dir: str | Path | None, *, decode: bool = True) -> list[SplitCheck]:
    """Looks at all splits of a benchmark, without loading more than a pair of each.

    Args:
        name: Key in `BENCHMARKS`.
        data_dir: Folder with the benchmark's files.
        decode: Also decode the first image and label of each split, and check their sizes and the label's values.

    Raises:
        ValueError: If the benchmark is unknown, or `data_dir` is missing.
        FileNotFoundError: If `data_dir` is no folder.
    """
    benchmark = get_benchmark(name)
    if benchmark.find_files is None:
        return [SplitCheck(split, size, size, size) for split, size in benchmark.split_sizes.items()]
    root = _existing(benchmark, data_dir)
    return [_check_files(benchmark, root, split, decode) for split in benchmark.split_sizes]


def _check_files(benchmark: Benchmark, root: Path, split: str, decode: bool) -> SplitCheck:
    expected = benchmark.split_sizes[split]
    try:
        files = _find(benchmark, root, split)
        if decode:
            _check_first_pair(benchmark, root, files)
    except (OSError, ValueError) as error:
        return SplitCheck(split, expected, problem=" ".join(str(error).split()))
    return SplitCheck(split, expected, len(files.images), sum(label is not None for label in files.labels))


def _check_first_pair(benchmark: Benchmark, root: Path, files: SplitFiles) -> None:
    row = _as_dataset(_columns(root, files, slice(1)), files.label_map)[0]
    if row["label"] is None:
        return
    label = np.asarray(row["label"])
    check_same_size(row["image"], label, row["name"])
    check_labels(label, benchmark.num_labels, benchmark.ignore_index, row["name"])


def _with_all_ids(name: str) -> str:
    if name not in ("coco_stuff", "coco_stuff_182"):
        raise ValueError(f"legacy_182 is only for coco_stuff, not for {name}.")
    return "coco_stuff_182"


def _check_split(benchmark: Benchmark, split: str) -> None:
    if split not in benchmark.split_sizes:
        raise ValueError(f"{benchmark.name} has no split {split!r}; it has {', '.join(benchmark.split_sizes)}.")


def _existing(benchmark: Benchmark, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        raise ValueError(f"{benchmark.name} is read from files: give data_dir, a folder with {benchmark.layout}.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir {root} is no folder; {benchmark.name} needs one with {benchmark.layout}.")
    return root


def _find(benchmark: Benchmark, root: Path, split: str, list_file: str | Path | None = None) -> SplitFiles:
    files = benchmark.find_files(benchmark, root, split, None if list_file is None else Path(list_file))
    if not files.images:
        raise ValueError(f"The {split} split of {benchmark.name} in {list_file or root} is empty.")
    return files


def _from_files(benchmark: Benchmark, split: str, root: Path, list_file: str | Path | None) -> Dataset:
    files = _find(benchmark, root, split, list_file)
    found, published = len(files.images), benchmark.split_sizes[split]
    if found != published and list_file is None:
        logger.warning("%s %s has %d images, published are %d: %s", benchmark.name, split, found, published, root)
    return _as_dataset(_columns(root, files), files.label_map)


def _columns(root: Path, files: SplitFiles, part: slice = slice(None)) -> dict[str, list[str | None]]:
    images, labels = files.images[part], files.labels[part]
    return {
        "image": [str(image) for image in images],
        "label": [None if label is None else str(label) for label in labels],
        "name": [image.relative_to(root).as_posix() for image in images],
    }


def _as_dataset(columns: dict[str, list[Any]], label_map: Mapping[int, int]) -> Dataset:
    from datasets import Dataset, Features, Image, Value

    undecoded = Image(decode=False)
    features = Features({"image": undecoded, "label": undecoded, "name": Value("string")})
    return Dataset.from_dict(columns, features=features).with_transform(DecodedRows.with_map(label_map))
