"""What a step changes before the optimizer runs, kept so that it can be taken back."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn

from ..losses.queues import queue_names


class LastStep:
    """Buffers (batch-norm statistics) and random states as the last finished step left them.

    A forward pass that ends in NaN has already spoilt the batch-norm statistics, while weights and optimizer are still
    those of the last good step. The copies are renewed after every step: a few dozen small tensors, on their device,
    without waiting for it. A loss's queues are large and left as they are: see `ClassQueues` on why that is enough.

    Args:
        module: whose buffers are kept.
        generators: further random generators that a step draws from.
    """

    def __init__(self, module: nn.Module, generators: list[torch.Generator]):
        self._module = module
        self._generators = generators
        self._left_out = set(queue_names(module))
        self._copies = [buffer.clone() for buffer in self._buffers()]

    @torch.no_grad()
    def keep(self) -> None:
        """Take the present state for the last good one."""
        _copy(self._copies, self._buffers())
        self._states = [generator.get_state() for generator in self._generators]
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the state that was kept last."""
        _copy(self._buffers(), self._copies)
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)

    def _buffers(self) -> list[Tensor]:
        return [buffer for name, buffer in self._module.named_buffers() if name not in self._left_out]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """One kernel per type, where a loop would launch one per tensor."""
    for dtype in {tensor.dtype for tensor in targets}:
        chosen = [(target, source) for target, source in zip(targets, sources, strict=True) if target.dtype == dtype]
        torch._foreach_copy_(*map(list, zip(*chosen, strict=True)))
