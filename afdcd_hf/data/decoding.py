"""Safe reading of image files, and decoding of dataset rows to RGB images and labels of train ids."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..models.image_modes_afdcd import as_rgb

MAX_VALUE = 65535  # the largest value of a 16-bit PNG, and so the largest key of a label map
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # Pillow returns the stored values, except as `info` says
# What PIL raises for damaged files; narrow, so that it does not hide our own bugs.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class _OneLine(Exception):
    """An error that keeps its message when a `DataLoader` re-raises it with a worker's traceback in front."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f".{type(self).__name__}: ")[2].strip())


class ImageFileError(_OneLine, OSError):
    """A file that cannot be read as an image; the message names it."""


class SampleError(_OneLine, ValueError):
    """An image and a label that cannot be used together; the message names the image."""


def open_image(source: str | Path | bytes, described: str) -> Image.Image:
    """Read an image as viewers show it: decoded, and upright according to its EXIF or XMP orientation tag.

    All checksums of a PNG are verified, because a flipped bit can otherwise change pixels, and class ids, unnoticed.

    `format` is kept, and `info` records what Pillow hides: the `bits` per value, and whether values are `altered`.

    `source` is a path or the content of the file; errors call it `described`, e.g. `train/b.png: the label
    (/data/trainannot/b.png)`. ImageFileError if it is missing, not a regular file, not an image, damaged, or has more
    than twice `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    try:
        return _opened(source if isinstance(source, bytes) else _content(Path(source)))
    except Image.DecompressionBombError as error:
        what = f"{error} Use a smaller copy; for files that you trust, raise PIL.Image.MAX_IMAGE_PIXELS."
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        what = f"{error.strerror}. Put the file back, or take the row out of the dataset."
    except _DAMAGED as error:
        what = "not an image" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        what += ". The file is damaged or incomplete: copy or download it again, or take it out of the dataset."
    raise ImageFileError(f"{described} cannot be read: {what}")


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe would block forever
        raise IsADirectoryError(0, "It is a folder, a pipe or a device, not a regular file")
    return path.read_bytes()


def _opened(content: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(content))
    if image.format == "PNG":
        image.verify()  # checks the checksums; the image cannot be loaded afterwards
        image = Image.open(io.BytesIO(content))
    image.load()
    kind = image.format
    image.info.update(_stored_as(image, content))
    image = ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image
    image.format = kind
    return image


def _stored_as(image: Image.Image, content: bytes) -> dict[str | tuple[int, int], Any]:
    if image.format == "PNG":
        return {"bits": content[24]}  # in the header: signature, chunk length and type, width, height, bits
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        return {"bits": tags.get(258, (1,))[0], "altered": tags.get(262) == 0}  # 0 is white
    if image.format == "PPM":  # grey values are unchanged if the maximum is that of their bytes
        kind, _, _, largest, *_ = content[:64].split() + 4 * [b""]
        return {"altered": kind == b"P4" or largest not in (b"255", b"65535")}
    return {}


@dataclass(frozen=True)
class DecodedRows:
    """A dataset's transform to RGB images and labels of train ids; not a closure, so that workers can unpickle it.

    The columns `image` and `label` must be undecoded (`datasets.Image(decode=False)`, or bytes), so that errors name
    the file. A label stored as bytes without a path was returned by a function given to `Dataset.map`, and is already
    mapped. All others hold the files' values: integers in one channel, grey values of 1 (read as 0 and 1), 2, 4, 8, 16
    or 32 bits, or palette indices. Labels come out in mode "L", or "I" if 8 bits are too few.
    """

    label_map: tuple[tuple[int, int], ...] = ()  # (value in the file, train id or ignore index); others stay

    @classmethod
    def with_map(cls, label_map: Mapping[Any, Any]) -> DecodedRows:
        """Map the listed values (file → train id or ignore index, 0..65535, also as strings) and keep all others.

        Raises ValueError if a key or a value is not such a number, or a key appears twice (as 7 and "7").
        """
        pairs = [(_number(key, "key"), _number(value, "value")) for key, value in label_map.items()]
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError(f"label_map has more than one entry for a value: {', '.join(map(repr, label_map))}.")
        return cls(tuple(sorted(pair for pair in pairs if pair[0] != pair[1])))

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Decode a batch of rows, perhaps with only some of the columns, as for `dataset["label"]`.

        Raises OSError if a file is missing or damaged, ValueError if an image is missing or has no defined colours, or
        a label is not a map of class ids.
        """
        rows = dict(batch)
        for column, decode in (("image", _rgb_image), ("label", self._label)):
            if column in batch:
                names = batch.get("name") or [None] * len(batch[column])
                rows[column] = [decode(stored, name) for stored, name in zip(batch[column], names, strict=True)]
        return rows

    def _label(self, stored: Any, name: str | None) -> Image.Image | None:
        opened, described = _open(stored, "label", name)
        if opened is None:
            return None
        label = _class_ids(opened, described)
        written_by_map = not isinstance(stored, bytes) and stored["path"] is None
        if not self.label_map or written_by_map:
            return label
        values = np.asarray(label, dtype=np.int32)
        mapped = self._table.take(values, mode="clip")
        return _label_image(np.where((values >= 0) & (values <= MAX_VALUE), mapped, values))

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.arange(MAX_VALUE + 1, dtype=np.int32)
        for value, train_id in self.label_map:
            table[value] = train_id
        return table


def with_decoding(dataset: Any) -> Any:
    """Make a `datasets.Dataset` of images or their bytes decode as `DecodedRows` does; return others unchanged.

    `datasets`' own decoding loses the values of label PNGs of 2 and 4 bits, and its errors name no file. ValueError if
    a dataset of ours has lost its transform, and with it any label map.
    """
    from datasets import Dataset, Image, Value

    if not isinstance(dataset, Dataset) or dataset.format["type"] is not None:
        return dataset
    kinds = [dataset.features.get(column) for column in ("image", "label")]
    if any(isinstance(kind, Image) and not kind.decode for kind in kinds):
        raise ValueError(
            "The dataset has lost the transform that decodes images and maps labels, as by "
            "datasets.concatenate_datasets. Join datasets with torch.utils.data.ConcatDataset, or add it again: "
            'joined.with_transform(part.format["format_kwargs"]["transform"]).'
        )
    if not any(isinstance(kind, Image) or kind in (Value("binary"), Value("large_binary")) for kind in kinds):
        return dataset
    return without_decoding(dataset).with_transform(DecodedRows())


def without_decoding(dataset: Any) -> Any:
    """Make the image columns of a `datasets` dataset or stream return bytes and path; return others unchanged."""
    from datasets import Image

    for column in ("image", "label"):
        if isinstance((getattr(dataset, "features", None) or {}).get(column), Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def _number(given: Any, what: str) -> int:
    try:
        number = int(given)
    except (TypeError, ValueError):
        number = -1
    if isinstance(given, (bool, float)) or not 0 <= number <= MAX_VALUE:
        raise ValueError(f"label_map has the {what} {given!r}; class ids are whole numbers from 0 to {MAX_VALUE}.")
    return number


def _open(stored: Any, role: str, name: str | None) -> tuple[Image.Image | None, str]:
    """Return the image, if there is one, and its name in errors, e.g. `train/b.png: the label (/data/b.png)`."""
    plain = stored is None or isinstance(stored, bytes)
    content, path = (stored, None) if plain else (stored["bytes"], stored["path"])
    described = f"{name}: the {role}{f' ({path})' if path else ''}" if name else f"the {role} {path or 'of a row'}"
    source = path if content is None else content
    return (None if source is None else open_image(source, described)), described


def _rgb_image(stored: Any, name: str | None) -> Image.Image:
    image, described = _open(stored, "image", name)
    if image is None:
        raise SampleError(f"{name or 'a row'} has no image; take that row out of the dataset.")
    try:
        image = as_rgb(image)
    except ValueError as error:
        raise SampleError(f"{described} has {error}.") from error
    # As if made in memory: otherwise `Dataset.map` would re-encode a photograph as JPEG, and thus change it.
    image.format = None
    return image


def _class_ids(label: Image.Image, described: str) -> Image.Image:
    if label.format not in _LOSSLESS:
        raise SampleError(f"{described} is a {label.format}, which can change class ids; labels must be PNG.")
    if label.info.get("altered"):
        raise SampleError(
            f"{described} is a {label.format} whose values Pillow changes (0 is white, or the largest is not 255); "
            "save it as PNG."
        )
    if label.mode == "LA" and label.getextrema()[1] == (255, 255):  # an opaque alpha channel carries no information
        return label.getchannel("L")
    # A palette image holds ids too: convert("L") would turn their *colours* into grey values.
    if label.mode not in ("L", "P", "1") and not label.mode.startswith("I"):
        raise SampleError(
            f"{described}: the label's image mode is {label.mode}, but one class id per pixel is expected (grey "
            "values or palette indices); convert colour-coded labels to ids first."
        )
    values, bits = np.asarray(label), label.info.get("bits")
    stretched = label.mode == "L" and bits in (2, 4)  # to 0..255, by Pillow
    return _label_image(values // (255 // (2**bits - 1)) if stretched else values)


def _label_image(values: np.ndarray) -> Image.Image:
    fits = values.dtype.itemsize == 1 or (values.size and 0 <= values.min() and values.max() <= 255)
    return Image.fromarray(values.astype(np.uint8 if fits else np.int32, copy=False))
