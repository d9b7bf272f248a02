"""The networks of the page: loaded once, with what is shown of them; and what they make of a picture."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.utils.hub import cached_file

from ..cost import count_parameters
from ..hub.folder_facts import describe
from ..inference.predictions import class_legend
from ..inference.segment import segment_image
from ..models.loading import load_model, load_processor

_LONG = 2.0  # seconds that nobody wants to wait twice


@dataclass(frozen=True)
class Segmentation:
    """What a network made of a picture.

    Attributes:
        label_map: `(H, W)` class ids at the picture's size.
        seconds: From the picture to the label map: preprocessing, network, stretching of its scores.
        runs: The shortest of how many that is.
    """

    label_map: np.ndarray
    seconds: float
    runs: int = 1

    def shares(self, num_labels: int) -> np.ndarray:
        """Share of the pixels that each class has: `(num_labels,)` float64 that add up to 1."""
        return np.bincount(self.label_map.ravel(), minlength=num_labels) / self.label_map.size


@dataclass(frozen=True)
class Segmenter:
    """One network of the page.

    Attributes:
        title: What the page calls it.
        facts: A line about it, such as `DeepLabV3 on mobilenetv2_100, 3.2 M parameters`.
        classes: Names of its K classes.
        colors: `(K, 3)` uint8 RGB.
        network: In evaluation mode, on the device where it is to run.
        processor: Its image processor.
    """

    title: str
    facts: str
    classes: tuple[str, ...]
    colors: np.ndarray
    network: nn.Module
    processor: Any

    def __call__(self, picture: Image.Image) -> Segmentation:
        """Segment one RGB picture and take the time: the shorter of two, as the first network would pay for all that
        a new size needs; of one where that is long already."""
        first = self._segment(picture)
        if first.seconds > _LONG:
            return first
        return replace(first, seconds=min(first.seconds, self._segment(picture).seconds), runs=2)

    def _segment(self, picture: Image.Image) -> Segmentation:
        start = time.perf_counter()
        label_map = segment_image(self.network, self.processor, picture)  # on the CPU: a GPU's work is complete
        return Segmentation(label_map, time.perf_counter() - start)


def load_segmenters(models: Mapping[str, str | Path], device: str | torch.device | None = None) -> list[Segmenter]:
    """Load the networks of a page.

    Args:
        models: Title -> folder or Hub id.
        device: Where to run; by default a GPU where there is one.

    Raises:
        ValueError: If there is no model, or weights are missing in its file.
        OSError: If there is no such folder or repository.
    """
    if not models:
        raise ValueError("A demo needs at least one model: a folder or a Hub id.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return [_load(title, str(model), device) for title, model in models.items()]


def _load(title: str, model: str, device: str | torch.device) -> Segmenter:
    try:
        network = load_model(model).to(device).eval()
        processor = load_processor(model)
    except OSError as error:  # where there is no network, the message would not say which model
        where = model if Path(model).is_dir() else f"There is no folder {model}, and as a model of the Hub it"
        raise OSError(f"{where} cannot be loaded: {error}") from error
    classes, colors = class_legend(network.config.id2label)
    return Segmenter(title, _facts(network, model), tuple(classes), colors, network, processor)


def _facts(network: nn.Module, model: str) -> str:
    facts = [describe(network.config), f"{count_parameters(network) / 1e6:.2f} M parameters", *_measured(model)]
    return ", ".join(facts)


def _measured(model: str) -> list[str]:
    """Its score, where `afdcd evaluate` or a training left one beside the weights."""
    path = cached_file(
        model,
        "results.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if path is None:
        return []
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        where = results["protocol"]
        return [f"mIoU {100 * results['mean_iou']:.1f} % on {where['dataset']} {where['split']}"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results.json of `afdcd evaluate`: {error!r}. Move it away.") from error
