"""Any labelled dataset by name: a benchmark of ours, or what `datasets` can load."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmarks import BENCHMARKS, Benchmark, get_benchmark
from .decoding import DecodedRows
from .scenes.columns import scene_columns

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_benchmark(name: str, split: str = "train", data_dir: str | Path | None = None, **options: Any) -> Dataset:
    """One split of a benchmark.

    Rows have `image` (PIL, RGB), `label` (PIL, mode "L": train ids and the ignore index) and `name` (path under
    `data_dir`). Files are read and labels remapped on access, through the dataset's transform: `select` and `shuffle`
    keep it, what `save_to_disk` or `to_parquet` write are the files' own labels.

    Args:
        name: Key in `BENCHMARKS`.
        split: One of the benchmark's splits.
        data_dir: Folder with the benchmark's files; not for `scenes`, which is generated.
        **options: `scenes` only: `size` (height, width), default (96, 192); `num_images`, default that of the table;
            `seed`, default 0. Splits and seeds never share a scene.

    Raises:
        ValueError: If the name, the split or an option is unknown, or `data_dir` is missing or not wanted.
        FileNotFoundError: If folders or files are missing, or an image or a label has no counterpart.
    """
    benchmark = get_benchmark(name)
    if split not in benchmark.split_sizes:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(benchmark.split_sizes)}.")
    accepted = ("size", "num_images", "seed") if name == "scenes" else ()
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(f"Unknown options {unknown} for {name}; accepted are: {', '.join(accepted) or 'none'}.")
    if benchmark.find_files is not None:
        return _from_files(benchmark, split, data_dir)
    if data_dir is not None:
        raise ValueError(f"scenes is generated and reads no files: leave out data_dir={str(data_dir)!r}.")
    options.setdefault("num_images", benchmark.split_sizes[split])
    return _as_dataset(scene_columns(split, tuple(benchmark.split_sizes), **options), {})


def _from_files(benchmark: Benchmark, split: str, data_dir: str | Path | None) -> Dataset:
    if data_dir is None:
        raise ValueError(f"{benchmark.name} is read from files: give data_dir, a folder with {benchmark.layout}.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir {root} is no folder; {benchmark.name} needs one with {benchmark.layout}.")
    files = benchmark.find_files(benchmark, root, split, None)
    published = benchmark.split_sizes[split]
    if len(files.images) != published:
        logger.warning(
            "%s %s has %d images, published are %d: %s", benchmark.name, split, len(files.images), published, root
        )
    columns = {
        "image": [str(image) for image in files.images],
        "label": [str(label) for label in files.labels],
        "name": [image.relative_to(root).as_posix() for image in files.images],
    }
    return _as_dataset(columns, files.label_map)


def _as_dataset(columns: dict[str, list[Any]], label_map: Mapping[int, int]) -> Dataset:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ImageFeature(), "name": Value("string")})
    return Dataset.from_dict(columns, features=features).with_transform(DecodedRows.with_map(label_map))


def load_split(name: str, split: str, data_dir: str | Path | None = None, max_samples: int | None = None) -> Dataset:
    """Load one split with PIL images in `image` and `label`.

    Args:
        name: a benchmark's name; else a folder or Hub id for `datasets.load_dataset`, whose labels must already be
            class ids with 255 for ignored pixels.
        split: name of the split.
        data_dir: folder of a benchmark's files.
        max_samples: keep only the first so many.

    Raises:
        ValueError: unknown name, a dataset without the two columns, or an empty split.
        FileNotFoundError: files of the benchmark are missing.
    """
    dataset = load_benchmark(name, split, data_dir) if name in BENCHMARKS else _load_other(name, split, data_dir)
    if len(dataset) == 0:
        raise ValueError(f"The {split!r} split of {name!r} is empty.")
    if max_samples is not None:
        if max_samples < 1:
            raise ValueError(f"A number of samples must be 1 or more, got {max_samples}.")
        dataset = dataset.select(range(min(max_samples, len(dataset))))
    return dataset


def class_names(name: str, given: Sequence[str] | None = None) -> list[str]:
    """The class names of a benchmark, or those given for another dataset.

    Raises:
        ValueError: names given for a benchmark, or none for another dataset.
    """
    if name in BENCHMARKS:
        if given:
            raise ValueError(f"class_names is only for datasets that are no benchmark; {name!r} has its own.")
        return list(BENCHMARKS[name].classes)
    if not given:
        raise ValueError(
            f"Dataset {name!r} is no benchmark ({', '.join(sorted(BENCHMARKS))}): give its class_names, in id order."
        )
    return list(given)


def _load_other(name: str, split: str, data_dir: str | Path | None) -> Dataset:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split, data_dir=data_dir)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise ValueError(
            f"{name!r} is no benchmark ({', '.join(sorted(BENCHMARKS))}) and `datasets` cannot load it: {error}"
        ) from error
    missing = {"image", "label"} - set(dataset.column_names)
    if missing:
        raise ValueError(
            f"{name!r} has columns {dataset.column_names}, but lacks {sorted(missing)}; rename its columns."
        )
    return dataset
