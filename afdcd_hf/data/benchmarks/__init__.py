"""The table of benchmarks: one file each with classes, colours, splits, terms, and where its files lie."""

from __future__ import annotations

from .camvid import CAMVID
from .row import Benchmark, SplitFiles
from .scenes import SCENES

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (SCENES, CAMVID)}

__all__ = ["BENCHMARKS", "Benchmark", "SplitFiles", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The row of a benchmark.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"Unknown benchmark {name!r}; known are {', '.join(sorted(BENCHMARKS))}.")
    return BENCHMARKS[name]
