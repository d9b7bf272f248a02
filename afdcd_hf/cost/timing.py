"""Times of a function that is called again and again."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import torch

# A measurement that its time limit cuts short still has this many calls.
FEWEST_CALLS = 3


class Timing(NamedTuple):
    """Seconds of each call that counts, and the number of calls before them that do not."""

    seconds: list[float]
    warmup: int


def time_calls(
    run: Callable[[], Any], device: torch.device, *, warmup: int, repeats: int, max_seconds: float
) -> Timing:
    """Calls `run` to warm up, then to measure, one call at a time.

    Before and after each call everything the device still has to do is waited for, so that a call's time is all of it.

    Args:
        run: What to measure.
        device: Where it works.
        warmup: Calls that do not count, at least 1: the first one chooses kernels, takes memory, and may compile.
        repeats: Calls that count.
        max_seconds: No further call starts after so many seconds, to which warming up adds a quarter; yet at least
            three calls count (or `repeats`, if fewer). The first call, where compiling happens, is outside the limit.

    Returns:
        As many times as there was time for.
    """
    _call(run, device)
    warm = _calls(run, device, most=warmup - 1, fewest=0, max_seconds=max_seconds / 4)
    return Timing(_calls(run, device, most=repeats, fewest=FEWEST_CALLS, max_seconds=max_seconds), len(warm) + 1)


def _calls(run: Callable[[], Any], device: torch.device, *, most: int, fewest: int, max_seconds: float) -> list[float]:
    seconds: list[float] = []
    while len(seconds) < most and (len(seconds) < fewest or sum(seconds) < max_seconds):
        seconds.append(_call(run, device))
    return seconds


def _call(run: Callable[[], Any], device: torch.device) -> float:
    _wait_for(device)
    start = perf_counter()
    run()
    _wait_for(device)
    return perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
