"""The contrastive term computed step by step in plain eager PyTorch: what the benchmark measures the backends against.

These are the steps of the released training code, written anew: the full similarity matrix of all patches, a boolean
gather of the negatives, concatenation with the positive, cross entropy. The patches are the batch dimension of `cdist`,
so on CUDA its backward with p = 1 fills a buffer of (patches, V, V, C/M) numbers, as the released code's does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def released_contrast(
    student: Tensor,
    teacher: Tensor,
    *,
    patch_size: int = 4,
    channel_groups: int = 16,
    temperature: float = 0.07,
) -> Tensor:
    """Omni-contrast with the L1 distance and the negatives of the other groups.

    Args:
        student: `(B, C, H, W)` float32; H and W multiples of `patch_size`, C of `channel_groups`.
        teacher: like `student`.
        patch_size: N.
        channel_groups: M.
        temperature: τ.

    Returns:
        A scalar equal to `omni_contrast` of the same maps.
    """
    anchors, candidates = (_patch_vectors(maps, patch_size, channel_groups) for maps in (student, teacher))
    similarity = -torch.cdist(anchors, candidates, p=1.0) / temperature  # (patches, V, V), V = N²·M
    patches, vectors, _ = similarity.shape
    group = torch.arange(vectors, device=student.device) % channel_groups
    of_other_group = (group[:, None] != group[None, :]).expand(patches, -1, -1)
    negatives = similarity[of_other_group].view(patches * vectors, -1)  # (anchors, V - N²)
    positive = similarity.diagonal(dim1=1, dim2=2).reshape(-1, 1)  # (anchors, 1)
    logits = torch.cat([positive, negatives], dim=1)
    target = logits.new_zeros(len(logits), dtype=torch.long)
    loss = F.cross_entropy(logits, target, reduction="sum")
    return loss * channel_groups / len(logits)  # anchors / M = B·H·W


def _patch_vectors(feature_map: Tensor, patch_size: int, channel_groups: int) -> Tensor:
    batch, channels, height, width = feature_map.shape
    windows = feature_map.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    windows = windows.permute(0, 2, 3, 4, 5, 1)  # (B, H/N, W/N, N, N, C)
    return windows.reshape(-1, patch_size**2 * channel_groups, channels // channel_groups)
