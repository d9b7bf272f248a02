"""The columns of any dataset, as `DecodedRows` wants them: `image`, `label` (both undecoded) and `name`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .decoding import DecodedRows

if TYPE_CHECKING:
    from datasets import Dataset

    from .benchmarks import SplitFiles


def decoded_rows(columns: Mapping[str, list[Any]], label_map: Mapping[int, int]) -> Dataset:
    """A dataset of images and labels that lie in files or in memory.

    Args:
        columns: `image` and `label` as paths or bytes of files (a label may be None), and `name`.
        label_map: Value in the label files → train id or ignore index; values not listed stay.
    """
    from datasets import Dataset, Features, Image, Value

    undecoded = Image(decode=False)
    features = Features({"image": undecoded, "label": undecoded, "name": Value("string")})
    return Dataset.from_dict(dict(columns), features=features).with_transform(DecodedRows.with_map(label_map))


def file_columns(root: Path, files: SplitFiles, part: slice = slice(None)) -> dict[str, list[str | None]]:
    """The columns of a split's files; names are paths below `root`."""
    return {
        "image": [str(image) for image in files.images[part]],
        "label": [None if label is None else str(label) for label in files.labels[part]],
        "name": [image.relative_to(root).as_posix() for image in files.images[part]],
    }


def with_decoding(dataset: Any) -> Any:
    """A `datasets.Dataset` that decodes its images by itself, reading them as `DecodedRows` does; others as they are.

    What `datasets` decodes loses the values of label PNGs of 2 and 4 bits, and its errors name no file.
    """
    from datasets import Dataset, Image

    if not isinstance(dataset, Dataset) or dataset.format["type"] is not None:
        return dataset
    columns = [column for column in ("image", "label") if isinstance(dataset.features.get(column), Image)]
    for column in columns:
        dataset = dataset.cast_column(column, Image(decode=False))
    return dataset.with_transform(DecodedRows()) if columns else dataset


def standard_columns(dataset: Dataset, name: str, split: str, standard: Mapping[str, str]) -> Dataset:
    """Columns `image` and `label`, undecoded, and `name`; others are dropped, since they would be decoded in vain.

    Args:
        dataset: Any dataset.
        name: What errors call it.
        split: Its split, for the names of images without a path.
        standard: Column → "image" and "label".

    Raises:
        ValueError: If a column is not there, or holds no images.
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
        if not _holds_images(feature):
            raise ValueError(
                f"The {role}s of {name!r} must be images, but column {column!r} holds {feature}. Choose {role}_column "
                f"among {', '.join(dataset.column_names)}; in a folder of images, the metadata file must have the "
                "columns image_file_name and label_file_name."
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


def _holds_images(feature: Any) -> bool:
    from datasets import Image, Value

    encoded = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
    return encoded or isinstance(feature, Image) or feature in (Value("binary"), Value("large_binary"))


def _names(dataset: Dataset, split: str) -> list[str]:
    """The images' paths below their common folder; numbers where images have no path of their own."""
    images = dataset.select_columns(["image"]).with_format("arrow")[:]["image"]
    paths = [path for chunk in images.chunks for path in chunk.field("path").to_pylist()]
    if None in paths or len(set(paths)) < len(paths) or len({os.path.isabs(path) for path in paths}) > 1:
        return [f"{split}/{index:06d}" for index in range(len(paths))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, folder or ".")).as_posix() for path in paths]
