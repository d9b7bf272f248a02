"""The contrastive terms on a GPU by the kernels of `triton_kernels.py`, a bounded portion of the patches at a time.

A portion's vectors are copied, rearranged (three copies with its similarities are 256 MiB at most): in a map they lie
in runs of N numbers, and the inner loops, which read each number V times or more, would wait for scattered reads.

Every similarity and every number of the gradient is summed by one thread in one order, whatever the tile that tuning
finds fastest, the rows' tile is fixed, and nothing is added atomically: equal inputs give equal bits.

Importing this file needs no Triton; running it does.
"""

from __future__ import annotations

import os
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
    positions: int  # B·H·W


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
    return Cut(patch_size, rows, columns, patches, *sizes, portion, anchors, patches * patch_size**2)


def contrast_triton(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    """What `contrast_torch` does, in float32; maps of bfloat16 and float16 are converted exactly."""
    with torch.cuda.device_of(student):  # Triton launches on the current GPU, which need not be the tensor's
        return _contrast(student, teacher, gradient, settings)


def _contrast(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    from . import triton_kernels as kernels

    cut, temperature, squared = plan_cut(student.shape, *settings[:2]), settings.temperature, settings.distance == "l2"
    group_size = settings.patch_size**2 if settings.negatives == "other_groups" else 0  # these exclude each other

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
    losses = buffer(cut.patches, cut.padded_vectors)  # 0 for the padding
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
    return losses.sum() / cut.positions


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

    Both sides stay below the number of threads: then no loop step exchanges values through shared memory.
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
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y"):
        from . import triton_kernels

        return triton_kernels.INTERPRETED
    return False
