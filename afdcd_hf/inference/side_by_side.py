"""What saved models see: image, truth and predictions side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..charts import plot_predictions
from ..data.benchmarks import get_benchmark
from ..data.loading import load_split
from .onnx_segmenter import load_segmenter
from .segment import segment_image


def draw_predictions(
    models: Mapping[str, str | Path],
    path: str | Path,
    *,
    dataset: str,
    split: str = "val",
    data_dir: str | Path | None = None,
    indices: Sequence[int] = (0, 1, 2, 3, 4),
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Draw a row per image and a column per model, beside image and truth.

    Args:
        models: column title -> folder or Hub id.
        path: image to write.
        dataset: benchmark, for its images, class names and colours.
        split: its split.
        data_dir: its files.
        indices: which images.
        notes: a line under some columns' titles, e.g. `{"teacher": "mIoU 61.2 %"}`.

    Raises:
        ValueError: an unknown benchmark, or an index beyond the split.
    """
    benchmark = get_benchmark(dataset)
    images = load_split(dataset, split, data_dir)
    if max(indices) >= len(images):
        raise ValueError(f"{dataset}'s {split} split has {len(images)} images; index {max(indices)} is out of range.")
    rows = [images[index] for index in indices]
    columns = {"image": [np.asarray(r["image"]) for r in rows], "truth": [np.asarray(r["label"]) for r in rows]}
    for title, folder in models.items():
        model, processor = load_segmenter(str(folder))
        columns[title] = [segment_image(model, processor, row["image"]) for row in rows]
    return plot_predictions(columns, benchmark.palette, benchmark.classes, path, notes=notes or {})
