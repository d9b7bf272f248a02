"""Errors over damaged image files, which say what file it is and what to do."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

# What PIL raises over damaged files; a defect of ours should not hide behind it.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@contextmanager
def named_errors(described: str) -> Iterator[None]:
    """Turns what PIL raises over a file into an OSError that names it; such errors pass unchanged.

    Args:
        described: What the error calls the file, such as `train/b.png: the label (/data/trainannot/b.png)`.
    """
    try:
        yield
    except _NamedError:
        raise
    except DAMAGED as error:
        raise _NamedError(f"{described} cannot be read: {_reason(error)}") from error


class _NamedError(OSError):
    """Says already which file it is about."""


def _reason(error: Exception) -> str:
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return f"{error.strerror}. Put the file back, or take the row out of the dataset."
    what = "no picture" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
    return f"{what}. The file is damaged or incomplete: copy or download it again, or take it out of the dataset."
