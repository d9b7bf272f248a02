"""PNG files that are decoded late, and only down to the row that is needed."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, PngImagePlugin

from .damaged_files import named_errors

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # chunks that can hold such a tag


class UnreadPng(PngImagePlugin.PngImageFile):
    """A PNG that is decoded when its pixels are asked for, with errors that name it.

    Args:
        content: Bytes of the file.
        described: What errors call it.
    """

    described = "a PNG image"

    def __init__(self, content: bytes, described: str) -> None:
        super().__init__(io.BytesIO(content))
        self.described = described

    def load(self) -> Any:
        """Decodes the image, if that is still to be done.

        Raises:
            OSError: If the file is damaged.
        """
        with named_errors(self.described):
            return super().load()

    def may_be_turned(self) -> bool:
        """Whether an image not decoded yet may have an orientation tag: it may stand before the pixels or behind."""
        content, begin = self.fp.getvalue(), self.tile[0][2] if self.tile else 0
        around = content[:begin] + content[content.rfind(b"IDAT") :]  # the whole file would take 4 ms
        return any(mark in around for mark in _ORIENTATION)


def with_rows_read(image: Image.Image, count: int) -> Image.Image:
    """The image with at least its first `count` rows decoded.

    A PNG is decoded from the top, which takes most of the time that a training sample takes, and a crop rarely reaches
    the bottom. Only an `UnreadPng` that is stored row by row can gain; it is left as it is, and may be used again for
    other rows. Any other image is returned.

    Args:
        image: Any image.
        count: Number of rows needed, 1..image.height.

    Returns:
        An image of the same size and mode; what lies below the rows asked for is undefined.

    Raises:
        OSError: If the file is damaged in the rows asked for or above.
    """
    if not isinstance(image, UnreadPng) or not _stored_by_rows(image) or count >= image.height:
        return image
    partial = UnreadPng(image.fp.getvalue(), image.described)
    codec, (left, top, right, _), offset, arguments = partial.tile[0]
    partial.tile = [(codec, (left, top, right, count), offset, arguments)]
    partial.load()
    return partial


def _stored_by_rows(image: UnreadPng) -> bool:
    unread = len(image.tile) == 1 and image.tile[0][0] == "zip"
    return unread and not image.info.get("interlace") and not image.is_animated
