"""How the processes of a training tell each other, once a step, that one of them cannot go on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """Shares news between all ranks through the CPU, so that no accelerator has to wait for it.

    A rank that simply raised would leave the others waiting in their next collective operation, with nothing saved.

    Args:
        world_size: number of processes; with one, nothing is sent.
        seconds: how long to wait for the slowest rank.
    """

    def __init__(self, world_size: int, seconds: float):
        self.world_size = world_size
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds)) if world_size > 1 else None
        # kept: a tensor that only gloo's thread holds is freed there, which can abort a process that is about to end
        self._any_news, self._number = torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.float64)

    def number_of_first(self, number: float) -> float:
        """The first rank's number, on every rank; each has to call it, at the same points."""
        if self.world_size > 1:
            self._number.fill_(number)
            dist.broadcast(self._number, src=0, group=self._group)
            number = self._number.item()
        return number

    def news(self, item: Any | None) -> list[tuple[int, Any]]:
        """What the ranks have to tell, as (rank, item); empty where all gave None, which costs one tiny reduction.

        Call it on every rank, and at the same points.
        """
        if self.world_size == 1:
            return [] if item is None else [(0, item)]
        self._any_news.fill_(item is not None)
        dist.all_reduce(self._any_news, dist.ReduceOp.MAX, group=self._group)
        if not self._any_news.item():
            return []
        items: list[Any | None] = [None] * self.world_size
        dist.all_gather_object(items, item, group=self._group)
        return [(rank, given) for rank, given in enumerate(items) if given is not None]
