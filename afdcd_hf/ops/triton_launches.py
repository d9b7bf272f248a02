"""Launches of the Triton kernels of the contrastive terms, a bounded portion of the patches at a time.

Beside the gradient and one loss per anchor, the memory is that of one portion: three rearranged copies of its vectors
and its similarities, each of at most `PORTION_NUMBERS` float32 numbers, 256 MiB together.

Copies are worth their time: in a map, the vectors of a patch lie in runs of N numbers, and the inner loops would wait
for scattered reads of them. A copy reads each number once; the loops read it V times or more.

Every similarity and every number of the gradient is summed by one thread in one order, whatever the tile that tuning
finds fastest, the rows' tile is fixed, and nothing is added atomically: equal inputs give equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels

# Large enough to fill a GPU (256 patches at the defaults: 4096 tiles), small enough to stay near its cache. A patch
# whose vectors alone are more numbers than this (64x64 positions of more than 4096 channels) is taken as it is.
PORTION_NUMBERS = 2**24
MOST_PATCHES = 65535  # of one launch: CUDA's limit for the second dimension of a grid


@dataclass(frozen=True)
class Rule:
    """What is compared: τ, whether the distance is Euclidean, the size of groups that exclude each other or 0."""

    temperature: float
    squared: bool
    group_size: int


@dataclass(frozen=True)
class Cut:
    """How maps are cut in vectors, and how many of these are taken at a time."""

    patch_size: int
    patch_rows: int
    patch_columns: int
    patches: int
    vectors: int  # V = N²·M of a patch
    channels: int  # K = C/M of a vector
    padded_vectors: int  # sizes of the buffers, whole blocks
    padded_channels: int
    portion: int  # patches at a time
    anchors: int  # anchors of a patch at a time: all of them, unless V² alone is beyond a portion

    @property
    def positions(self) -> int:
        """B·H·W."""
        return self.patches * self.patch_size**2

    def map_arguments(self, feature_map: Tensor) -> tuple[int, ...]:
        """What the kernels need to find the vectors in a map."""
        return self.patch_rows, self.patch_columns, self.channels, *feature_map.stride()


def plan_cut(shape: torch.Size, patch_size: int, channel_groups: int) -> Cut:
    """Lay out the buffers for maps of a shape `(B, C, H, W)`."""
    batch, channels, height, width = shape
    rows, columns = height // patch_size, width // patch_size
    vectors, channels = patch_size**2 * channel_groups, channels // channel_groups
    padded_vectors, padded_channels = _padded(vectors), _padded(channels)
    anchors = min(padded_vectors, max(PORTION_NUMBERS // padded_vectors // 128, 1) * 128)
    most = PORTION_NUMBERS // (padded_vectors * max(anchors, padded_channels))
    patches = batch * rows * columns
    return Cut(
        patch_size=patch_size,
        patch_rows=rows,
        patch_columns=columns,
        patches=patches,
        vectors=vectors,
        channels=channels,
        padded_vectors=padded_vectors,
        padded_channels=padded_channels,
        portion=max(1, min(patches, most, MOST_PATCHES)),
        anchors=anchors,
    )


def anchor_losses(student: Tensor, teacher: Tensor, gradient: Tensor | None, cut: Cut, rule: Rule) -> Tensor:
    """Compute every anchor's loss and fill its gradient.

    Args:
        student: `(B, C, H, W)`, any strides.
        teacher: like `student`.
        gradient: None, or a float32 map like `student` that receives the derivative of the losses' sum divided by
            `cut.positions`.
        cut: for the shape of the maps.
        rule: what is compared.

    Returns:
        `(patches, padded_vectors)` float32, 0 for the padding.
    """

    def buffer(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device=student.device)

    vectors = (cut.portion, cut.padded_vectors, cut.padded_channels)
    anchors, candidates = buffer(*vectors), buffer(*vectors)
    # the gradient reads the teacher candidate by candidate, the comparison channel by channel: each has its own copy
    by_vector = candidates if gradient is None else buffer(*vectors)
    similarity = buffer(cut.portion, cut.padded_vectors, cut.anchors)
    losses = buffer(cut.patches, cut.padded_vectors)
    for first in range(0, cut.patches, cut.portion):
        part = _Part(cut, rule, first, min(cut.portion, cut.patches - first))
        part.cut_vectors(student, anchors, None)
        part.cut_vectors(teacher, candidates, None if gradient is None else by_vector)
        for first_anchor in range(0, cut.padded_vectors, cut.anchors):
            some = (first_anchor, min(cut.anchors, cut.padded_vectors - first_anchor))
            part.compare_vectors(anchors, candidates, similarity, some)
            part.weigh_rows(similarity, losses[first:], some, weights=gradient is not None)
            if gradient is not None:
                part.sum_gradient(anchors, by_vector, similarity, gradient, some)
    return losses


@dataclass(frozen=True)
class _Part:
    """The launches for one portion of the patches; `some` anchors are the first one's index and their number."""

    cut: Cut
    rule: Rule
    first: int
    patches: int

    def cut_vectors(self, feature_map: Tensor, by_channel: Tensor, by_vector: Tensor | None) -> None:
        sides = {"BLOCK_V": _side(self.cut.padded_vectors), "BLOCK_C": _side(self.cut.padded_channels)}
        tiles = self.cut.padded_vectors // sides["BLOCK_V"] * (self.cut.padded_channels // sides["BLOCK_C"])
        second, both = (by_channel, False) if by_vector is None else (by_vector, True)
        place = (self.first, self.cut.vectors, *self.cut.map_arguments(feature_map))
        kernel = triton_kernels.cut_vectors[(tiles, self.patches)]
        kernel(
            feature_map, by_channel, second, *place, **self._vector_sizes(), **self._patch_size(), BOTH=both, **sides
        )

    def compare_vectors(self, anchors: Tensor, candidates: Tensor, similarity: Tensor, some: tuple[int, int]) -> None:
        others = self.cut.padded_vectors
        kernel = _tuned("compare_vectors", "BLOCK_V", self.cut.padded_vectors, others)[
            self._tiles("BLOCK_V", others, some)
        ]
        numbers = (*some, self.cut.vectors, 1 / self.rule.temperature)
        rule = {"GROUP_SIZE": self.rule.group_size, "SQUARED": self.rule.squared}
        kernel(anchors, candidates, similarity, *numbers, **self._vector_sizes(), **rule)

    def weigh_rows(self, similarity: Tensor, losses: Tensor, some: tuple[int, int], weights: bool) -> None:
        vectors, temperature = self.cut.padded_vectors, self.rule.temperature
        sides = {"BLOCK_A": min(vectors, 32), "BLOCK_V": _side(vectors)}
        numbers = (*some, self.cut.vectors, temperature, 1 / (temperature * self.cut.positions))
        kernel = triton_kernels.weigh_rows[(some[1] // sides["BLOCK_A"], self.patches)]
        kernel(similarity, losses, *numbers, VECTORS=vectors, SQUARED=self.rule.squared, WEIGHTS=weights, **sides)

    def sum_gradient(
        self, anchors: Tensor, candidates: Tensor, weights: Tensor, gradient: Tensor, some: tuple[int, int]
    ) -> None:
        others = self.cut.padded_channels
        kernel = _tuned("sum_gradient", "BLOCK_C", self.cut.padded_vectors, others)[
            self._tiles("BLOCK_C", others, some)
        ]
        place = (self.first, *some, self.cut.vectors, *self.cut.map_arguments(gradient))
        rule = {"SQUARED": self.rule.squared}
        kernel(anchors, candidates, weights, gradient, *place, **self._vector_sizes(), **self._patch_size(), **rule)

    def _vector_sizes(self) -> dict[str, int]:
        return {"VECTORS": self.cut.padded_vectors, "CHANNELS": self.cut.padded_channels}

    def _patch_size(self) -> dict[str, int]:
        return {"PATCH_SIZE": self.cut.patch_size}

    def _tiles(self, other_block: str, others: int, some: tuple[int, int]) -> Any:
        return lambda meta: (some[1] // meta["BLOCK_A"] * (others // meta[other_block]), self.patches)


@cache
def _tuned(kernel: str, other_block: str, anchors: int, others: int) -> Any:
    """A kernel with a few tiles to choose from; its first call for a shape times them, some seconds at most."""
    tiles = tile_choices(anchors, others)
    if triton_kernels.INTERPRETED:  # nothing to measure
        tiles = tiles[:1]
    configs = [
        triton.Config({"BLOCK_A": block, other_block: other, "UNROLL": unroll}, num_warps=warps)
        for block, other, warps, unroll in tiles
    ]
    tune = triton.autotune(configs=configs, key=["VECTORS", "CHANNELS", "SQUARED"])
    return tune(getattr(triton_kernels, kernel))


def tile_choices(anchors: int, others: int) -> list[tuple[int, int, int, int]]:
    """At most three (anchors, others, warps, unrolling) that divide padded sizes, the likely best first.

    Both sides stay below the number of threads: only then does every thread load what it needs itself, without
    exchanges through shared memory at each step of the loop.
    """
    sides = _side(anchors), _side(others)
    warps = {16: 1, 32: 2, 64: 4}[max(sides)]
    tiles = [(*sides, warps, 4), (*sides, warps, 8)]
    if anchors % 128 == 0 and others % 128 == 0:
        tiles.append((128, 128, 8, 4))
    return tiles


def _padded(size: int) -> int:
    """The size rounded up to 16, 32 or a multiple of 64."""
    return next((block for block in (16, 32) if size <= block), -(-size // 64) * 64)


def _side(padded: int) -> int:
    return min(padded, 64)
