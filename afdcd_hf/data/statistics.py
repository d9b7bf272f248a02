"""Statistics of a dataset (pixels and images per class, sizes, ignored pixels), and a hash that identifies it."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .checks import check_labels, with_ignore_index
from .decoding import MAX_VALUE, with_decoding


@dataclass(frozen=True)
class LabelStatistics:
    """The counts of `count_labels`."""

    pixels: np.ndarray  # of each class, `(K,)` int64
    images: np.ndarray  # that contain each class, `(K,)` int64
    ignored: int  # pixels with the ignore index
    sizes: Mapping[tuple[int, int], int]  # (height, width) of a label, and so of its image → number of images
    unlabelled: int  # images without a label, which no other count includes

    @property
    def shares(self) -> np.ndarray:
        """Share of each class among the pixels that are not ignored, `(K,)` float64; zeros if there are none."""
        return self.pixels / max(1, self.pixels.sum())

    @property
    def balanced_weights(self) -> np.ndarray:
        """A weight for each class, 1 / ln(1.02 + share), scaled to a mean of 1, `(K,)` float64 (ENet, 1606.02147)."""
        weights = 1 / np.log(1.02 + self.shares)
        return weights / weights.mean()

    @property
    def ignored_share(self) -> float:
        """Share of ignored pixels among all."""
        return self.ignored / max(1, self.ignored + int(self.pixels.sum()))


def count_labels(
    dataset: Any,
    num_labels: int | None = None,
    ignore_index: int = 255,
    *,
    indices: Sequence[int] | None = None,
    progress: bool = False,
) -> LabelStatistics:
    """Count a dataset's labels one by one, without reading images if the dataset has columns.

    Args:
        dataset: A dataset from `load_split`, or any rows with a PIL `label` (or None) and, optionally, a `name`.
        num_labels: Number of classes K; by default the largest value in the labels plus one.
        ignore_index: Label of pixels that are counted separately.
        indices: Rows of a sequence to read; by default all.
        progress: Show a progress bar.

    Raises ValueError, naming the image, if a label holds another value, and OSError if a file is missing or damaged.
    """
    rows = with_decoding(dataset)
    if hasattr(rows, "select_columns"):
        rows = rows.select_columns([name for name in ("label", "name") if name in rows.column_names])
    pixels, images = np.zeros((2, num_labels or 0), np.int64)
    ignored, unlabelled, sizes = 0, 0, Counter[tuple[int, int]]()
    chosen = enumerate(rows) if indices is None else ((index, rows[index]) for index in indices)
    total = length_hint(rows if indices is None else indices) or None
    for index, row in tqdm(chosen, "labels", total, unit="image", disable=not progress, leave=False):
        if row["label"] is None:
            unlabelled += 1
            continue
        label = with_ignore_index(np.asarray(row["label"]), num_labels or 0, ignore_index)
        check_labels(label, num_labels or MAX_VALUE + 1, ignore_index, row.get("name") or f"image {index}")
        found = np.bincount(label[label != ignore_index], minlength=len(pixels))
        grown = (0, len(found) - len(pixels))
        pixels, images = np.pad(pixels, grown) + found, np.pad(images, grown) + (found > 0)
        ignored += label.size - int(found.sum())
        sizes[label.shape[0], label.shape[1]] += 1
    return LabelStatistics(pixels, images, ignored, sizes, unlabelled)


def is_generated(name: str) -> bool:
    """Return whether a dataset is fingerprinted `of_pixels`, on which claiming and verifying a score must agree."""
    return name == "scenes"


def fingerprint(dataset: Any, *, of_pixels: bool = False) -> str:
    """Hash the names and sizes in bytes of all files of a dataset from `load_split`, without reading them.

    This takes milliseconds and does not depend on where the files lie, but changes that keep name and size go
    unnoticed. For generated images, `of_pixels` hashes the pixels instead. Returns the SHA-256's first 16 hex digits.
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
