"""Rows as everything downstream wants them: RGB images, and labels that are train ids."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from .damaged_files import named_errors
from .unread_png import PNG_SIGNATURE, UnreadPng

MAX_VALUE = 65535  # what a 16-bit PNG can hold, and so the largest key of a label map

# A picture as `datasets.Image(decode=False)` hands it out, {"bytes": ..., "path": ...}, or the bytes of its file.
Stored = Mapping[str, Any] | bytes


@dataclass(frozen=True)
class DecodedRows:
    """The dataset's transform: RGB images, labels with train ids. No closure, since workers have to unpickle it.

    The columns `image` and `label` have to be undecoded (`datasets.Image(decode=False)`), so that an error can name the
    file, and because how a label is stored tells what it holds: `Dataset.map` stores a label that its function returns
    as bytes without a path, and that label was mapped when the function got it. All others hold the files' values.

    Labels are single-channel integers: grey values of 1 (read as 0 and 1), 8, 16 or 32 bits, or palette indices (never
    the palette's colours). They come out in mode "L", or "I" where an id needs more than 8 bits. An orientation tag
    (EXIF or XMP) is obeyed in images and labels, as viewers and `datasets` do.

    Damaged files raise an OSError that names them. It comes with the row, but for PNG images: those are decoded when
    their pixels are asked for, and it comes then.
    """

    label_map: tuple[tuple[int, int], ...] = ()  # (value in the file, train id or ignore index); other values stay

    @classmethod
    def with_map(cls, label_map: Mapping[Any, Any]) -> DecodedRows:
        """Maps the values listed and keeps all others.

        Args:
            label_map: Value in the files → train id or ignore index, both 0..65535; strings, as in JSON, are read.

        Raises:
            ValueError: If a key or a value is no such number, or a key comes twice (as 7 and "7").
        """
        pairs = [(_number(key, "key"), _number(value, "value")) for key, value in label_map.items()]
        keys = [key for key, _ in pairs]
        doubled = sorted({key for key in keys if keys.count(key) > 1})
        if doubled:
            raise ValueError(f"label_map has more than one entry for {doubled[0]}; leave one.")
        return cls(tuple(sorted(pair for pair in pairs if pair[0] != pair[1])))

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = dict(batch)  # perhaps only some of the columns, as in ds["label"]
        for column, decode in (("image", _rgb_image), ("label", self._label)):
            if column in batch:
                names = batch.get("name") or [None] * len(batch[column])
                rows[column] = [decode(stored, name) for stored, name in zip(batch[column], names, strict=True)]
        return rows

    def _label(self, stored: Stored | None, name: str | None) -> Image.Image | None:
        if _is_missing(stored):
            return None
        described = _described(stored, "label", name)
        label = _open(stored, described)
        if label.format == "JPEG":
            raise ValueError(f"{described} is a JPEG, which changes class ids; labels must be PNG.")
        label = _single_channel(_upright(label, described), name or described, _path_of(stored))
        written_by_map = not isinstance(stored, bytes) and stored["path"] is None
        return self._mapped(label) if self.label_map and not written_by_map else label

    def _mapped(self, label: Image.Image) -> Image.Image:
        if label.mode == "L" and self._table[:256].max() <= 255:
            return label.point(self._table[:256].tolist())  # PIL's own lookup takes half the time of numpy's
        values = np.asarray(label, dtype=np.int32)
        mapped = self._table.take(values, mode="clip")
        return _label_image(np.where((values >= 0) & (values <= MAX_VALUE), mapped, values))

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.arange(MAX_VALUE + 1, dtype=np.int32)
        for value, train_id in self.label_map:
            table[value] = train_id
        return table


def _number(given: Any, what: str) -> int:
    try:
        number = int(given)
    except (TypeError, ValueError):
        number = -1
    if isinstance(given, (bool, float)) or not 0 <= number <= MAX_VALUE:
        raise ValueError(f"label_map has the {what} {given!r}; class ids are whole numbers from 0 to {MAX_VALUE}.")
    return number


def _is_missing(stored: Stored | None) -> bool:
    return stored is None or (isinstance(stored, Mapping) and stored["bytes"] is None and stored["path"] is None)


def _rgb_image(stored: Stored | None, name: str | None) -> Image.Image:
    if _is_missing(stored):
        raise ValueError(f"{name or 'a row'} has no image; take that row out of the dataset.")
    described = _described(stored, "image", name)
    image = _open(stored, described)
    if image.mode.startswith(("I", "F")):  # PIL would clip: nearly all of the picture turns white
        raise ValueError(f"{described} has mode {image.mode}, more than 8 bits a channel; convert it to 8.")
    if image.mode == "RGB" and isinstance(image, UnreadPng) and not image.may_be_turned():
        return image
    image = _upright(image, described)
    # As if made in memory: otherwise `Dataset.map` would store a photograph as a JPEG again, and thus change it.
    image.format = None
    return image if image.mode == "RGB" else image.convert("RGB")


def _single_channel(label: Image.Image, name: str, path: str | None) -> Image.Image:
    # A palette image holds ids too: convert("L") would turn their *colours* into grey values.
    if label.mode in ("L", "P", "1") or label.mode.startswith("I"):
        return _label_image(np.asarray(label))
    if label.mode == "LA" and label.getextrema()[1] == (255, 255):  # an opaque alpha channel says nothing
        return label.getchannel("L")
    raise ValueError(
        f"{name}: the label's image mode is {label.mode}, but one class id a pixel is expected (grey values or palette "
        f"indices); turn colour-coded labels into ids first{f' ({path})' if path else ''}."
    )


def _label_image(values: np.ndarray) -> Image.Image:
    fits = values.dtype.itemsize == 1 or (values.size and 0 <= values.min() and values.max() <= 255)
    return Image.fromarray(values.astype(np.uint8 if fits else np.int32, copy=False))


def _open(stored: Stored, described: str) -> Image.Image:
    if isinstance(stored, Image.Image):
        raise ValueError(f"{described} was decoded by `datasets`: cast its column to datasets.Image(decode=False).")
    content = stored if isinstance(stored, bytes) else stored["bytes"]
    with named_errors(described):
        content = Path(stored["path"]).read_bytes() if content is None else content
        png = content.startswith(PNG_SIGNATURE)
        return UnreadPng(content, described) if png else Image.open(io.BytesIO(content))


def _upright(image: Image.Image, described: str) -> Image.Image:
    with named_errors(described):
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image


def _described(stored: Stored, role: str, name: str | None) -> str:
    """Such as `train/b.png: the label (/data/trainannot/b.png)`."""
    path = _path_of(stored)
    return f"{name}: the {role}{f' ({path})' if path else ''}" if name else f"the {role} {path or 'of a row'}"


def _path_of(stored: Stored) -> str | None:
    return stored["path"] if isinstance(stored, Mapping) else None
