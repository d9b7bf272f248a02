"""3×3 convolution of a map that is zero at most positions: only the others are computed, with the dense result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TAPS = tuple((row, column) for row in range(3) for column in range(3))


@dataclass(frozen=True)
class KeptPositions:
    """Where a mask is not zero.

    Args:
        indices: `(K,)` int64, positions in a map flattened to `(B·h·w,)`, ascending; K may be 0.
        weights: `(K, 1)` float, the mask there: all ones for a mask of zeros and ones.
        size: `(B, h, w)`.
    """

    indices: Tensor
    weights: Tensor
    size: tuple[int, int, int]

    @classmethod
    def of(cls, mask: Tensor) -> KeptPositions:
        """Find them in `mask` `(B, 1, h, w)`; on CUDA the host waits for their number."""
        batch, _, height, width = mask.shape
        values = mask.reshape(-1)
        indices = values.nonzero().squeeze(1)
        return cls(indices, values[indices].unsqueeze(1), (batch, height, width))

    def gather(self, feature_map: Tensor) -> Tensor:
        """`(B, C, h, w)` to `(K, C)`, one row a kept position; not weighted."""
        return feature_map.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, self.indices)

    def in_frame(self) -> Tensor:
        """The indices in maps with a frame of one position around each image, flattened: `(K,)` int64.

        Every tap of every kept position then falls inside the image or its frame, so none needs a bounds check.
        """
        _, height, width = self.size
        row, column = self.indices // width, self.indices % width  # row counts through all images
        return (row + 2 * (row // height) + 1) * (width + 2) + column + 1


def conv3x3_of_kept(vectors: Tensor, kept: KeptPositions, weight: Tensor, bias: Tensor) -> Tensor:
    """Equal `F.conv2d(x, weight, bias, padding=1)` where x holds `vectors` at the kept positions and zeros elsewhere.

    Costs K·9·C·C' multiplications instead of B·h·w·9·C·C', and memory for `(K, C')` besides the result, in the forward
    and in the backward pass. Not twice differentiable.

    Args:
        vectors: `(K, C)` floating, the map at the kept positions.
        kept: where they lie.
        weight: `(C', C, 3, 3)`, dtype of `vectors`.
        bias: `(C',)`, likewise.

    Returns:
        `(B, C', h, w)`, contiguous.
    """
    return _Conv3x3OfKept.apply(vectors, weight, bias, kept)


class _Conv3x3OfKept(torch.autograd.Function):
    """y[p - d] += W_d·x[p] for each of the nine taps d and each kept p; one matrix product a tap bounds the memory.

    Written out rather than left to autograd, which would keep a re-ordered copy of the weights until the backward pass.
    """

    @staticmethod
    def forward(ctx, vectors: Tensor, weight: Tensor, bias: Tensor, kept: KeptPositions) -> Tensor:
        batch, height, width = kept.size
        ctx.save_for_backward(vectors, weight)
        ctx.kept = kept
        framed = bias.repeat(batch * (height + 2) * (width + 2), 1)  # (B·(h + 2)·(w + 2), C')
        centre = kept.in_frame()
        for tap in TAPS:
            framed.index_add_(0, centre - _offset(tap, width), vectors @ _matrix(weight, tap).t())
        inside = framed.view(batch, height + 2, width + 2, -1)[:, 1:-1, 1:-1]
        return inside.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        vectors, weight = ctx.saved_tensors
        needs_vectors, needs_weight, needs_bias, _ = ctx.needs_input_grad
        width = ctx.kept.size[2]
        framed = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).flatten(0, 2)  # (B·(h + 2)·(w + 2), C')
        centre = ctx.kept.in_frame()
        for_vectors = torch.zeros_like(vectors) if needs_vectors else None
        for_weight = torch.empty_like(weight) if needs_weight else None
        for tap in TAPS:
            reached = framed.index_select(0, centre - _offset(tap, width))  # (K, C')
            if for_vectors is not None:
                for_vectors.addmm_(reached, _matrix(weight, tap))
            if for_weight is not None:
                for_weight[:, :, tap[0], tap[1]] = reached.t() @ vectors
        return for_vectors, for_weight, gradient.sum((0, 2, 3)) if needs_bias else None, None


def _offset(tap: tuple[int, int], width: int) -> int:
    """How far, in framed positions, the input of a tap lies behind its output."""
    return (tap[0] - 1) * (width + 2) + tap[1] - 1


def _matrix(weight: Tensor, tap: tuple[int, int]) -> Tensor:
    """`(C', C)`: the weights of one tap."""
    # at 2048 channels and 1,012 vectors copy and product took 117 ms, a product with the strided view 152
    return weight[:, :, tap[0], tap[1]].contiguous()
