"""The contrastive terms on a GPU, by fused Triton kernels: what can run, and the autograd function.

Importing this file needs no Triton; running `contrast_triton` does. Kernels: `triton_kernels.py`, their launches:
`triton_launches.py`.

The gradient is formed in the forward pass, while the similarities are at hand: forming it in the backward pass would
mean to compute them twice. It is kept in float32, one number per number of the map; the backward pass multiplies it by
the upstream gradient. No similarity outlives the forward pass.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def triton_available(device: torch.device | str, dtype: torch.dtype = torch.float32) -> str | None:
    """None if `contrast_triton` can run for maps of this device and dtype, else the reason in words."""
    device = torch.device(device)
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    if dtype not in DTYPES:
        return f"its arithmetic is float32, and maps of {dtype} would lose digits"
    if device.type == "cuda":
        return _too_old(device)
    if not _interpreted():
        return f"the maps are on the device {device.type!r}, and Triton needs a CUDA GPU"
    return None


def contrast_triton(
    student: Tensor,
    teacher: Tensor,
    *,
    patch_size: int,
    channel_groups: int,
    temperature: float,
    distance: str,
    negatives: str,
) -> Tensor:
    """The InfoNCE sum over all anchors, divided by B·H·W; definition and arguments as in `contrast_reference`.

    The maps may have any strides, and each its own dtype of float32, bfloat16 and float16; halves are converted
    exactly and computed in float32.

    Returns:
        A float32 scalar. Its gradient reaches the student alone, in the student's dtype, and is not differentiable
        itself.

    Raises:
        ValueError: Triton cannot run here, for the reason given.
    """
    for feature_map in (student, teacher):
        reason = triton_available(feature_map.device, feature_map.dtype)
        if reason is not None:
            raise ValueError(f"backend='triton' cannot run: {reason}; use backend='torch'.")
    from .triton_launches import Rule, plan_cut  # imports Triton

    cut = plan_cut(student.shape, patch_size, channel_groups)
    rule = Rule(temperature, distance == "l2", patch_size**2 if negatives == "other_groups" else 0)
    wants_gradient = torch.is_grad_enabled() and student.requires_grad
    return _Contrast.apply(student, teacher.detach(), cut, rule, wants_gradient)


class _Contrast(torch.autograd.Function):
    """Loss with its gradient kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, cut: Any, rule: Any, wants_gradient: bool) -> Tensor:
        from .triton_launches import anchor_losses

        gradient = torch.empty_like(student, dtype=torch.float32) if wants_gradient else None
        with _current(student.device):
            loss = anchor_losses(student, teacher, gradient, cut, rule).sum() / cut.positions
        if wants_gradient:
            ctx.save_for_backward(gradient)
            ctx.dtype = student.dtype
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient * upstream).to(ctx.dtype), None, None, None, None


def _current(device: torch.device) -> AbstractContextManager:
    # Triton launches on the current GPU, which need not be the tensor's
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _too_old(device: torch.device) -> str | None:
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or capability >= (8, 0):
        return None
    return f"the GPU has compute capability {capability[0]}.{capability[1]}, and Triton needs 8.0"


def _interpreted() -> bool:
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "yes", "on", "y"):
        return False
    from . import triton_kernels

    return triton_kernels.INTERPRETED
