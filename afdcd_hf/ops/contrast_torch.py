"""The contrastive terms of `contrast_reference.py` in PyTorch on any device, a portion of the patches at a time.

The reference's arithmetic, but of its similarities `(patches, V, V)` only a portion exists, and none is kept for the
backward pass: the gradient is formed while they are at hand. With p(a, j) the softmax of anchor a over its positive
and its negatives:

    ∂loss/∂s_a = 1 / (τ·B·H·W) · Σ_j (1[j = a] - p(a, j)) · ∂‖s_a - t_j‖/∂s_a
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from .contrast_reference import BUFFER_NUMBERS, NORMS, Settings, distances, excluded_pairs, patch_grid, patch_vectors

CPU_NUMBERS = 2**18  # similarities of a portion: they stay in the cache. Elsewhere the buffer of cdist is the limit.


def contrast_torch(student: Tensor, teacher: Tensor, gradient: Tensor | None, settings: Settings) -> Tensor:
    """Return what `contrast_reference` returns, and fill the student's gradient.

    Args:
        student: as in `contrast_reference`, like teacher and settings.
        gradient: None, or a map like `student` that receives the derivative of the loss.
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
    """Indices that cover a map in rectangles of one image, each of one patch or a bounded number of them."""
    batch, channels, height, width = feature_map.shape
    if feature_map.device.type == "cpu":
        patches = max(1, CPU_NUMBERS // pairs)
    else:
        patches = max(1, BUFFER_NUMBERS // (pairs * channels // channel_groups))
    rows, columns = max(1, patches // (width // patch_size)) * patch_size, min(patches * patch_size, width)
    for image, top, left in product(range(batch), range(0, height, rows), range(0, width, columns)):
        yield slice(image, image + 1), slice(None), slice(top, top + rows), slice(left, left + columns)
