"""The contrastive terms on a GPU by the kernels of `triton_kernels.py`, a bounded portion of the patches at a time.

Beside the gradient and one loss per anchor, the memory is that of one portion: three rearranged copies of its vectors
and its similarities, each of at most `PORTION_NUMBERS` float32 numbers, 256 MiB together. Copies are worth their time:
in a map, the vectors of a patch lie in runs of N numbers, and the inner loops would wait for scattered reads of them.
A copy reads each number once; the loops read it V times or more.

Every similarity and every number of the gradient is summed by one thread in one order, whatever the tile that tuning
finds fastest, the rows' tile is fixed, and nothing is added atomically: equal inputs give equal bits.

Importing this file needs no Triton; running it does.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .contrast_reference import Settings

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Large enough to fill a GPU (256 patches at the defaults: 4096 tiles), small enough to stay near its cache. A patch
# whose vectors alone are more numbers than this (64x64 positions of more than 4096 channels) is taken as it is.
PORTION_NUMBERS = 2**24
MOST_PATCHES = 65535  # of one launch: CUDA's limit for the second dimension of a grid


def triton_unavailable(student: Tensor, teacher: Tensor) -> str | None:
    """None if `contrast_triton` can run for these maps, else the reason in words."""
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    for dtype in (student.dtype, teacher.dtype):
        if dtype not in DTYPES:
            return f"its arithmetic is float32, and maps of {dtype} would lose digits"
    if student.device.type == "cuda":
        capability = torch.cuda.get_device_capability(student.device)
        if torch.version.hip is None and capability < (8, 0):
            return f"the GPU has compute capability {capability[0]}.{capability[1]}, and Triton needs 8.0"
    elif not _interpreted():
        return f"the maps are on the device {student.device.type!r}, and Triton needs a CUDA GPU"
    return None


def contrast_triton(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    """Return what `contrast_reference` returns, in float32, and fill the student's gradient.

    Args:
        student: as in `contrast_reference`, like teacher and settings; but each map may be of float32, bfloat16 or
            float16, which is converted exactly.
        gradient: None, or a float32 map like `student` that receives the derivative of the loss.
    """
    patch_size, channel_groups, temperature, distance, negatives = settings
    cut = plan_cut(student.shape, patch_size, channel_groups)
    group_size = patch_size**2 if negatives == "other_groups" else 0  # vectors that exclude each other
    # Triton launches on the current GPU, which need not be the tensor's
    with torch.cuda.device(student.device) if student.device.type == "cuda" else nullcontext():
        losses = _anchor_losses(student, teacher, gradient, cut, temperature, distance == "l2", group_size)
        return losses.sum() / cut.positions


class Cut(NamedTuple):
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


def plan_cut(shape: torch.Size, patch_size: int, channel_groups: int) -> Cut:
    """Lay out the buffers for maps of a shape `(B, C, H, W)`."""
    batch, channels, height, width = shape
    rows, columns = height // patch_size, width // patch_size
    vectors, channels = patch_size**2 * channel_groups, channels // channel_groups
    padded_vectors, padded_channels = _padded(vectors), _padded(channels)
    anchors = min(padded_vectors, max(PORTION_NUMBERS // padded_vectors // 128, 1) * 128)
    most = PORTION_NUMBERS // (padded_vectors * max(anchors, padded_channels))
    patches = batch * rows * columns
    portion = max(1, min(patches, most, MOST_PATCHES))
    sizes = vectors, channels, padded_vectors, padded_channels
    return Cut(patch_size, rows, columns, patches, *sizes, portion, anchors)


def _anchor_losses(
    student: Tensor,
    teacher: Tensor,
    gradient: Tensor | None,
    cut: Cut,
    temperature: float,
    squared: bool,
    group_size: int,
) -> Tensor:
    """Every anchor's loss, `(patches, padded_vectors)` float32, 0 for the padding; fills the gradient."""
    from . import triton_kernels as kernels

    def buffer(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device=student.device)

    def place(feature_map: Tensor) -> tuple[int, ...]:
        return cut.patch_rows, cut.patch_columns, cut.channels, *feature_map.stride()

    def tiles(other_block: str, others: int) -> Any:
        return lambda meta: (some // meta["BLOCK_A"] * (others // meta[other_block]), patches)

    block_v, block_c = _side(cut.padded_vectors), _side(cut.padded_channels)
    padded = {"VECTORS": cut.padded_vectors, "CHANNELS": cut.padded_channels}
    compare = _tuned("compare_vectors", "BLOCK_V", cut.padded_vectors, cut.padded_vectors)
    sum_gradient = _tuned("sum_gradient", "BLOCK_C", cut.padded_vectors, cut.padded_channels)

    vectors = (cut.portion, cut.padded_vectors, cut.padded_channels)
    anchors, candidates = buffer(*vectors), buffer(*vectors)
    # the gradient reads the teacher candidate by candidate, the comparison channel by channel: each has its own copy
    by_vector = candidates if gradient is None else buffer(*vectors)
    similarity = buffer(cut.portion, cut.padded_vectors, cut.anchors)
    losses = buffer(cut.patches, cut.padded_vectors)
    for first in range(0, cut.patches, cut.portion):
        patches = min(cut.portion, cut.patches - first)
        for feature_map, by_channel, second in ((student, anchors, anchors), (teacher, candidates, by_vector)):
            kernels.cut_vectors[cut.padded_vectors // block_v * (cut.padded_channels // block_c), patches](
                feature_map, by_channel, second, first, cut.vectors, *place(feature_map), **padded,
                PATCH_SIZE=cut.patch_size, BOTH=second is not by_channel, BLOCK_V=block_v, BLOCK_C=block_c,
            )  # fmt: skip
        for start in range(0, cut.padded_vectors, cut.anchors):
            some = min(cut.anchors, cut.padded_vectors - start)
            compare[tiles("BLOCK_V", cut.padded_vectors)](
                anchors, candidates, similarity, start, some, cut.vectors, 1 / temperature, **padded,
                GROUP_SIZE=group_size, SQUARED=squared,
            )  # fmt: skip
            block_a = min(cut.padded_vectors, 32)
            kernels.weigh_rows[some // block_a, patches](
                similarity, losses[first:], start, some, cut.vectors, temperature, 1 / (temperature * cut.positions),
                VECTORS=cut.padded_vectors, SQUARED=squared, WEIGHTS=gradient is not None,
                BLOCK_A=block_a, BLOCK_V=block_v,
            )  # fmt: skip
            if gradient is not None:
                sum_gradient[tiles("BLOCK_C", cut.padded_channels)](
                    anchors, by_vector, similarity, gradient, first, start, some, cut.vectors, *place(gradient),
                    **padded, PATCH_SIZE=cut.patch_size, SQUARED=squared,
                )  # fmt: skip
    return losses


@cache
def _tuned(kernel: str, other_block: str, anchors: int, others: int) -> Any:
    """A kernel with a few tiles to choose from; its first call for a shape times them, some seconds at most."""
    import triton

    from . import triton_kernels

    tiles = tile_choices(anchors, others)
    configs = [
        triton.Config({"BLOCK_A": block, other_block: other, "UNROLL": unroll}, num_warps=warps)
        for block, other, warps, unroll in (tiles[:1] if triton_kernels.INTERPRETED else tiles)  # nothing to measure
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


def _interpreted() -> bool:
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "yes", "on", "y"):
        return False
    from . import triton_kernels

    return triton_kernels.INTERPRETED
