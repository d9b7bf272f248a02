"""The table of benchmarks: one YAML file each, with classes, colours, splits, licence and file layout.

To add a benchmark, add a file here; `row.py` documents its keys.
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
    """Return a benchmark by name; for an unknown name, a ValueError lists the known ones."""
    return chosen(BENCHMARKS, name, "benchmark")
