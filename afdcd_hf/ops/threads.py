"""One thread per portion of the work, instead of all threads in every operation.

Operations on blocks that fit in a cache last some 50 µs. PyTorch's own parallelism divides and joins its threads in
each of them, which costs much of that, and many times more when another program holds one of the cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def map_in_threads(function: Callable[[Item], Any], items: Iterable[Item]) -> list:
    """`[function(item) for item in items]`, without gradients, on as many threads as PyTorch may use.

    Args:
        function: called with one item; inside it PyTorch's operations run on one thread.
        items: any number.

    Returns:
        The results in the order of the items.
    """
    items = list(items)
    number = torch.get_num_threads()
    with torch.no_grad():
        if number == 1 or len(items) < 2:
            return [function(item) for item in items]
    return list(_pool(number, os.getpid()).map(torch.no_grad()(function), items))  # the setting is each thread's own


@cache
def _pool(number: int, process: int) -> ThreadPoolExecutor:
    """Threads that stay; a forked process has none of its parent's, hence `process`."""
    pool = ThreadPoolExecutor(number, "afdcd-contrast", initializer=_use_one_thread)
    # the executor starts a thread per task only while none is idle: start all, each waiting for the others
    meeting = Barrier(number)
    list(pool.map(lambda _: meeting.wait(), range(number)))
    torch.set_num_threads(number)  # for threads to come, which take over the last number set by any
    return pool


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread adopts the last number set by any, and keeps it, when it first needs to know
