"""How much memory tensors take at most, by PyTorch's own allocators: the same quantity on a CPU and on a GPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; what is shared counts once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def peak_allocated(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that tensors took at most during one call, beyond what was there before it; None on unknown devices.

    On a GPU from the caching allocator's own count. On a CPU the allocator keeps none, so that the call runs under
    PyTorch's profiler, which notes every tensor and workspace that is taken and given back.

    Args:
        run: what to measure; its input has to be made inside to be counted.
        device: where it works: "cpu" or "cuda".
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_on_cpu(run) if device.type == "cpu" else None


def _peak_on_cpu(run: Callable[[], Any]) -> int:
    # read when the profiler first runs: without it, that reports its own start and end, and a missing GPU as an error
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as noted:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        noted.export_chrome_trace(str(trace))  # the one public form in which single allocations come out
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    return max(accumulate(size for _, size in sorted(changes)), default=0)
