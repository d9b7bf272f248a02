"""Time and memory of two versions of a computation, and the machine's matrix-product rate."""

from __future__ import annotations

import ctypes
import gc
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

MEGABYTE = 2**20
OURS, RELEASED = "ours", "released"


class Clock:
    """A clock: wall-clock time on a GPU, after synchronising it; CPU time otherwise.

    CPU time is summed over threads and excludes other processes.
    """

    def __init__(self, device: torch.device):
        self.device = device

    def now(self) -> float:
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], object]) -> float:
        start = self.now()
        call()
        return self.now() - start


class PeakMemory:
    """Peak memory between `start` and `stop`, in MiB above the memory at the start.

    On a GPU from PyTorch's allocator. Elsewhere it is the process's resident memory on Linux, whose peak is reset
    through /proc/self/clear_refs after free memory has been returned to the system.
    """

    def __init__(self, device: torch.device):
        self.device, self.before = device, 0.0

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device) / MEGABYTE
            return
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self.before = _resident("VmRSS")

    def stop(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MEGABYTE - self.before
        return _resident("VmHWM") - self.before


def _resident(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) / 1024


def compare(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, dict]:
    """Measure each call's median, fastest and slowest seconds, and its peak extra memory.

    The calls alternate, in reverse order every second round. They must have run before, since there is no warm-up.
    """
    clock, memory = Clock(device), PeakMemory(device)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(repeats):
        for name in list(calls)[:: 1 if round_number % 2 else -1]:
            seconds[name].append(clock.seconds(calls[name]))
    result = {name: spread(seconds[name]) for name in calls}
    for name, call in calls.items():
        memory.start()
        call()
        result[name]["memory_mib"] = memory.stop()
    return result


def spread(seconds: list[float]) -> dict[str, float]:
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}


def largest_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the maximum over all tensors of the difference's norm divided by the expected tensor's norm."""
    pairs = zip(actual, expected, strict=True)
    return max(((one.double() - other.double()).norm() / other.double().norm()).item() for one, other in pairs)


def check_equal(name: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise RuntimeError(f"{name}: the results differ by {difference:.1e} (tolerance {tolerance}); not timed.")


def matmul_rate(device: torch.device, dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Measure the GFLOP/s of a product of two square matrices."""
    first, second = torch.randn(2, size, size, device=device, dtype=dtype)
    clock = Clock(device)
    return 2 * size**3 / 1e9 / min(clock.seconds(lambda: torch.mm(first, second)) for _ in range(6))


def commit() -> str:
    """Return the working tree's commit, with a note if files differ from it; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True).stdout

    try:
        head = git("rev-parse", "--short", "HEAD").strip() or "unknown"
        return head + (" with changes" if git("status", "--porcelain", "-uno").strip() else "")
    except FileNotFoundError:
        return "unknown"
