"""Any labelled dataset by name: a benchmark of ours, or what `datasets` can load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .benchmarks import BENCHMARKS, load_benchmark

if TYPE_CHECKING:
    from datasets import Dataset


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
