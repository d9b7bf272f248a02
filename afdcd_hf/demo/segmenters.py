"""The page's models, its images, and the models' label maps."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.utils.hub import cached_file

from ..charts import data_title
from ..cost import count_parameters
from ..data.scenes import generate_scene
from ..hub.folder_facts import describe, read_results
from ..inference.files import open_rgb
from ..inference.predictions import class_legend
from ..inference.segment import segment_image
from ..models.loading import load_model, load_processor

LONGEST_SIDE = 1024  # Cityscapes images at half size; a small model takes about a second on a CPU


@dataclass(frozen=True)
class Segmenter:
    """One model of the page."""

    title: str
    facts: str  # such as `DeepLabV3 on mobilenetv2_100, 3.2 M parameters`
    classes: tuple[str, ...]  # names of its K classes
    colors: np.ndarray  # (K, 3) uint8 RGB
    model: nn.Module  # in evaluation mode, on its device
    processor: Any

    def __call__(self, image: Image.Image) -> tuple[np.ndarray, float]:
        """Return the label map `(H, W)` of an RGB image, and the seconds from the image to the map."""
        start = time.perf_counter()
        label_map = segment_image(self.model, self.processor, image)  # on the CPU, so a GPU has finished
        return label_map, time.perf_counter() - start


def load_segmenters(models: Mapping[str, str | Path], device: str | torch.device | None = None) -> list[Segmenter]:
    """Load models (title -> folder or Hub id) to a device, by default a GPU if there is one.

    A ValueError if there are no models or weights are missing in a file; an OSError if a model does not exist.
    """
    if not models:
        raise ValueError("A demo needs at least one model: a folder or a Hub id.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    segmenters = []
    for title, name in models.items():
        model = load_model(str(name)).to(device).eval()
        config: Any = model.config
        classes, colors = class_legend(config.id2label)
        facts = [describe(config), f"{count_parameters(model) / 1e6:.2f} M parameters", *_measured(str(name))]
        processor = load_processor(str(name))
        segmenters.append(Segmenter(title, ", ".join(facts), tuple(classes), colors, model, processor))
    return segmenters


def _measured(model: str) -> list[str]:
    """Return the model's score if `afdcd evaluate` or a training wrote one beside the weights."""
    kinds = ("missing_entries", "connection_errors", "gated_repo")
    path = cached_file(model, "results.json", **{f"_raise_exceptions_for_{kind}": False for kind in kinds})
    if path is None:
        return []
    results = read_results(path)
    return [f"mIoU {100 * results['mean_iou']:.1f} % on {data_title(results['protocol'])}"]


def read_upload(path: str | Path, longest_side: int = LONGEST_SIDE) -> tuple[Image.Image, tuple[int, int]]:
    """Read an image upright as 8-bit RGB with no side above `longest_side`; also return its original (width, height).

    A ValueError, which names the file without its folder, if it is not an image, damaged or too large to open.
    """
    path = Path(path)
    try:
        image = open_rgb(path)
    except (OSError, ValueError) as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error
    shrunk = image.copy()
    shrunk.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return shrunk, image.size


def example_images(given: Sequence[str | Path]) -> list[Path]:
    """Check that the given images can be read and return their paths; without any, three generated street scenes."""
    paths = [Path(path).expanduser().resolve() for path in given]
    for path in paths:
        read_upload(path)
    if not paths:
        folder = Path(tempfile.mkdtemp(prefix="afdcd-demo-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the page may show them until it stops
        for number, seed in enumerate((7, 21, 35), 1):
            paths.append(folder / f"generated-street-{number}.png")
            Image.fromarray(generate_scene(seed, (256, 512))[0]).save(paths[-1])
    return paths


def share_table(segmenters: Sequence[Segmenter], label_maps: Sequence[np.ndarray]) -> list[list[str]]:
    """List the predicted classes, largest first: name, and share of the pixels for each model."""
    shares: dict[str, list[float]] = {}
    for column, (segmenter, label_map) in enumerate(zip(segmenters, label_maps, strict=True)):
        counts = np.bincount(label_map.ravel(), minlength=len(segmenter.classes))
        for name, count in zip(segmenter.classes, counts, strict=True):
            shares.setdefault(name, [0.0] * len(segmenters))[column] = count / label_map.size
    rows = sorted(((name, values) for name, values in shares.items() if any(values)), key=lambda row: -sum(row[1]))
    return [[name, *(f"{100 * value:.1f} %" if value else "–" for value in values)] for name, values in rows]
