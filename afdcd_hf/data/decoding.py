"""Rows as everything downstream wants them: RGB images, and labels that are train ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class DecodedRows:
    """The dataset's transform: RGB images, remapped labels. No closure, since workers must be able to unpickle it."""

    lookup: tuple[int, ...]  # train id of each of the 256 values a label file can hold

    @classmethod
    def with_map(cls, label_map: Mapping[int, int]) -> DecodedRows:
        """Maps the values listed and keeps all others."""
        return cls(tuple(label_map.get(value, value) for value in range(256)))

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = dict(batch)  # perhaps only some of the columns, as in ds["label"]
        names = batch.get("name", ["a label"] * len(batch.get("label", [])))
        if "image" in batch:
            rows["image"] = [image.convert("RGB") for image in batch["image"]]
        if "label" in batch:
            rows["label"] = [self._remap(label, name) for label, name in zip(batch["label"], names, strict=True)]
        return rows

    def _remap(self, label: Image.Image, name: str) -> Image.Image:
        if label.mode not in ("L", "P"):
            raise ValueError(
                f"{name}: the label's image mode is {label.mode}, but 8-bit class ids ('L' or 'P') are expected; turn "
                "colour-coded labels into ids first."
            )
        # A palette image holds ids too: convert("L") would turn their *colours* into grey values.
        return Image.fromarray(np.array(self.lookup, dtype=np.uint8)[np.asarray(label)])
