"""Speed and memory of the segmentation metric beside `evaluate`'s usual way and plain numpy, on maps of 1024x2048.

    OMP_NUM_THREADS=1 python scripts/benchmark_metric.py --maps 500 --collected-maps 50 --output table.md

The two streaming ways get more maps than those that keep all of them. Only the metric's calls are timed, not the making
of the maps. `mean_iou` itself is downloaded by `evaluate`; as this runs offline, its place is taken by a metric that
stores maps as it does and sums histograms of each image when it computes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path

import datasets
import evaluate
import numpy as np
import psutil
import pyarrow
import torch
from torch.nn import functional as F

from afdcd_hf import StreamingMeanIoU
from afdcd_hf.evaluation.results import library_versions, machine_name
from afdcd_hf.metrics.streaming_mean_iou.streaming_mean_iou import StreamingMeanIoUMetric

NUM_LABELS, IGNORED, SIZE = 19, 255, (1024, 2048)
MEGABYTE = 2**20


# The maps


def region_maps(count: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of predicted and true `(1024, 2048)` uint8 maps: smooth regions, other borders in each, 2 % noise."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for _ in range(count):
        scores = torch.randn(1, NUM_LABELS, 9, 17, generator=generator)
        truth = _regions(scores)
        predicted = _regions(scores + 0.3 * torch.randn(scores.shape, generator=generator))
        noisy = torch.rand(SIZE, generator=generator) < 0.02
        predicted[noisy] = torch.randint(NUM_LABELS, (int(noisy.sum()),), generator=generator, dtype=torch.uint8)
        truth[-64:] = IGNORED  # as the bonnet in Cityscapes
        pairs.append((predicted.numpy(), truth.numpy()))
    return pairs


def _regions(scores: torch.Tensor) -> torch.Tensor:
    coarse = F.interpolate(scores, (SIZE[0] // 4, SIZE[1] // 4), mode="bicubic").argmax(1).to(torch.uint8)
    return coarse[0].repeat_interleave(4, 0).repeat_interleave(4, 1)


def stream(pairs: list[tuple[np.ndarray, np.ndarray]], count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`count` pairs of fresh arrays: the given ones over and over, each time shifted sideways."""
    for index in range(count):
        predicted, truth = pairs[index % len(pairs)]
        yield np.roll(predicted, 13 * index, 1), np.roll(truth, 13 * index, 1)


# The contestants: (add one map, compute the mean IoU)

Calls = tuple[Callable[[np.ndarray, np.ndarray], object], Callable[[], float]]


def streaming(cache_dir: str) -> Calls:
    """Our class, on the CPU."""
    metric = StreamingMeanIoU(NUM_LABELS, IGNORED)
    return metric.update, lambda: metric.compute()["mean_iou"]


def streaming_module(cache_dir: str) -> Calls:
    """Our module for `evaluate`."""
    metric = StreamingMeanIoUMetric(num_labels=NUM_LABELS, ignore_index=IGNORED, cache_dir=cache_dir)
    return _batches_of_one(metric), lambda: metric.compute()["mean_iou"]


def collected_in_arrow(cache_dir: str) -> Calls:
    """`evaluate`'s usual way."""
    metric = CollectedMeanIoU(cache_dir=cache_dir)
    return _batches_of_one(metric), lambda: metric.compute()["mean_iou"]


def collected_in_a_list(cache_dir: str) -> Calls:
    """All maps in a list, then one `np.bincount` per image."""
    maps: list[tuple[np.ndarray, np.ndarray]] = []

    def compute() -> float:
        matrix = np.zeros(NUM_LABELS**2, np.int64)
        for predicted, truth in maps:
            counted = truth != IGNORED
            cells = NUM_LABELS * truth[counted].astype(np.int64) + predicted[counted]
            matrix += np.bincount(cells, minlength=NUM_LABELS**2)
        matrix = matrix.reshape(NUM_LABELS, NUM_LABELS)
        hits = matrix.diagonal()
        return float(np.nanmean(hits / (matrix.sum(0) + matrix.sum(1) - hits)))

    return lambda predicted, truth: maps.append((predicted, truth)), compute


class CollectedMeanIoU(evaluate.Metric):
    """Stands in for `mean_iou`: keeps every map until `compute`, which takes histograms image by image."""

    def _info(self) -> evaluate.MetricInfo:
        label_map = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        features = datasets.Features({"predictions": label_map, "references": label_map})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        areas = np.zeros((3, NUM_LABELS))
        for predicted, truth in zip(predictions, references, strict=True):
            predicted, truth = np.array(predicted), np.array(truth)
            predicted, truth = predicted[truth != IGNORED], truth[truth != IGNORED]
            for row, values in enumerate((predicted[predicted == truth], predicted, truth)):
                areas[row] += np.histogram(values, bins=NUM_LABELS, range=(0, NUM_LABELS - 1))[0]
        both, predicted, truth = areas
        return {"mean_iou": float(np.nanmean(both / (predicted + truth - both)))}


def _batches_of_one(metric: evaluate.Metric) -> Callable[[np.ndarray, np.ndarray], None]:
    return lambda predicted, truth: metric.add_batch(predictions=predicted[None], references=truth[None])


@dataclass
class Way:
    """One way to score maps, and what was measured of it."""

    title: str
    make: Callable[[str], Calls]
    maps: int
    seconds: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)  # MB above the start, after 0, 10, ..., 100 % of the maps
    peaks: list[float] = field(default_factory=list)  # MB above the start, over adding and computing
    early_peaks: list[float] = field(default_factory=list)  # the same after 10 % of the maps
    disk: float = 0.0  # MB
    mean_iou: float = float("nan")

    @property
    def speed(self) -> float:
        """Images a second, the median over rounds."""
        return self.maps / statistics.median(self.seconds)

    @property
    def growth(self) -> float:
        """MB a map: from the peak while the first tenth was added, with every buffer there, to that of all; median."""
        grown = [peak - early for peak, early in zip(self.peaks, self.early_peaks, strict=True)]
        return statistics.median(grown) / (0.9 * self.maps)

    def add_round(self, pairs: list[tuple[np.ndarray, np.ndarray]], measured: bool = True) -> None:
        """Score all maps once; a warm-up, which is not measured, scores two."""
        count = self.maps if measured else 2
        with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
            add, compute = self.make(folder)
            seconds, early_peak, samples = 0.0, 0.0, [memory.now()]
            for index, (predicted, truth) in enumerate(stream(pairs, count), start=1):
                seconds += _timed(add, predicted, truth)[0]
                if index * 10 // count > (index - 1) * 10 // count:
                    samples.append(memory.now())
                    early_peak = memory.peak if len(samples) == 2 else early_peak
            disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / MEGABYTE
            last, mean_iou = _timed(compute)
        if measured:
            self.seconds.append(seconds + last)
            self.samples, self.disk, self.mean_iou = samples, disk, mean_iou
            self.peaks.append(memory.peak)
            self.early_peaks.append(early_peak)


def _timed(call: Callable, *arguments: np.ndarray) -> tuple[float, float]:
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


class PeakMemory:
    """Looks every 20 ms how much resident memory there is beyond that at the start, in MB."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._start = self._process.memory_info().rss
        self.peak = 0.0
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def now(self) -> float:
        """MB above the start."""
        return (self._process.memory_info().rss - self._start) / MEGABYTE

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self.now())


# The report


def report(ways: list[Way], rounds: int, difference: float) -> str:
    """Markdown: a table, and what it was measured with."""
    usual = next(way for way in ways if way.make is collected_in_arrow)
    lines = [
        "| way | maps | images/s | speed to `evaluate`'s | peak memory | growth per map | disk per map |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in ways:
        spread = f"{way.maps / max(way.seconds):.1f} to {way.maps / min(way.seconds):.1f}"
        lines.append(
            f"| {way.title} | {way.maps} | {way.speed:.1f} ({spread}) | {way.speed / usual.speed:.1f} | "
            f"+{max(way.peaks):.0f} MB | {way.growth:.2f} MB | {way.disk / way.maps:.2f} MB |"
        )
    lines += ["", "Resident memory above the start (MB) after 0, 10, ..., 100 % of the maps, last round:", ""]
    lines += [f"- {way.title}: {', '.join(f'{sample:.0f}' for sample in way.samples)}" for way in ways]
    libraries = ("numpy", "evaluate", "pyarrow")
    versions = {**library_versions(), **{name: version(name) for name in libraries}}
    lines += [
        "",
        f"Median (slowest to fastest) of {rounds} rounds in which the ways take turns, after a warm-up; maps of "
        f"{SIZE[0]}x{SIZE[1]} pixels, {NUM_LABELS} classes, uint8; one thread. Peak memory is the highest resident "
        "memory above that at the start of a round; growth is that of the peak after the first 10 % of the maps.",
        f"Largest difference of mean IoU between the ways, on the same maps: {difference:.1e}.",
        f"{date.today().isoformat()}, {processor_name()}, Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]
    return "\n".join(lines)


def processor_name() -> str:
    """The processor's own name where Linux tells it."""
    known = Path("/proc/cpuinfo")
    for line in known.read_text().splitlines() if known.is_file() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return machine_name()


def largest_difference(ways: list[Way], pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of each way's mean IoU from that of our class on as many maps."""
    expected = {}
    for count in {way.maps for way in ways}:
        metric = StreamingMeanIoU(NUM_LABELS, IGNORED)
        for predicted, truth in stream(pairs, count):
            metric.update(predicted, truth)
        expected[count] = metric.compute()["mean_iou"]
    return max(abs(way.mean_iou - expected[way.maps]) for way in ways)


def main() -> None:
    """Parse the command line, run all ways, print and perhaps write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=500, help="maps for the streaming ways")
    parser.add_argument("--collected-maps", type=int, default=50, help="maps for the ways that keep all of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file to write as well")
    args = parser.parse_args()
    if args.output and args.output.exists():
        parser.error(f"{args.output} exists; remove it or choose another --output.")
    torch.set_num_threads(1)
    pyarrow.set_cpu_count(1)
    pairs = region_maps(6)
    ways = [
        Way("`StreamingMeanIoU`", streaming, args.maps),
        Way("`evaluate.load(streaming_mean_iou_path())`", streaming_module, args.maps),
        Way("all maps in a list, `np.bincount`", collected_in_a_list, args.collected_maps),
        Way("`evaluate`: maps in Arrow, `np.histogram`", collected_in_arrow, args.collected_maps),
    ]
    for way in ways:
        way.add_round(pairs, measured=False)
    for _ in range(args.rounds):
        for way in ways:
            way.add_round(pairs)
    table = report(ways, args.rounds, largest_difference(ways, pairs))
    print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(table + "\n")


if __name__ == "__main__":
    main()
