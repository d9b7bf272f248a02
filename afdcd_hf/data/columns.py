"""The columns of any dataset, as `DecodedRows` wants them: `image`, `label` (both undecoded) and `name`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .decoding import DecodedRows
from .scenes import generate_scene

if TYPE_CHECKING:
    from datasets import Dataset

    from .benchmarks import SplitFiles


def scene_rows(
    split: str, splits: Sequence[str], num_images: int, size: tuple[int, int] = (96, 192), seed: int = 0
) -> Dataset:
    """Scenes of one of the `splits`, never the same in two splits or under two seeds.

    Raises:
        ValueError: If `num_images`, `size` or `seed` is out of range.
    """
    if not 1 <= num_images < 2**32 or seed < 0:
        raise ValueError(f"num_images={num_images}, seed={seed}: at least one image and a seed >= 0 are needed.")
    # Every (seed, split) owns a range of 2^32 scene seeds, so that validation scenes can't have been trained on.
    block = seed * len(splits) + list(splits).index(split)
    scenes = _draw_scenes(block << 32, num_images, tuple(size) if isinstance(size, list) else size)
    names = [f"scenes/{split}/{index:06d}" for index in range(num_images)]
    return _rows({"image": [scene[0] for scene in scenes], "label": [scene[1] for scene in scenes], "name": names}, {})


@lru_cache(maxsize=4)  # one process often loads the same split again
def _draw_scenes(first_seed: int, count: int, size: tuple[int, int]) -> list[tuple[Any, ...]]:
    return [tuple(map(_ppm, generate_scene(first_seed + index, size))) for index in range(count)]


def _ppm(pixels: np.ndarray) -> dict[str, Any]:
    """A header and the pixels: packing a PNG takes as long as drawing a scene."""
    header = f"P{5 if pixels.ndim == 2 else 6}\n{pixels.shape[1]} {pixels.shape[0]}\n255\n"
    return {"bytes": header.encode() + pixels.tobytes(), "path": None}


def file_rows(root: Path, files: SplitFiles, part: slice = slice(None)) -> Dataset:
    """A split's files; names are paths below `root`."""
    columns: dict[str, list[Any]] = {
        "image": [str(image) for image in files.images[part]],
        "label": [None if label is None else str(label) for label in files.labels[part]],
        "name": [image.relative_to(root).as_posix() for image in files.images[part]],
    }
    return _rows(columns, files.label_map)


def _rows(columns: Mapping[str, list[Any]], label_map: Mapping[int, int]) -> Dataset:
    from datasets import Dataset, Features, Image, Value

    undecoded = Image(decode=False)
    features = Features({"image": undecoded, "label": undecoded, "name": Value("string")})
    return Dataset.from_dict(dict(columns), features=features).with_transform(DecodedRows.with_map(label_map))


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

    `standard`: column → "image" and "label". Raises ValueError if a column is not there, or holds no images.
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
        encoded = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
        if not encoded and not isinstance(feature, Image) and feature not in (Value("binary"), Value("large_binary")):
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

    Labels without paths become plain bytes. No content is copied, and none is read. Raises ValueError if some labels
    have paths and others only bytes.
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


def _names(dataset: Dataset, split: str) -> list[str]:
    """The images' paths below their common folder; numbers where images have no path of their own."""
    images = dataset.select_columns(["image"]).with_format("arrow")[:]["image"]
    paths = [path for chunk in images.chunks for path in chunk.field("path").to_pylist()]
    if None in paths or len(set(paths)) < len(paths) or len({os.path.isabs(path) for path in paths}) > 1:
        return [f"{split}/{index:06d}" for index in range(len(paths))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, folder or ".")).as_posix() for path in paths]
