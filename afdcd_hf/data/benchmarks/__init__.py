"""The table of benchmarks: a YAML file each with classes, colours, splits, terms, and where its files lie.

A new benchmark is a new file here; `row.py` says what its keys mean.
"""

from __future__ import annotations

from pathlib import Path

from ...messages import chosen
from .finding import SplitFiles, find_files
from .row import Benchmark, Layout, Submission, read_benchmark

BENCHMARKS: dict[str, Benchmark] = {
    path.stem: read_benchmark(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))
}

__all__ = ["BENCHMARKS", "Benchmark", "Layout", "SplitFiles", "Submission", "find_files", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The row of a benchmark; a ValueError lists the known ones if there is none of that name."""
    return chosen(BENCHMARKS, name, "benchmark")
