"""The columns of any dataset, as `DecodedRows` wants them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset


def standard_columns(dataset: Dataset, name: str, split: str, standard: Mapping[str, str]) -> Dataset:
    """Columns `image` and `label`, undecoded, and `name`; others are dropped, since they would be decoded in vain.

    Args:
        dataset: Any dataset.
        name: What errors call it.
        split: Its split, for the names of images without a path.
        standard: Column → "image" and "label".

    Raises:
        ValueError: If a column is not there, or holds no pictures.
    """
    from datasets import Image, Value

    missing = [column for column in standard if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{name!r} has no column {' and no '.join(map(repr, missing))}; it has {', '.join(dataset.column_names)}. "
            f"Choose among them with {' and '.join(f'{standard[column]}_column' for column in missing)}."
        )
    for column, role in standard.items():
        feature = dataset.features[column]
        if not _holds_pictures(feature):
            raise ValueError(
                f"The {role}s of {name!r} must be pictures, but column {column!r} holds {feature}. Choose "
                f"{role}_column among {', '.join(dataset.column_names)}; in a folder of images, the metadata file must "
                "have the columns image_file_name and label_file_name."
            )
        dataset = dataset.cast_column(column, Image(decode=False))
    named = dataset.features.get("name") in (Value("string"), Value("large_string")) and "name" not in standard
    dataset = dataset.select_columns([*standard, *(["name"] if named else [])]).rename_columns(dict(standard))
    return dataset if named else dataset.add_column("name", _names(dataset, split))


def told_apart(dataset: Dataset, name: str) -> Dataset:
    """The dataset, with labels that differ from what `map` writes, which has no path (`DecodedRows`).

    Labels without paths become plain bytes. No content is copied, and none is read.

    Raises:
        ValueError: If some labels have paths and others only bytes.
    """
    from datasets import Image

    labels = dataset.select_columns(["label"]).with_format("arrow")[:]["label"]
    chunks = [chunk.drop_null() for chunk in labels.chunks]
    if all(chunk.field("path").null_count == 0 for chunk in chunks):
        return dataset
    if any(chunk.field("bytes").null_count for chunk in chunks):
        raise ValueError(f"Some labels of {name!r} are stored as paths and others without; store all in one way.")
    flat = dataset.cast_column("image", Image()).flatten()  # what is to be decoded is not flattened
    flat = flat.rename_column("label.bytes", "label").cast_column("image", Image(decode=False))
    return flat.select_columns(["image", "label", "name"])


def _holds_pictures(feature: Any) -> bool:
    from datasets import Image, Value

    encoded = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
    return encoded or isinstance(feature, Image) or feature in (Value("binary"), Value("large_binary"))


def _paths(dataset: Dataset, column: str) -> list[str | None]:
    pictures = dataset.select_columns([column]).with_format("arrow")[:][column]
    return [path for chunk in pictures.chunks for path in chunk.field("path").to_pylist()]


def _names(dataset: Dataset, split: str) -> list[str]:
    """The images' paths below their common folder; numbers where images have no path of their own."""
    paths = _paths(dataset, "image")
    if None in paths or len(set(paths)) < len(paths) or len({os.path.isabs(path) for path in paths}) > 1:
        return [f"{split}/{index:06d}" for index in range(len(paths))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, folder or ".")).as_posix() for path in paths]
