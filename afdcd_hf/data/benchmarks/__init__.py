"""The table of benchmarks: a YAML file each with classes, colours, splits, terms, and where its files lie.

A new benchmark is a new file here; `row.py` says what its keys mean.
"""

from __future__ import annotations

from pathlib import Path

from ...messages import close_names
from .finding import SplitFiles, find_files
from .row import Benchmark, Layout, Submission, read_benchmark

BENCHMARKS: dict[str, Benchmark] = {
    path.stem: read_benchmark(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))
}

__all__ = ["BENCHMARKS", "Benchmark", "Layout", "SplitFiles", "Submission", "find_files", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The row of a benchmark; ValueError if there is none of that name."""
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise ValueError(f"Unknown benchmark {name!r}; known are {known}.{close_names(name.lower(), BENCHMARKS)}")
    return BENCHMARKS[name]
