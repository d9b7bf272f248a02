"""Tensors of all processes side by side, with gradients that find their way back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_batch(tensor: Tensor) -> Tensor:
    """Concatenate the tensors of all processes along the first dimension, in the order of ranks.

    Gradients flow to every process: each one receives the sum of what all processes' losses ask of its part. DDP then
    takes the mean, so that the mean of the losses over processes is what is minimised. Call it on every process, at the
    same point and with the same shape.

    Args:
        tensor: `(B, ...)`, of the same shape and dtype everywhere.

    Returns:
        `(processes·B, ...)`; `tensor` itself with one process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    return _GatherBatch.apply(tensor)


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.batch = tensor.shape[0]
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may use the given one elsewhere
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.batch :][: ctx.batch]
