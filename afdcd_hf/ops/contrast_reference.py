"""The contrastive terms in plain PyTorch: their definition, and the same by portions of the patches.

A map `(B, C, H, W)` is cut into non-overlapping N×N patches and its channels into M contiguous groups, so a patch has
N²·M vectors of C/M channels. Within a patch, the student's vector s_a is an anchor, the teacher's vector t_a at the
same position and group is its positive, and some of the teacher's other vectors are its negatives Neg(a):

    sim(s, t) = -‖s - t‖ / τ                                                 (L1 or Euclidean norm)
    loss      = 1 / (B·H·W) · Σ_a [ log Σ_{j ∈ {a} ∪ Neg(a)} exp sim(s_a, t_j) - sim(s_a, t_a) ]

The three modes of the paper (arXiv 2312.04168, section 3) are this one formula:

    spatial   M = 1, Neg = all others        the other positions of the patch
    channel   N = 1, Neg = all others        the other groups of the pixel
    omni      Neg = "other_groups"           other groups at all N² positions: N²·(M - 1), as the released code
              Neg = "all"                    every other vector of the patch: N²·M - 1, as the paper's figure

The paper's weights presuppose the division by B·H·W, not by the number of anchors.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

NORMS = {"l1": 1.0, "l2": 2.0}
NEGATIVES = ("other_groups", "all")

# Limits of a portion of the patches: on CUDA, the backward of torch.cdist fills a buffer of patches·vectors²·channels
# numbers (32 MiB for one patch at the defaults and 2048 channels); on a CPU, similarities should stay in the cache.
BUFFER_NUMBERS, CPU_NUMBERS = 2**26, 2**18


class Settings(NamedTuple):
    patch_size: int  # N, divides H and W
    channel_groups: int  # M, divides C
    temperature: float  # τ, above 0
    distance: str  # "l1" or "l2"; at distance 0 the gradient of both is 0
    negatives: str  # "other_groups" or "all"


def contrast_reference(student: Tensor, teacher: Tensor, settings: Settings) -> Tensor:
    """Compute the InfoNCE sum over all anchors of two `(B, C, H, W)`, float32 or float64, divided by B·H·W."""
    patch_size, channel_groups, temperature, distance, negatives = settings
    anchors = patch_vectors(student, patch_size, channel_groups)  # (patches, V, C/M), V = N²·M
    candidates = patch_vectors(teacher, patch_size, channel_groups)  # (patches, V, C/M)
    excluded = excluded_pairs(patch_size, channel_groups, negatives, student.device)  # (V, V)
    portion = max(1, BUFFER_NUMBERS // (excluded.numel() * anchors.shape[-1]))
    total = anchors.new_zeros(())
    for some_anchors, some_candidates in zip(anchors.split(portion), candidates.split(portion), strict=True):
        similarity = -distances(some_anchors, some_candidates, distance) / temperature  # (portion, V, V)
        positive = similarity.diagonal(dim1=1, dim2=2)  # (portion, V)
        denominator = similarity.masked_fill(excluded, -torch.inf).logsumexp(dim=2)  # (portion, V)
        total = total + (denominator - positive).sum()
    return total / (student.numel() // student.shape[1])  # B·H·W


def patch_vectors(feature_map: Tensor, patch_size: int, channel_groups: int) -> Tensor:
    """Return a map's vectors `(patches, N²·M, C/M)`; index (i·N + j)·M + k is position (i, j), group k."""
    return patch_grid(feature_map, patch_size, channel_groups).flatten(0, 2).flatten(1, 3)


def patch_grid(feature_map: Tensor, patch_size: int, channel_groups: int) -> Tensor:
    """View a map `(B, C, H, W)` of any strides as `(B, H/N, W/N, N, N, M, C/M)`."""
    cut = feature_map.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size)).unflatten(1, (channel_groups, -1))
    return cut.permute(0, 3, 5, 4, 6, 1, 2)


def excluded_pairs(patch_size: int, channel_groups: int, negatives: str, device: torch.device) -> Tensor:
    """Return which (anchor, candidate) pairs are neither positive nor negative: `(V, V)` bool, V = N²·M."""
    index = torch.arange(patch_size * patch_size * channel_groups, device=device)
    group = index % channel_groups
    same_group = (group[:, None] == group[None, :]) & (negatives == "other_groups")
    return same_group & (index[:, None] != index[None, :])


def distances(anchors: Tensor, candidates: Tensor, distance: str) -> Tensor:
    """Compute distances `(patches, A, V)` of `(patches, A, C/M)` and `(patches, V, C/M)`, "l1" or "l2"."""
    # the matrix-product shortcut for the Euclidean norm loses digits if vectors are close, as positives are
    return torch.cdist(anchors, candidates, p=NORMS[distance], compute_mode="donot_use_mm_for_euclid_dist")


def contrast_torch(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    """Return what `contrast_reference` returns, and fill `gradient`, a map like `student`, with the gradient by it.

    No similarities are kept for the backward pass. With p(a, j) the softmax of anchor a over positive and negatives:

        ∂loss/∂s_a = 1 / (τ·B·H·W) · Σ_j (1[j = a] - p(a, j)) · ∂‖s_a - t_j‖/∂s_a
    """
    patch_size, channel_groups, temperature, distance, negatives = settings
    excluded = excluded_pairs(patch_size, channel_groups, negatives, student.device)  # (V, V)
    positions = student.numel() // student.shape[1]  # B·H·W
    loss = student.new_zeros(())
    for part in _portions(student, patch_size, excluded.numel(), channel_groups):
        anchors = patch_vectors(student[part], patch_size, channel_groups)  # (portion, V, C/M)
        candidates = patch_vectors(teacher[part], patch_size, channel_groups)
        lengths = distances(anchors, candidates, distance)  # (portion, V, V)
        similarity = (lengths / -temperature).masked_fill_(excluded, -torch.inf)
        loss += (similarity.logsumexp(2) - similarity.diagonal(dim1=1, dim2=2)).sum()
        if gradient is not None:
            weights = similarity.softmax(2).neg_()
            weights.diagonal(dim1=1, dim2=2).add_(1)
            weights /= temperature * positions
            pulled = torch.ops.aten._cdist_backward(weights, anchors, candidates, NORMS[distance], lengths)
            target = patch_grid(gradient[part], patch_size, channel_groups)
            target.copy_(pulled.view(target.shape))
    return loss / positions


def _portions(feature_map: Tensor, patch_size: int, pairs: int, channel_groups: int) -> Iterator[tuple[slice, ...]]:
    """Yield indices that cover a map by rectangles in one image, each of a bounded number of patches or one."""
    batch, channels, height, width = feature_map.shape
    on_cpu = feature_map.device.type == "cpu"
    patches = max(1, CPU_NUMBERS // pairs if on_cpu else BUFFER_NUMBERS // (pairs * channels // channel_groups))
    rows, columns = max(1, patches // (width // patch_size)) * patch_size, min(patches * patch_size, width)
    for image, top, left in product(range(batch), range(0, height, rows), range(0, width, columns)):
        yield slice(image, image + 1), slice(None), slice(top, top + rows), slice(left, left + columns)
