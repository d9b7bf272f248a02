"""A short name for exactly these images and labels, to tell whether two people have the same."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from datasets import Dataset


def is_generated(name: str) -> bool:
    """Whether a data set's fingerprints are `of_pixels`: who claims a score and who verifies it must agree."""
    return name == "scenes"


def fingerprint(dataset: Dataset, *, of_pixels: bool = False) -> str:
    """A hash of the names and sizes in bytes of all files, in their order; the files themselves are not read.

    So it takes milliseconds and is the same wherever the files lie. Files that were changed without a change of name
    and size go unnoticed.

    Args:
        dataset: What `load_split` returns.
        of_pixels: Hash the pixels instead of the sizes. For generated images, whose compressed size depends on the
            libraries at hand.

    Returns:
        The first 16 hexadecimal digits of a SHA-256.

    Raises:
        FileNotFoundError: If a file has gone.
    """
    digest = hashlib.sha256()
    for batch in dataset.with_format(None).iter(batch_size=256):
        names = batch.get("name") or [""] * len(batch["image"])
        for name, image, label in zip(names, batch["image"], batch["label"], strict=True):
            content = [_pixels(stored) if of_pixels else _size(stored) for stored in (image, label)]
            digest.update(repr((name, content)).encode())
    return digest.hexdigest()[:16]


def _size(stored: Mapping[str, Any] | None) -> int | None:
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        return None
    return os.path.getsize(stored["path"]) if stored["bytes"] is None else len(stored["bytes"])


def _pixels(stored: Mapping[str, Any]) -> str:
    with Image.open(io.BytesIO(stored["bytes"])) as image:
        return f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
