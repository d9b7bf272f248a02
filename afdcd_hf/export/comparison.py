"""PyTorch, the ONNX graph and its int8 version side by side: size, latency, mean IoU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..evaluation.segmenter import evaluate_segmenter
from ..inference.onnx_segmenter import OnnxSegmenter
from ..inference.segment import make_sample
from ..inference.settings import WHOLE_IMAGE, InferenceSettings
from ..model_utils import evaluating


@dataclass(frozen=True)
class RuntimeRow:
    """One way to run a network.

    Attributes:
        runtime: what runs it.
        megabytes: 10^6 bytes of the file; for PyTorch of the weights.
        latency_median: seconds for one picture.
        latency_p95: 95th percentile of the same.
        processor_median: seconds of processor time for one picture, of all threads together. On one thread of an idle
            machine it equals the latency; where the latency is longer, the network had to wait for other programs.
        mean_iou: 0 to 1 on the evaluation dataset; None where there was none.
        mean_iou_change: against PyTorch's.
    """

    runtime: str
    megabytes: float
    latency_median: float
    latency_p95: float
    processor_median: float
    mean_iou: float | None = None
    mean_iou_change: float | None = None


def compare_runtimes(
    model: nn.Module,
    graphs: Mapping[str, str | Path],
    processor,
    dataset: Sequence[Mapping[str, Any]] | None = None,
    *,
    size: tuple[int, int] = (512, 512),
    repeats: int = 30,
) -> list[RuntimeRow]:
    """Measure a network and graphs exported from it on the CPU.

    Latency is that of the forward pass of one picture, on as many threads as torch uses, the same for all. The
    contestants take turns, so that whatever else the machine does meets all alike; the first three turns are not
    counted. Mean IoU is `evaluate_segmenter`'s. A graph of fixed size is slid over the pictures, and so is PyTorch
    then.

    Args:
        model: the network that the graphs were exported from.
        graphs: name of the row -> `.onnx` file.
        processor: image processor of the network.
        dataset: labelled pictures, for mean IoU; without it none is measured.
        size: height and width of the picture timed, where there is neither a dataset, whose first picture is taken,
            nor a fixed size.
        repeats: turns counted.

    Raises:
        ValueError: a graph that gives label maps smaller than the picture, which cannot be scored.
    """
    segmenters = {name: OnnxSegmenter(path) for name, path in graphs.items()}
    model = model.cpu()
    fixed = next((one.facts["size"] for one in segmenters.values() if one.facts["size"]), None)
    picture = _picture(processor, dataset, size, fixed)
    runners = {"PyTorch": lambda: model(pixel_values=picture)}
    runners |= {name: _runner(one, picture.numpy()) for name, one in segmenters.items()}
    with evaluating(model), torch.no_grad():
        latencies = take_turns(runners, repeats)
    megabytes = {"PyTorch": sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6}
    megabytes |= {name: one.path.stat().st_size / 1e6 for name, one in segmenters.items()}
    settings = WHOLE_IMAGE if fixed is None else InferenceSettings(window=tuple(fixed))
    scores = _scores({"PyTorch": model, **segmenters}, dataset, processor, settings)
    return [
        RuntimeRow(
            name,
            megabytes[name],
            *(float(value) for value in (np.median(seconds), np.percentile(seconds, 95), np.median(processor))),
            scores.get(name),
            scores[name] - scores["PyTorch"] if scores else None,
        )
        for name, (seconds, processor) in latencies.items()
    ]


def take_turns(
    runners: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 3
) -> dict[str, tuple[list[float], list[float]]]:
    """Call each runner in turn, again and again.

    Returns:
        For each runner the seconds of its calls, by the clock and of processor time; the first `warmup` turns are not
        counted.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least one turn must be counted.")
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in runners}
    for turn in range(warmup + repeats):
        for name, run in runners.items():
            start, processor_start = perf_counter(), process_time()
            run()
            passed, processor = perf_counter() - start, process_time() - processor_start
            if turn >= warmup:
                found[name][0].append(passed)
                found[name][1].append(processor)
    return found


def format_runtimes(rows: Sequence[RuntimeRow]) -> str:
    """A table with a line per runtime."""
    lines = [f"{'runtime':<12}{'MB':>8}{'median ms':>12}{'p95 ms':>10}{'CPU ms':>10}{'mIoU %':>14}{'change':>9}"]
    for row in rows:
        measured = row.mean_iou is not None
        score = f"{100 * row.mean_iou:.2f}" if measured else "not measured"
        change = f"{round(100 * row.mean_iou_change, 2) + 0.0:+.2f}" if measured and row is not rows[0] else ""
        times = f"{1000 * row.latency_median:>12.1f}{1000 * row.latency_p95:>10.1f}{1000 * row.processor_median:>10.1f}"
        lines.append(f"{row.runtime:<12}{row.megabytes:>8.2f}{times}{score:>14}{change:>9}".rstrip())
    return "\n".join(lines)


def _runner(segmenter: OnnxSegmenter, inputs: np.ndarray) -> Callable[[], Any]:
    return lambda: segmenter.run(inputs)


def _picture(processor, dataset, size: tuple[int, int], fixed: Sequence[int] | None) -> Tensor:
    """`(1, 3, H, W)` of what is timed: of the dataset's first picture where there is one."""
    if dataset is not None and fixed is None:
        return make_sample(processor, dataset[0]["image"]).pixel_values[None].float()
    return torch.zeros(1, 3, *(fixed or size))


def _scores(models: Mapping[str, nn.Module], dataset, processor, settings: InferenceSettings) -> dict[str, float]:
    if dataset is None:
        return {}
    for one in models.values():
        if isinstance(one, OnnxSegmenter) and one.facts["output"] == "labels" and not one.facts["upsample"]:
            raise ValueError(
                f"{one.path} gives label maps smaller than the picture: export with --upsample to score it."
            )
    options = {"processor": processor, "settings": settings}
    return {name: evaluate_segmenter(one, dataset, **options)["mean_iou"] for name, one in models.items()}
