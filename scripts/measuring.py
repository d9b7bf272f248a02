"""Time and memory of two ways to compute the same, and what the machine can do at best."""

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
MASK_RATIO, SEED = 0.75, 0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Clock:
    """Wall-clock seconds; on a GPU with everything that was started before it finished."""

    def __init__(self, device: torch.device):
        self.device = device

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Callable[[], object]) -> float:
        start = self.now()
        call()
        return self.now() - start


class PeakMemory:
    """Highest memory between `start` and `stop`, above that at the start, in MiB.

    On a GPU as PyTorch's allocator counts it. Elsewhere the resident memory of the process, as Linux counts it (its
    mark is reset through /proc/self/clear_refs); before, memory that is free but not yet given back is returned.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.before = 0.0

    def start(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
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
    """Median, fastest and slowest seconds of each call, and its peak extra memory.

    The calls take turns, and every second round in the other order. They have run before, so nothing is warm-up.
    """
    clock, seconds = Clock(device), {name: [] for name in calls}
    for round_number in range(repeats):
        for name in list(calls)[:: 1 if round_number % 2 else -1]:
            seconds[name].append(clock.seconds(calls[name]))
    return {name: {**spread(seconds[name]), "memory_mib": _peak(call, device)} for name, call in calls.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    return {"seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds)}


def _peak(call: Callable[[], object], device: torch.device) -> float:
    memory, peaks = PeakMemory(device), []
    for _ in range(2):
        memory.start()
        call()
        peaks.append(memory.stop())
    return max(peaks)


def largest_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Over all tensors: the norm of the difference over the norm of what is expected."""
    pairs = zip(actual, expected, strict=True)
    return max(((one.double() - other.double()).norm() / other.double().norm()).item() for one, other in pairs)


def check_equal(name: str, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:
        raise RuntimeError(f"{name}: the ways differ by {difference:.1e} (tolerance {tolerance}); nothing to compare.")


def rates(device: torch.device) -> dict[str, float]:
    """What this machine reached just now in float32: a matrix product of 2048, and a copy of 256 MiB."""
    clock, size = Clock(device), 2048
    first, second = torch.randn(2, size, size, device=device)
    product = torch.empty_like(first)
    source = torch.randn(64 * MEGABYTE, device=device)
    target = torch.empty_like(source).zero_()
    calls = {"gflop_per_s": lambda: torch.mm(first, second, out=product), "gbyte_per_s": lambda: target.copy_(source)}
    work = {"gflop_per_s": 2 * size**3 / 1e9, "gbyte_per_s": 8 * source.numel() / 1e9}
    return {name: work[name] / min(clock.seconds(call) for _ in range(6)) for name, call in calls.items()}


def commit() -> str:
    """Of the working tree, with a mark where files differ from it; "unknown" outside of git."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=folder, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
