"""Datasets other than our benchmarks: folders, Parquet files and Hub repositories, through `datasets`."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import close_names
from .benchmarks import BENCHMARKS, Benchmark, Layout, find_files
from .decoding import DecodedRows
from .loading import file_rows
from .streaming import StreamedRows

if TYPE_CHECKING:
    from datasets import Dataset

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SPLITS = ("train", "val", "test")
_VALIDATION = ("val", "validation", "valid")  # names of one split
_PAIRS = Layout(  # images and labels in folders of their own, of the same file stems
    images=("images/{split}", "{split}/images"),
    labels=("labels/{split}", "{split}/labels", "masks/{split}", "{split}/masks"),
    split_names={name: (name, *_VALIDATION) for name in _VALIDATION},
    label_suffixes=(".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"),
)
_LAYOUT = "images/<split>/ and labels/<split>/ (or masks/<split>/, or the split outside), files of the same stems"


def load_other(
    name: str, split: str, options: Mapping[str, str], columns: Mapping[str, str], decode: DecodedRows, streaming: bool
) -> Any:
    """Load a dataset that is not a benchmark, for `load_split`.

    `options` are those of `datasets.load_dataset_builder`; `columns` maps columns to "image" and perhaps "label".
    """
    root = Path(name).expanduser()
    if _holds_pairs(root, split):
        stream = ["streaming"] if streaming else []  # only the paths are held, whatever the number of images
        named = [f"{ours}_column" for theirs, ours in columns.items() if theirs != ours]
        _refuse([*options, *named, *stream], f"{name!r}, a folder of images and labels")
        row = Benchmark(str(root), root.name, (), (), dict.fromkeys(_SPLITS, 0), "", "", "", _LAYOUT, _PAIRS)
        rows = _joined(split, lambda part: file_rows(root, find_files(row, root, part))).with_transform(decode)
        return rows.select_columns([*columns.values(), "name"])
    dataset = _load(name, split, options, streaming)
    if not streaming and len(dataset) == 0:
        raise ValueError(f"The split {split!r} of {name!r} is empty.")
    dataset = _standard_columns(dataset, name, columns)
    if streaming:
        return StreamedRows(dataset, decode)
    if "name" not in dataset.column_names:
        dataset = dataset.add_column("name", _names(dataset, split))
    mapped = "label" in dataset.column_names and decode.label_map
    return (_mark_unmapped(dataset, name) if mapped else dataset).with_transform(decode)


def _holds_pairs(root: Path, split: str) -> bool:
    if any(root.glob("metadata.*")) or any(root.glob("*/metadata.*")):
        return False
    splits = (*_SPLITS, *(part.partition("[")[0].strip() for part in split.split("+")))
    parts = [
        [root / path for one in splits for path in _PAIRS.paths(folders, one)]
        for folders in (_PAIRS.images, _PAIRS.labels)
    ]
    found = all(any(path.is_dir() for path in paths) for paths in parts)
    if not found and (root / "images").is_dir() and any((root / kind).is_dir() for kind in ("labels", "masks")):
        raise ValueError(
            f"{root} has images and labels, but no folder for each split: move the files to {_LAYOUT}. If all are in "
            "train, the splits train[:80%] and train[80%:] are parts of it."
        )
    return found


def _joined(split: str, load: Callable[[str], Dataset]) -> Dataset:
    """Load each split in, for example, "train[:80%]+val", take the rows in the brackets, and join them."""
    from datasets import ReadInstruction, concatenate_datasets

    parts = []
    for one in split.split("+"):
        own, bracket, rest = one.strip().partition("[")
        rows = load(own)
        [part] = ReadInstruction.from_spec(f"split{bracket}{rest}").to_absolute({"split": len(rows)})
        parts.append(rows.select(range(part.from_, part.to)))
    return concatenate_datasets(parts)


def _load(name: str, split: str, options: Mapping[str, str], streaming: bool) -> Any:
    path = Path(name).expanduser()
    if path.is_file() and path.suffix.lower() == ".parquet":
        _refuse(options, f"{name!r}, a single file")
        return _build(name, split, "parquet", streaming, data_files=str(path))
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        _refuse(options, f"{name!r}, a folder written by save_to_disk")
        saved = _saved(path, split)
        return saved.to_iterable_dataset() if streaming else saved
    if path.is_dir():
        _refuse(options.keys() & {"revision"}, f"the folder {name!r}")
        return _build(name, split, str(path), streaming, **options)
    if path.exists() or not _HUB_ID.fullmatch(name):
        raise _unknown(name, "a Hub id")
    from datasets import config

    if not Path(config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir():  # once cached, it needs no Hub
        _check_on_hub(name, options.get("revision"))
    return _build(name, split, name, streaming, **options)


def _refuse(options: Iterable[str], what: str) -> None:
    given = ["config" if option == "name" else option for option in options]
    if given:
        raise ValueError(f"{' and '.join(given)} cannot be given for {what}; leave it out.")


def _saved(path: Path, split: str) -> Dataset:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, IndexError) as error:  # the last one if no row was saved
        raise _unreadable(str(path), error) from error
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or "train"): found}
    return _joined(split, lambda part: found[_known_split(str(path), part, found)].with_format(None))


def _check_on_hub(name: str, revision: str | None) -> None:
    """Make one request first, because `datasets` would try for half a minute to reach an unreachable Hub."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(name, revision=revision, timeout=10)
    except Exception as error:  # including the HTTP client's, which depend on the huggingface_hub version
        raise _unknown(name, f"a dataset on the Hub, or the Hub cannot be reached ({_one_line(error)})") from error


def _build(name: str, split: str, path: str, streaming: bool, **options: Any) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        builder = datasets.load_dataset_builder(path, **options)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    known = [str(own) for own in builder.info.splits or builder.config.data_files or ()]
    parts = [part.strip().partition("[") for part in split.split("+")]  # such as "train[:80%]+val"
    split = "+".join(f"{_known_split(name, own, known)}{bracket}{rest}" for own, bracket, rest in parts)
    if streaming and "[" in split:
        raise ValueError(f"A stream cannot be sliced as in {split!r}: leave out the brackets, or streaming.")
    if streaming:
        return builder.as_streaming_dataset(split=split)
    try:
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except (DatasetsError, OSError, ValueError) as error:
        raise _unreadable(name, error.__cause__ or error) from error  # `datasets` says only that an error occurred


def _known_split(name: str, split: str, known: Iterable[str]) -> str:
    """Return the split's name in the dataset."""
    known = list(known)
    names = (split, *_VALIDATION) if split in _VALIDATION else (split,)
    own = next((own for own in names if own in known or not known), None)
    if own is None:
        raise ValueError(f"{name!r} has no split {split!r}; it has {', '.join(known)}.")
    return own


def _unknown(name: str, last: str) -> ValueError:
    known, hint = ", ".join(sorted(BENCHMARKS)), close_names(name, BENCHMARKS)
    what = f"a benchmark ({known}), a local folder, a .parquet file nor {last}"
    return ValueError(f"{name!r} is neither {what}.{hint}")


def _unreadable(name: str, error: BaseException) -> ValueError:
    return ValueError(
        f"{name!r} cannot be read: {_one_line(error)}. Expected Parquet files, images with a metadata.jsonl or "
        f"metadata.csv (columns image_file_name and label_file_name), {_LAYOUT}, or what save_to_disk wrote."
    )


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 300)


def _standard_columns(dataset: Any, name: str, standard: Mapping[str, str]) -> Any:
    """Keep only undecoded columns `image` and `label`, and any `name`; others would be decoded in vain."""
    from datasets import Image, Value

    for column, role in standard.items():
        feature = (dataset.features or {}).get(column)
        encoded = isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}
        if not encoded and not isinstance(feature, Image) and feature not in (Value("binary"), Value("large_binary")):
            what = f"holds {feature}" if feature else "is missing"
            raise ValueError(
                f"The {role}s of {name!r} must be images, but column {column!r} {what}. Choose {role}_column among "
                f"{', '.join(dataset.column_names)}; in a folder of images, the metadata file must have the columns "
                "image_file_name and label_file_name."
            )
        dataset = dataset.cast_column(column, Image(decode=False))
    named = dataset.features.get("name") in (Value("string"), Value("large_string")) and "name" not in standard
    dataset = dataset.select_columns([*standard, *(["name"] if named else [])])
    other = {column: role for column, role in standard.items() if column != role}
    return dataset.rename_columns(other) if other else dataset


def _mark_unmapped(dataset: Dataset, name: str) -> Dataset:
    """Store labels without paths as plain bytes, unlike those that `map` writes (`DecodedRows`); reads no content."""
    from datasets import Image

    labels = dataset.select_columns(["label"]).with_format("arrow")[:]["label"]
    chunks = [chunk.drop_null() for chunk in labels.chunks]
    if all(chunk.field("path").null_count == 0 for chunk in chunks):
        return dataset
    if any(chunk.field("bytes").null_count for chunk in chunks):
        raise ValueError(f"Some labels of {name!r} are stored as paths and others as bytes; store all the same way.")
    flat = dataset.cast_column("image", Image()).flatten()  # columns to decode are not flattened
    flat = flat.rename_column("label.bytes", "label").cast_column("image", Image(decode=False))
    return flat.select_columns(["image", "label", "name"])


def _names(dataset: Dataset, split: str) -> list[str]:
    """Return the images' paths below their common folder, or numbers if they have no paths of their own."""
    images = dataset.select_columns(["image"]).with_format("arrow")[:]["image"]
    paths = [path for chunk in images.chunks for path in chunk.field("path").to_pylist()]
    if None in paths or len(set(paths)) < len(paths) or len({os.path.isabs(path) for path in paths}) > 1:
        return [f"{split}/{index:06d}" for index in range(len(paths))]
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [Path(os.path.relpath(path, folder or ".")).as_posix() for path in paths]
