"""Reading an image file safely, from a path or from bytes, with errors that name the file and say what to do."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What PIL raises over damaged files; a defect of ours should not hide behind it.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


class _OneLine(Exception):
    """Keeps its message when a `DataLoader` raises it again: a worker's traceback is put in front of it there."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f".{type(self).__name__}: ")[2].strip())


class ImageFileError(_OneLine, OSError):
    """A file that cannot be read as an image; the message names it."""


class SampleError(_OneLine, ValueError):
    """An image and a label that cannot be used together; the message names the image."""


def open_image(source: str | Path | bytes, described: str) -> Image.Image:
    """Reads an image as viewers show it: decoded and upright (an EXIF or XMP orientation tag is obeyed).

    All checksums of a PNG are compared: a flipped bit can otherwise change pixels, and class ids, unnoticed.

    `format` is kept, and `info` says what Pillow hides: `bits` a value, and whether its values are `altered`.

    Args:
        source: Path, or the content of the file.
        described: What errors call the file, such as `train/b.png: the label (/data/trainannot/b.png)`.

    Raises:
        ImageFileError: If the file is missing, no regular file, not an image, damaged, or has more pixels than Pillow
            reads (`PIL.Image.MAX_IMAGE_PIXELS`, twice).
    """
    try:
        return _opened(source if isinstance(source, bytes) else _content(Path(source)))
    except Image.DecompressionBombError as error:
        what = f"{error} Use a smaller copy; for files that you trust, raise PIL.Image.MAX_IMAGE_PIXELS."
        raise ImageFileError(f"{described} cannot be read: {what}") from error
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        what = f"{error.strerror}. Put the file back, or take the row out of the dataset."
        raise ImageFileError(f"{described} cannot be read: {what}") from error
    except _DAMAGED as error:
        what = "not an image" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        raise ImageFileError(
            f"{described} cannot be read: {what}. The file is damaged or incomplete: copy or download it again, or "
            "take it out of the dataset."
        ) from error


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise IsADirectoryError(0, "It is a folder, a pipe or a device, not a regular file")
    return path.read_bytes()


def _opened(content: bytes) -> Image.Image:
    if content.startswith(_PNG_SIGNATURE):
        _check_png(content)
    image: Image.Image = Image.open(io.BytesIO(content))
    image.load()
    kind, stored_as = image.format, _stored_as(image, content)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
        image.format = kind
    image.info.update(stored_as)
    return image


def _check_png(content: bytes) -> None:
    """Walks over the chunks (length, kind, data, CRC-32 of kind and data) up to the last one, IEND."""
    view, start = memoryview(content), len(_PNG_SIGNATURE)
    while start + 12 <= len(view):
        end = start + 8 + int.from_bytes(view[start : start + 4], "big")
        if end + 4 > len(view):
            break
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"a checksum of its PNG data is wrong (at byte {start})")
        if view[start + 4 : start + 8] == b"IEND":
            return
        start = end + 4
    raise ValueError("it is truncated")


def _stored_as(image: Image.Image, content: bytes) -> dict[str | tuple[int, int], Any]:
    if image.format == "PNG":
        return {"bits": content[24]}  # of the header: signature, a chunk's length and kind, width, height, bits
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        return {"bits": tags.get(258, (1,))[0], "altered": tags.get(262) == 0}  # 0 is white
    if image.format == "PPM":  # a map of grey values is as it is where the largest value is that of its bytes
        kind, _, _, largest, *_ = content[:64].split() + 4 * [b""]
        return {"altered": kind == b"P4" or largest not in (b"255", b"65535")}
    return {}
