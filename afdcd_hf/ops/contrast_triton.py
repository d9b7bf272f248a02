"""The contrastive terms on a GPU by Triton kernels, a portion of the patches at a time; imported only if needed.

A portion's vectors are first copied and rearranged (the three copies and the similarities are 256 MiB at most). In a
map they lie in runs of N numbers, and the inner loops, which read each number V times or more, would wait for
scattered reads.

Equal inputs give equal bits: each similarity and each number of the gradient is summed by one thread in a fixed order,
whatever tile tuning finds fastest; the row kernel's tile is fixed; and there are no atomic additions.

Notation as in `contrast_reference.py`: a patch has V = N²·M vectors of K = C/M channels. The index of a vector is
(k·N + i)·N + j for group k and position (i, j): positions run fastest, because they are neighbours in an NCHW map.
Buffers hold a portion of the patches and are padded with zeros to whole blocks: V to VECTORS, K to CHANNELS.

Similarities are stored because arithmetic is the bottleneck: tensor cores cannot compute L1 distances, so recomputing
one for the gradient costs more than writing one number per K channels.

Both inner loops are sums of outer differences, like a matrix product on ordinary cores. They are fast only if a thread
owns a square of the tile (so that few loads feed many additions), but Triton lays out elementwise tiles in strips.
`_square_tile` therefore starts the sum as the product of two zero matrices: the compiler spreads the result of a
float32 product in 4×4 squares, keeps that layout for the loop, and removes the product itself.
"""

# Triton interprets annotations itself, so a kernel's other arguments cannot have any.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contrast_reference import Settings

# Large enough to fill a GPU (256 patches at the defaults: 4096 tiles), small enough to stay near its cache. A patch
# whose vectors alone exceed this (64x64 positions of more than 4096 channels) is a portion by itself.
PORTION_NUMBERS = 2**24
MAX_PATCHES = 65535  # per launch: CUDA's limit for the second dimension of a grid
LOWEST = tl.constexpr(-3.0e38)  # a finite start for maxima: -inf minus -inf would be NaN in a block of excluded pairs


@triton.jit
def _square_tile(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    left, right = tl.zeros([ROWS, 16], tl.float32), tl.zeros([16, COLUMNS], tl.float32)
    return tl.dot(left, right, input_precision="ieee")  # (ROWS, COLUMNS) zeros


@triton.jit
def _map_offsets(
    patch, channel, vector, patch_rows, patch_columns, channels,
    batch_stride, channel_stride, row_stride, column_stride, PATCH_SIZE: tl.constexpr,
):  # fmt: skip
    """Return the offsets of (channel, vector) of a patch in a map of any strides, in 64 bits for large maps."""
    image = (patch // (patch_rows * patch_columns)).to(tl.int64)
    group, cell = vector // (PATCH_SIZE * PATCH_SIZE), vector % (PATCH_SIZE * PATCH_SIZE)
    row = patch // patch_columns % patch_rows * PATCH_SIZE + cell // PATCH_SIZE
    column = patch % patch_columns * PATCH_SIZE + cell % PATCH_SIZE
    place = image * batch_stride + row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    of_group = (group * channels).to(tl.int64) * channel_stride
    return channel.to(tl.int64)[:, None] * channel_stride + (place + of_group)[None, :]


@triton.jit
def cut_vectors(
    map_ptr, by_channel_ptr, by_vector_ptr, first_patch, vectors,
    patch_rows, patch_columns, channels, batch_stride, channel_stride, row_stride, column_stride,
    PATCH_SIZE: tl.constexpr, VECTORS: tl.constexpr, CHANNELS: tl.constexpr, BOTH: tl.constexpr,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write a patch as (CHANNELS, VECTORS) float32 and, if BOTH, also as (VECTORS, CHANNELS)."""
    tile, patch = tl.program_id(0), tl.program_id(1)
    vector = tile % (VECTORS // BLOCK_V) * BLOCK_V + tl.arange(0, BLOCK_V)
    channel = tile // (VECTORS // BLOCK_V) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets = _map_offsets(
        first_patch + patch, channel, vector, patch_rows, patch_columns, channels,
        batch_stride, channel_stride, row_stride, column_stride, PATCH_SIZE,
    )  # fmt: skip
    inside = (channel < channels)[:, None] & (vector < vectors)[None, :]
    values = tl.load(map_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    start = patch * CHANNELS * VECTORS
    tl.store(by_channel_ptr + start + channel[:, None] * VECTORS + vector[None, :], values)
    if BOTH:
        tl.store(by_vector_ptr + start + vector[None, :] * CHANNELS + channel[:, None], values)


@triton.jit
def compare_vectors(
    anchors_ptr, candidates_ptr, similarity_ptr, first_anchor, anchors, vectors, inverse_temperature,
    VECTORS: tl.constexpr, CHANNELS: tl.constexpr, GROUP_SIZE: tl.constexpr, SQUARED: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Compute one tile of -‖s - t‖ / τ, -inf for excluded pairs, stored as (candidate, anchor).

    GROUP_SIZE: vectors of a group exclude each other ("other_groups"); 0 excludes nothing ("all").
    """
    tile, patch = tl.program_id(0), tl.program_id(1)
    local = tile // (VECTORS // BLOCK_V) * BLOCK_A + tl.arange(0, BLOCK_A)
    anchor = first_anchor + local
    candidate = tile % (VECTORS // BLOCK_V) * BLOCK_V + tl.arange(0, BLOCK_V)
    start = patch * CHANNELS * VECTORS
    total = _square_tile(BLOCK_A, BLOCK_V)
    for block in range(0, CHANNELS, UNROLL):
        for step in tl.static_range(UNROLL):
            line = start + (block + step) * VECTORS
            own, other = tl.load(anchors_ptr + line + anchor), tl.load(candidates_ptr + line + candidate)
            difference = own[:, None] - other[None, :]
            if SQUARED:
                total = tl.fma(difference, difference, total)
            else:
                total += tl.abs(difference)
    distance = tl.sqrt(total) if SQUARED else total
    excluded = (candidate >= vectors)[None, :]
    if GROUP_SIZE:
        same_group = (anchor // GROUP_SIZE)[:, None] == (candidate // GROUP_SIZE)[None, :]
        excluded = excluded | (same_group & (anchor[:, None] != candidate[None, :]))
    similarity = tl.where(excluded, float("-inf"), -distance * inverse_temperature)
    target = similarity_ptr + patch * VECTORS * anchors + candidate[None, :] * anchors + local[:, None]
    tl.store(target, similarity)


@triton.jit
def weigh_rows(
    similarity_ptr, loss_ptr, first_anchor, anchors, vectors, temperature, scale,
    VECTORS: tl.constexpr, SQUARED: tl.constexpr, WEIGHTS: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Compute each anchor's loss by a running log-sum-exp; if WEIGHTS, turn similarities into gradient weights.

    With p the softmax of a row: weight = (1[positive] - p) · scale, for the Euclidean norm divided by the distance.
    """
    local = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    patch = tl.program_id(1)
    anchor = first_anchor + local
    start = similarity_ptr + patch * VECTORS * anchors
    highest = tl.full([BLOCK_A], LOWEST, tl.float32)
    total = tl.zeros([BLOCK_A], tl.float32)
    positive = tl.zeros([BLOCK_A], tl.float32)
    for block in range(0, VECTORS, BLOCK_V):
        candidate = block + tl.arange(0, BLOCK_V)
        similarity = tl.load(start + candidate[:, None] * anchors + local[None, :])
        raised = tl.maximum(highest, tl.max(similarity, 0))
        total = total * tl.exp(highest - raised) + tl.sum(tl.exp(similarity - raised[None, :]), 0)
        highest = raised
        positive += tl.sum(tl.where(candidate[:, None] == anchor[None, :], similarity, 0.0), 0)
    normaliser = highest + tl.log(total)
    tl.store(loss_ptr + patch * VECTORS + anchor, tl.where(anchor < vectors, normaliser - positive, 0.0))
    if WEIGHTS:
        for block in range(0, VECTORS, BLOCK_V):
            candidate = block + tl.arange(0, BLOCK_V)
            place = start + candidate[:, None] * anchors + local[None, :]
            similarity = tl.load(place)
            is_positive = (candidate[:, None] == anchor[None, :]).to(tl.float32)
            weight = (is_positive - tl.exp(similarity - normaliser[None, :])) * scale
            if SQUARED:
                distance = -similarity * temperature
                weight = weight / tl.where(distance > 0, distance, 1.0)  # at 0 it meets a difference of 0
            tl.store(place, weight)


@triton.jit
def sum_gradient(
    anchors_ptr, candidates_ptr, weight_ptr, gradient_ptr, first_patch, first_anchor, anchors, vectors,
    patch_rows, patch_columns, channels, batch_stride, channel_stride, row_stride, column_stride,
    PATCH_SIZE: tl.constexpr, VECTORS: tl.constexpr, CHANNELS: tl.constexpr, SQUARED: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Write one tile of Σ_j weight_j · sign(s - t_j) to the map, for the Euclidean norm Σ_j weight_j · (s - t_j)."""
    tile, patch = tl.program_id(0), tl.program_id(1)
    local = tile // (CHANNELS // BLOCK_C) * BLOCK_A + tl.arange(0, BLOCK_A)
    anchor = first_anchor + local
    channel = tile % (CHANNELS // BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = patch * CHANNELS * VECTORS
    value = tl.load(anchors_ptr + start + channel[None, :] * VECTORS + anchor[:, None])
    value += _square_tile(BLOCK_A, BLOCK_C)  # passes its layout on, so that the loop converts nothing
    total = _square_tile(BLOCK_A, BLOCK_C)
    for block in range(0, VECTORS, UNROLL):
        for step in tl.static_range(UNROLL):
            candidate = block + step
            weight = tl.load(weight_ptr + (patch * VECTORS + candidate) * anchors + local)[:, None]
            other = tl.load(candidates_ptr + start + candidate * CHANNELS + channel)[None, :]
            if SQUARED:
                direction = value - other
            else:  # the sign, 0 where they are equal
                direction = (value > other).to(tl.float32) - (value < other).to(tl.float32)
            total = tl.fma(direction, tl.broadcast_to(weight, direction.shape), total)
    offsets = _map_offsets(
        first_patch + patch, channel, anchor, patch_rows, patch_columns, channels,
        batch_stride, channel_stride, row_stride, column_stride, PATCH_SIZE,
    )  # fmt: skip
    inside = (channel < channels)[:, None] & (anchor < vectors)[None, :]
    tl.store(gradient_ptr + offsets, tl.trans(total), mask=inside)


# True only if TRITON_INTERPRET=1 was set before Triton was imported: Triton's own functions are kernels, too
INTERPRETED = not any(isinstance(function, triton.runtime.JITFunction) for function in (tl.sum, cut_vectors))


def triton_unavailable(student: Tensor, teacher: Tensor) -> str | None:
    """Return why `contrast_triton` cannot run on these maps, or None if it can."""
    for dtype in (student.dtype, teacher.dtype):
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"its arithmetic is float32, and maps of {dtype} would lose digits"
    if student.device.type == "cuda":
        capability = torch.cuda.get_device_capability(student.device)
        if torch.version.hip is None and capability < (8, 0):
            return f"the GPU has compute capability {capability[0]}.{capability[1]}, and Triton needs 8.0"
    elif not INTERPRETED:
        return f"the maps are on the device {student.device.type!r}, and Triton needs a CUDA GPU"
    return None


class Cut:
    """The division of maps of a shape `(B, C, H, W)` into vectors, and the number of these taken at a time."""

    def __init__(self, shape: torch.Size, patch_size: int, channel_groups: int):
        batch, channels, height, width = shape
        self.patch_size, self.patch_rows, self.patch_columns = patch_size, height // patch_size, width // patch_size
        self.patches = batch * self.patch_rows * self.patch_columns
        self.positions = self.patches * patch_size**2  # B·H·W
        self.vectors, self.channels = patch_size**2 * channel_groups, channels // channel_groups  # V of K numbers
        # sizes of the buffers, in whole blocks
        self.padded_vectors, self.padded_channels = _padded(self.vectors), _padded(self.channels)
        # anchors of a patch at a time: all of them, unless V² alone is beyond a portion
        self.anchors = min(self.padded_vectors, max(PORTION_NUMBERS // self.padded_vectors // 128, 1) * 128)
        most = PORTION_NUMBERS // (self.padded_vectors * max(self.anchors, self.padded_channels))
        self.portion = max(1, min(self.patches, most, MAX_PATCHES))  # patches at a time


def contrast_triton(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    """Do what `contrast_torch` does, in float32; maps of bfloat16 and float16 are converted exactly."""
    cut, temperature, squared = Cut(student.shape, *settings[:2]), settings.temperature, settings.distance == "l2"
    group_size = settings.patch_size**2 if settings.negatives == "other_groups" else 0  # these exclude each other

    def buffer(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float32, device=student.device)

    def place(feature_map: Tensor) -> tuple[int, ...]:
        return cut.patch_rows, cut.patch_columns, cut.channels, *feature_map.stride()

    def tiles(other_block: str, others: int) -> Any:
        return lambda meta: (some // meta["BLOCK_A"] * (others // meta[other_block]), patches)

    block_v, block_c, block_a = min(cut.padded_vectors, 64), min(cut.padded_channels, 64), min(cut.padded_vectors, 32)
    padded = {"VECTORS": cut.padded_vectors, "CHANNELS": cut.padded_channels}
    compare = _tuned(compare_vectors, "BLOCK_V", cut.padded_vectors, cut.padded_vectors)
    gradient_kernel = _tuned(sum_gradient, "BLOCK_C", cut.padded_vectors, cut.padded_channels)
    vectors = cut.portion, cut.padded_vectors, cut.padded_channels
    anchors, candidates = buffer(*vectors), buffer(*vectors)
    # the gradient reads the teacher candidate by candidate, the comparison channel by channel: each has its own copy
    by_vector = candidates if gradient is None else buffer(*vectors)
    similarity = buffer(cut.portion, cut.padded_vectors, cut.anchors)
    losses = buffer(cut.patches, cut.padded_vectors)  # 0 for the padding
    for first in range(0, cut.patches, cut.portion):
        patches = min(cut.portion, cut.patches - first)
        for feature_map, by_channel, second in ((student, anchors, anchors), (teacher, candidates, by_vector)):
            cut_vectors[cut.padded_vectors // block_v * (cut.padded_channels // block_c), patches](
                feature_map, by_channel, second, first, cut.vectors, *place(feature_map), **padded,
                PATCH_SIZE=cut.patch_size, BOTH=second is not by_channel, BLOCK_V=block_v, BLOCK_C=block_c,
            )  # fmt: skip
        for start in range(0, cut.padded_vectors, cut.anchors):
            some = min(cut.anchors, cut.padded_vectors - start)
            compare[tiles("BLOCK_V", cut.padded_vectors)](
                anchors, candidates, similarity, start, some, cut.vectors, 1 / temperature, **padded,
                GROUP_SIZE=group_size, SQUARED=squared,
            )  # fmt: skip
            weigh_rows[some // block_a, patches](
                similarity, losses[first:], start, some, cut.vectors, temperature, 1 / (temperature * cut.positions),
                VECTORS=cut.padded_vectors, SQUARED=squared, WEIGHTS=gradient is not None,
                BLOCK_A=block_a, BLOCK_V=block_v,
            )  # fmt: skip
            if gradient is not None:
                gradient_kernel[tiles("BLOCK_C", cut.padded_channels)](
                    anchors, by_vector, similarity, gradient, first, start, some, cut.vectors, *place(gradient),
                    **padded, PATCH_SIZE=cut.patch_size, SQUARED=squared,
                )  # fmt: skip
    return losses.sum() / cut.positions


@cache
def _tuned(kernel: Any, other_block: str, anchors: int, others: int) -> Any:
    """Return a kernel with a few tiles to choose from, timed at its first call for a shape, in seconds at most."""
    tiles = tile_choices(anchors, others)
    configs = [
        triton.Config({"BLOCK_A": block, other_block: other, "UNROLL": unroll}, num_warps=warps)
        for block, other, warps, unroll in (tiles[:1] if INTERPRETED else tiles)  # nothing to measure
    ]
    return triton.autotune(configs=configs, key=["VECTORS", "CHANNELS", "SQUARED"])(kernel)


def tile_choices(anchors: int, others: int) -> list[tuple[int, int, int, int]]:
    """Return up to three (anchors, others, warps, unrolling) that divide padded sizes, the likely best first."""
    # both sides stay below the number of threads: then no loop step exchanges values through shared memory
    sides = min(anchors, 64), min(others, 64)
    warps = {16: 1, 32: 2, 64: 4}[max(sides)]
    tiles = [(*sides, warps, 4), (*sides, warps, 8)]
    if anchors % 128 == 0 and others % 128 == 0:
        tiles.append((128, 128, 8, 4))
    return tiles


def _padded(size: int) -> int:
    """Round a size up to 16, 32 or a multiple of 64."""
    return next((block for block in (16, 32) if size <= block), -(-size // 64) * 64)
