"""Comparison of PyTorch and exported graphs: size, latency, mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..evaluation.segmenter import evaluate_segmenter
from ..inference.graphs import GraphSegmenter, load_graph
from ..inference.segment import WHOLE_IMAGE, make_sample, segment_image
from ..model_utils import evaluating

_WARMUP = 3  # untimed rounds


@dataclass(frozen=True)
class RuntimeRow:
    """One way to run a model."""

    runtime: str  # its name
    megabytes: float  # size of the file in 10^6 bytes; for PyTorch, of the weights
    latency_median: float  # seconds for one image
    latency_p95: float
    mean_iou: float | None = None  # 0 to 1 on the evaluation dataset; None without one
    mean_iou_change: float | None = None  # relative to PyTorch
    other_labels: float | None = None  # share of pixels whose class differs from PyTorch's; None for PyTorch itself


def compare_runtimes(
    model: nn.Module,
    graphs: Mapping[str, str | Path],
    processor: Any,
    dataset: Sequence[Mapping[str, Any]] | None = None,
    *,
    images: Sequence[Image.Image] = (),
    repeats: int = 30,
) -> list[RuntimeRow]:
    """Measure a model and graphs exported from it on the CPU.

    Latency is that of the forward pass of one image, and of a graph's own preprocessing, with torch's number of threads
    for all runtimes. They alternate, so that other load affects all equally; the first three rounds are not timed. Mean
    IoU is from `evaluate_segmenter`. If a graph has a fixed size, all runtimes slide a window of that size over the
    images, and latency is for that size; otherwise it is for the dataset's first image, or for 512x512 pixels.

    Args:
        model: the model from which the graphs were exported.
        graphs: name of the row -> file of an exported graph.
        processor: image processor of the model.
        dataset: labelled images for mean IoU; without them it is not measured.
        images: images on which label maps are compared pixel by pixel.
        repeats: timed rounds, at least one.

    Raises:
        ValueError: a graph's label maps are smaller than the image, so they cannot be scored.
    """
    loaded = {name: load_graph(path) for name, path in graphs.items()}  # a graph may include preprocessing
    segmenters = {name: segmenter for name, (segmenter, _) in loaded.items()}
    model = model.cpu()
    fixed = next((one.facts["size"] for one in segmenters.values() if one.facts["size"]), None)

    def inputs(own: Any) -> torch.Tensor:
        if dataset is None or fixed is not None:
            return torch.zeros(1, 3, *(fixed or (512, 512)))
        return make_sample(own, dataset[0]["image"]).pixel_values[None].float()

    runners: dict[str, Callable[[], Any]] = {"PyTorch": partial(model, pixel_values=inputs(processor))}
    runners |= {name: partial(one.compute, one.inputs(inputs(own).numpy())) for name, (one, own) in loaded.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with evaluating(model), torch.no_grad():
        for _ in range(_WARMUP + repeats):
            for name, run in runners.items():
                start = perf_counter()
                run()
                seconds[name].append(perf_counter() - start)
    settings = WHOLE_IMAGE
    for one in segmenters.values():
        settings = one.settings_for(settings)
    expected = [segment_image(model, processor, image, settings) for image in images]
    rows: list[RuntimeRow] = []
    for name, (segmenter, own) in {"PyTorch": (model, processor), **loaded}.items():
        median, p95 = np.percentile(seconds[name][_WARMUP:], [50, 95]).tolist()
        score = change = others = None
        if dataset is not None:
            score = evaluate_segmenter(segmenter, dataset, processor=own, settings=settings)["mean_iou"]
            change = score - (rows[0].mean_iou if rows else score)
        if isinstance(segmenter, GraphSegmenter):
            size_in_bytes = segmenter.size_in_bytes
            found = [segment_image(segmenter, own, image, settings) for image in images]
            unequal = [(a != b).ravel() for a, b in zip(found, expected, strict=True)]
            others = float(np.concatenate(unequal).mean()) if unequal else None
        else:
            size_in_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        rows.append(RuntimeRow(name, size_in_bytes / 1e6, median, p95, score, change, others))
    return rows


def format_runtimes(rows: Sequence[RuntimeRow]) -> str:
    """Format a table with a line per runtime."""
    lines = [
        f"{'runtime':<12}{'MB':>8}{'median ms':>12}{'p95 ms':>10}{'mIoU %':>14}{'change':>9}{'other labels %':>16}"
    ]
    for row in rows:
        score = "not measured" if row.mean_iou is None else f"{100 * row.mean_iou:.2f}"
        others = "" if row.other_labels is None else f"{100 * row.other_labels:.2f}"
        has_change = row.mean_iou_change is not None and row is not rows[0]
        change = f"{round(100 * (row.mean_iou_change or 0), 2) + 0.0:+.2f}" if has_change else ""
        times = f"{1000 * row.latency_median:>12.1f}{1000 * row.latency_p95:>10.1f}"
        lines.append(f"{row.runtime:<12}{row.megabytes:>8.2f}{times}{score:>14}{change:>9}{others:>16}".rstrip())
    return "\n".join(lines)
