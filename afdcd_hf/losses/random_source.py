"""Random numbers from a generator of one's own, also in code that torch.compile has traced.

torch.compile cannot take a `torch.Generator` into a graph (measured with torch 2.15: one graph break a draw). It can
take a number, and a custom operator that finds the generator by that number when the graph runs.
"""

from __future__ import annotations

import itertools
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_NUMBERS = itertools.count()
_SOURCES: WeakValueDictionary[int, RandomSource] = WeakValueDictionary()


class RandomSource:
    """A generator, on the device where numbers are drawn, and the number that stands for it in compiled code."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.number = generator, next(_NUMBERS)
        _SOURCES[self.number] = self

    def __reduce__(self) -> tuple:
        return RandomSource, (self.generator,)  # a copied generator needs a number of its own


def uniform(like: Tensor, source: RandomSource | None) -> Tensor:
    """Numbers in [0, 1), float32, of the shape and device of `like`; the same ones compiled or not."""
    if source is None:
        return torch.rand(like.shape, device=like.device)
    return torch.ops.afdcd.uniform(like.detach(), source.number)


# marked as random, so that compilers neither merge two draws nor repeat one in the backward pass
TAGS = (torch.Tag.nondeterministic_seeded,)
# custom_op takes no tags in older versions of torch
torch.library.define("afdcd::uniform", "(Tensor like, SymInt number) -> Tensor", tags=TAGS)


@torch.library.impl("afdcd::uniform", "default")
def _uniform(like: Tensor, number: int) -> Tensor:
    return torch.rand(like.shape, device=like.device, generator=_SOURCES[number].generator, dtype=torch.float32)


@torch.library.register_fake("afdcd::uniform")
def _(like: Tensor, number: int) -> Tensor:
    return torch.empty(like.shape, device=like.device, dtype=torch.float32)
