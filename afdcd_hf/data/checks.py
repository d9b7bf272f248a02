"""Checks that an image fits its label, and that a label and a model fit the classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .decoding import SampleError

logger = logging.getLogger(__name__)


def check_columns(dataset: Any) -> None:
    """Raise ValueError if a dataset has columns, but not those of images and labels."""
    columns = getattr(dataset, "column_names", None)
    if columns is not None and not {"image", "label"} <= set(columns):
        raise ValueError(f"The dataset has columns {list(columns)}; 'image' and 'label' are needed: rename them.")


def check_same_size(image: Image.Image, label: np.ndarray, name: str = "") -> None:
    """Raise ValueError, beginning with `name`, if an image and its label, `(H, W)`, differ in size."""
    if (image.height, image.width) != label.shape[:2]:
        turned = label.shape[:2] == (image.width, image.height)
        hint = " If the image was turned by its EXIF orientation, save the label turned as well." if turned else ""
        raise SampleError(
            f"{name}{': ' if name else ''}the image is {image.height}x{image.width} pixels but its label "
            f"{'x'.join(map(str, label.shape[:2]))} (height x width); they must be equal.{hint}"
        )


def check_labels(label: np.ndarray, num_labels: int, ignore_index: int, name: str) -> None:
    """Raise ValueError, naming the image, unless a label is `(H, W)` integers of 0..K-1 and the ignore index."""
    if label.ndim != 2 or label.dtype.kind not in "biu":
        raise SampleError(
            f"{name}: the label has shape {label.shape} and dtype {label.dtype}, but one integer class id per pixel is "
            "expected; colour-coded labels must be converted to ids first."
        )
    wrong = label[((label < 0) | (label >= num_labels)) & (label != ignore_index)]
    if wrong.size:
        values = np.unique(wrong).tolist()
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise SampleError(
            f"{name}: {wrong.size} label pixels lie outside 0..{num_labels - 1} (values {shown}); map them with "
            f"label_map to a class or to ignore_index={ignore_index}, or add the classes to class_names (num_labels)."
        )


def with_ignore_index(label: np.ndarray, num_labels: int, ignore_index: int) -> np.ndarray:
    """Replace 255, by which files and label maps mark ignored pixels, by a model's index, unless 255 is a class."""
    return label if ignore_index == 255 or num_labels > 255 else np.where(label == 255, np.int32(ignore_index), label)


def check_classes(model: Any, class_names: Sequence[str], data: str = "the dataset") -> None:
    """Compare a model's classes with the data's: another number is a ValueError, other names are a warning.

    A model whose configuration names no classes passes. Messages call the data `data`.
    """
    config = getattr(model, "config", None)
    num_labels = getattr(config, "num_labels", None)
    if config is None or num_labels is None:
        return
    if num_labels != len(class_names):
        raise ValueError(
            f"The model has {num_labels} classes, but {data} has {len(class_names)}: it was made for other data."
        )
    if differing := differing_classes(config, class_names):
        index = differing[0]
        logger.warning(
            "%d of the model's %d class names differ from those of %s; class %d is %r for the model and %r there. If "
            "the order differs, not only the spelling, results are reported under the wrong names.",
            len(differing), num_labels, data, index, config.id2label[index], class_names[index],
        )  # fmt: skip


def differing_classes(config: Any, class_names: Sequence[str]) -> list[int]:
    """Return the ids at which a configuration has another name, ignoring case and placeholders."""
    own = [str((config.id2label or {}).get(index, f"LABEL_{index}")) for index in range(len(class_names))]
    pairs = enumerate(zip(own, class_names, strict=True))
    return [i for i, (mine, other) in pairs if mine != f"LABEL_{i}" and mine.lower() != other.lower()]
