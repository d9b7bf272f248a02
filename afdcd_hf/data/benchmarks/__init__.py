"""The table of benchmarks: one file each with classes, colours, splits, terms, and where its files lie."""

from __future__ import annotations

from difflib import get_close_matches

from .ade20k import ADE20K
from .camvid import CAMVID
from .cityscapes import CITYSCAPES
from .coco_stuff import COCO_STUFF, COCO_STUFF_182
from .row import Benchmark, SplitFiles, Submission
from .scenes import SCENES
from .voc import VOC

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark for benchmark in (SCENES, CAMVID, CITYSCAPES, VOC, ADE20K, COCO_STUFF, COCO_STUFF_182)
}

__all__ = ["BENCHMARKS", "Benchmark", "SplitFiles", "Submission", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The row of a benchmark.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in BENCHMARKS:
        started = [known for known in BENCHMARKS if name and known.startswith(name.lower())]
        close = started or get_close_matches(name.lower(), BENCHMARKS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ValueError(f"Unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}{hint}")
    return BENCHMARKS[name]
