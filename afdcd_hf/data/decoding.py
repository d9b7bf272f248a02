"""Rows as everything downstream wants them: RGB images, and labels that are train ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ..models.image_modes_afdcd import as_rgb
from .image_files import SampleError, open_image

MAX_VALUE = 65535  # what a 16-bit PNG can hold, and so the largest key of a label map
_LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # Pillow returns what is stored, but for `_as_stored`


@dataclass(frozen=True)
class DecodedRows:
    """The dataset's transform: RGB images, labels with train ids. No closure, since workers have to unpickle it.

    The columns `image` and `label` have to be undecoded (`datasets.Image(decode=False)`, or bytes), so that an error
    can name the file, and because how a label is stored tells what it holds: `Dataset.map` stores a label that its
    function returns as bytes without a path, and that label was mapped when the function got it. All others hold the
    files' values.

    Labels are single-channel integers: grey values of 1 (read as 0 and 1), 2, 4, 8, 16 or 32 bits, or palette indices
    (never the palette's colours). They come out in mode "L", or "I" where an id needs more than 8 bits.
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
        for key, times in Counter(key for key, _ in pairs).items():
            if times > 1:
                raise ValueError(f"label_map has more than one entry for {key}; leave one.")
        return cls(tuple(sorted(pair for pair in pairs if pair[0] != pair[1])))

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Decodes a batch of rows, perhaps of only some of the columns, as in `dataset["label"]`.

        Raises:
            OSError: If a file is missing or damaged.
            ValueError: If an image is missing or has no defined colours, or a label is no map of class ids.
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


def _open(stored: Any, role: str, name: str | None) -> tuple[Image.Image | None, str]:
    """The image, None if there is none, and what errors call it, such as `train/b.png: the label (/data/b.png)`."""
    parts: Mapping[str, Any] = {"bytes": stored, "path": None}
    if not isinstance(stored, bytes) and stored is not None:
        parts = stored
    content, path = parts["bytes"], parts["path"]
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
    # As if made in memory: otherwise `Dataset.map` would store a photograph as a JPEG again, and thus change it.
    image.format = None
    return image


def _class_ids(label: Image.Image, described: str) -> Image.Image:
    if label.format not in _LOSSLESS:
        raise SampleError(f"{described} is a {label.format}, which can change class ids; labels must be PNG.")
    # A palette image holds ids too: convert("L") would turn their *colours* into grey values.
    if label.mode in ("L", "P", "1") or label.mode.startswith("I"):
        return _label_image(_as_stored(label, described))
    if label.mode == "LA" and label.getextrema()[1] == (255, 255):  # an opaque alpha channel says nothing
        return label.getchannel("L")
    raise SampleError(
        f"{described}: the label's image mode is {label.mode}, but one class id a pixel is expected (grey values or "
        "palette indices); turn colour-coded labels into ids first."
    )


def _as_stored(label: Image.Image, described: str) -> np.ndarray:
    """The values of the file: Pillow stretches grey values of 2 and 4 bits to 0..255, and inverts some TIFFs."""
    if label.info.get("altered"):
        raise SampleError(
            f"{described} is a {label.format} whose values Pillow changes (0 is white, or the largest is not 255); "
            "save it as PNG."
        )
    values, bits = np.asarray(label), label.info.get("bits")
    return values // (255 // (2**bits - 1)) if label.mode == "L" and bits in (2, 4) else values


def _label_image(values: np.ndarray) -> Image.Image:
    fits = values.dtype.itemsize == 1 or (values.size and 0 <= values.min() and values.max() <= 255)
    return Image.fromarray(values.astype(np.uint8 if fits else np.int32, copy=False))
