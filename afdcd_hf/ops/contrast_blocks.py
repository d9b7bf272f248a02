"""Distances of all pairs of vectors in a patch, and what a weighted sum over those distances pulls on the anchors.

All functions take vectors channels-first, `(C/M, patches, V)`: then the innermost loops run over vectors, not over the
channels that are summed, and need no horizontal additions. The `(C/M, patches, V, V)` differences are formed a few
channels at a time in one buffer of at most BLOCK_NUMBERS numbers, so that it stays in the processor's cache.

With d(a, j) = ‖s_a - t_j‖ and weights w(a, j), the pull on anchor a is

    Σ_j w(a, j) · ∂d(a, j)/∂s_a        ∂d/∂s = sign(s - t) for L1, (s - t) / d for L2, 0 where d = 0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

# Measured on a Zen 4 core at V = 256 (medians are noisy, minima agree): a quarter costs half as much again, twice as
# much memory gains nothing.
BLOCK_NUMBERS = 2**19
# Below this many vectors in a patch the patches are innermost in memory, as rows of V numbers would be too short.
SHORT_ROW = 64


class Arithmetic(NamedTuple):
    """How distances and pulls are computed; both take and return what `distances` and `pulls` do."""

    distances: Callable[[Tensor, Tensor, str], Tensor]
    pulls: Callable[[Tensor, Tensor, Tensor, str], Tensor]


def patch_grid(feature_map: Tensor, patch_size: int, channel_groups: int) -> Tensor:
    """View a map `(B, C, H, W)` of any strides as `(B, H/N, W/N, C/M, N, N, M)`."""
    grid = feature_map.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    grid = grid.unflatten(1, (channel_groups, -1))  # (B, M, C/M, H/N, N, W/N, N)
    return grid.permute(0, 3, 5, 2, 4, 6, 1)


def portions(grid: Tensor, numbers: int) -> Iterator[tuple[int, slice, slice]]:
    """Indices into a patch grid that cover it in rectangles of one image, of one patch or at most `numbers` numbers."""
    batch, rows, columns = grid.shape[:3]
    patches = max(1, numbers // grid[0, 0, 0].numel())
    width, height = min(columns, patches), max(1, patches // columns)
    for image in range(batch):
        for top in range(0, rows, height):
            for left in range(0, columns, width):
                yield image, slice(top, top + height), slice(left, left + width)


def matrix_blocks(vectors: Tensor, numbers: int) -> Iterator[tuple[slice, slice]]:
    """Patches and rows that cover the `(patches, V, V)` matrix in blocks of one row or at most `numbers` numbers."""
    _, patches, amount = vectors.shape
    patches_at_once = max(1, numbers // amount**2)
    rows_at_once = max(1, min(amount, numbers // amount))
    for first in range(0, patches, patches_at_once):
        for start in range(0, amount, rows_at_once):
            yield slice(first, first + patches_at_once), slice(start, min(start + rows_at_once, amount))


def read_vectors(grid_portion: Tensor) -> Tensor:
    """Copy `(rows, columns, C/M, N, N, M)` of a patch grid to `(C/M, patches, V)`, V = N²·M."""
    rows, columns, channels, *vector = grid_portion.shape
    if vector[0] * vector[1] * vector[2] >= SHORT_ROW:
        # patches outermost: one patch alone is contiguous then, and its channels do not share sets of the cache
        return grid_portion.reshape(rows * columns, channels, -1).contiguous().transpose(0, 1)
    patches_last = grid_portion.permute(2, 3, 4, 5, 0, 1).reshape(channels, -1, rows * columns)
    return patches_last.contiguous().transpose(1, 2)


def write_vectors(grid_portion: Tensor, vectors: Tensor) -> None:
    """Copy `(C/M, patches, V)` to a `(rows, columns, C/M, N, N, M)` portion of a patch grid."""
    rows, columns, channels, *vector = grid_portion.shape
    grid_portion.copy_(vectors.reshape(channels, rows, columns, *vector).permute(1, 2, 0, 3, 4, 5))


def distances(anchors: Tensor, candidates: Tensor, distance: str) -> Tensor:
    """All distances within each patch.

    Args:
        anchors: `(C/M, patches, A)`, float32 or float64.
        candidates: `(C/M, patches, V)`.
        distance: "l1" or "l2".

    Returns:
        `(patches, A, V)`.
    """
    if distance == "l1":
        return _manhattan(anchors, candidates)
    total, total_flat = _empty_pairs(1, anchors, candidates)
    total_flat.zero_()
    for _, difference, flat in _for_all_pairs(torch.sub, anchors, candidates):
        difference.square_()
        total_flat.addmm_(flat.new_ones(1, len(flat)), flat)  # twice as fast as a sum over the outermost dimension
    return total[0].sqrt_()


def pulls(anchors: Tensor, candidates: Tensor, weights: Tensor, distance: str) -> Tensor:
    """The weighted sums of the distances' derivatives.

    Args:
        anchors: `(C/M, patches, A)`.
        candidates: `(C/M, patches, V)`.
        weights: w, `(patches, A, V)`; for "l2" already divided by the distance, and 0 where that is 0.
        distance: "l1" or "l2".

    Returns:
        `(C/M, patches, A)`.
    """
    total = torch.empty_like(anchors)
    for channels, difference, _ in _for_all_pairs(torch.sub, anchors, candidates):
        if distance == "l1":
            difference.sign_()
        torch.sum(difference.mul_(weights), dim=-1, out=total[channels])
    return total


def pulls_of_few(anchors: Tensor, candidates: Tensor, weights: Tensor, pairs: Tensor, distance: str) -> Tensor:
    """As `pulls`, of some pairs alone.

    Args:
        anchors: `(C/M, patches, A)`.
        candidates: `(C/M, patches, V)`.
        weights: `(patches, A, V)`.
        pairs: `(n,)` int64, the pairs' indices into `weights.flatten()`.
        distance: "l1" or "l2".

    Returns:
        `(C/M, patches, A)`.
    """
    channels, patches, amount = anchors.shape
    vectors = candidates.shape[2]
    anchor = pairs.div(vectors, rounding_mode="floor")
    # a pair's number is anchor · V + column, that of its candidate is patch · V + column
    candidate = pairs - (anchor - anchor.div(amount, rounding_mode="floor")) * vectors
    anchor_rows, candidate_rows = (
        each.permute(1, 2, 0).reshape(-1, channels).contiguous() for each in (anchors, candidates)
    )
    weight = weights.flatten().index_select(0, pairs).unsqueeze(1)
    total = torch.zeros_like(anchor_rows)
    portion = max(1, BLOCK_NUMBERS // 8 // channels)  # three arrays of that size stay in the cache together
    for i, j, w in zip(anchor.split(portion), candidate.split(portion), weight.split(portion), strict=True):
        difference = anchor_rows.index_select(0, i).sub_(candidate_rows.index_select(0, j))
        total.index_add_(0, i, (difference.sign_() if distance == "l1" else difference).mul_(w))
    return total.view(patches, amount, channels).permute(2, 0, 1)


@cache
def compiled_arithmetic() -> Arithmetic:
    """The same through `torch.compile`, which fuses difference, norm and sum; it compiles at the first call."""
    one_thread = {"cpp.threads": 1}  # blocks are spread over the threads as a whole
    return Arithmetic(*(torch.compile(whole, options=one_thread) for whole in (_whole_distances, _whole_pulls)))


EAGER = Arithmetic(distances, pulls)


def _manhattan(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Σ|s - t| as Σs + Σt - 2·Σmin(s, t): one pass over the pairs less than with absolute values.

    That loses digits where two vectors are close. Far-off vectors do not mind; the anchors' own positives may be close,
    so the caller must replace their distances.
    """
    total, total_flat = _empty_pairs(1, anchors, candidates)
    total_flat.zero_()
    for _, _, flat in _for_all_pairs(torch.minimum, anchors, candidates):
        total_flat.addmm_(flat.new_ones(1, len(flat)), flat)
    ends = anchors.sum(0)[:, :, None] + candidates.sum(0)[:, None, :]
    return torch.sub(ends, total[0], alpha=2, out=total[0])


def _for_all_pairs(
    function: Callable[..., Tensor], anchors: Tensor, candidates: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield ranges of c channels, function(s, t) of all pairs `(c, patches, A, V)`, the same memory as `(c, pairs)`."""
    channels = anchors.shape[0]
    pairs = anchors[0].numel() * candidates.shape[2]
    at_once = min(channels, max(1, BLOCK_NUMBERS // pairs))
    buffer, flat = _empty_pairs(at_once, anchors, candidates)
    for start in range(0, channels, at_once):
        some = slice(start, min(start + at_once, channels))
        amount = some.stop - start
        function(anchors[some, :, :, None], candidates[some, :, None, :], out=buffer[:amount])
        yield some, buffer[:amount], flat[:amount]


def _empty_pairs(channels: int, anchors: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for `(channels, patches, A, V)` numbers in the vectors' order, and the same memory as `(channels, -1)`."""
    (_, patches, amount), vectors = anchors.shape, candidates.shape[2]
    if vectors >= SHORT_ROW:
        pairs = anchors.new_empty(channels, patches, amount, vectors)
        return pairs, pairs.view(channels, -1)
    pairs = anchors.new_empty(channels, amount, vectors, patches)
    return pairs.permute(0, 3, 1, 2), pairs.view(channels, -1)


def _whole_distances(anchors: Tensor, candidates: Tensor, distance: str) -> Tensor:
    difference = anchors[:, :, :, None] - candidates[:, :, None, :]
    return difference.abs().sum(0) if distance == "l1" else difference.square().sum(0).sqrt()


def _whole_pulls(anchors: Tensor, candidates: Tensor, weights: Tensor, distance: str) -> Tensor:
    difference = anchors[:, :, :, None] - candidates[:, :, None, :]
    return ((difference.sign() if distance == "l1" else difference) * weights).sum(-1)
