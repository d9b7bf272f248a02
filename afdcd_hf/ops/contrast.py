"""Contrastive terms between a student's and a teacher's feature map: argument checks and choice of backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check_choice, check_divides, check_positive, check_whole
from .contrast_native import contrast_native, native_unavailable
from .contrast_reference import NEGATIVES, NORMS, Settings, contrast_reference, contrast_torch
from .precision import at_least_float32, without_autocast

logger = logging.getLogger(__name__)


class Backend(NamedTuple):
    run: Callable[[Tensor, Tensor, Tensor | None, Settings], Tensor]  # student, teacher, gradient to fill or None
    unavailable: Callable[[Tensor, Tensor], str | None]  # why it cannot run on these maps


def _triton_unavailable(student: Tensor, teacher: Tensor) -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    from .contrast_triton import triton_unavailable

    return triton_unavailable(student, teacher)


def _contrast_triton(student: Tensor, *others: Any) -> Tensor:
    from .contrast_triton import contrast_triton

    with torch.cuda.device_of(student):  # Triton launches on the current GPU, which need not be the tensor's
        return contrast_triton(student, *others)


# each computes value and gradient together
BACKENDS = {
    "torch": Backend(contrast_torch, lambda student, teacher: None),
    "native": Backend(contrast_native, native_unavailable),
    "triton": Backend(_contrast_triton, _triton_unavailable),
}
AUTOMATIC = {"cpu": "native", "cuda": "triton"}  # "torch" on other devices, or if these cannot run


def omni_contrast(
    student: Tensor,
    teacher: Tensor,
    *,
    patch_size: int = 4,
    channel_groups: int = 16,
    temperature: float = 0.07,
    distance: str = "l1",
    negatives: str = "other_groups",
    backend: str = "auto",
) -> Tensor:
    """Contrast channel groups at all positions of a patch: the paper's omni-contrasting.

    The formula is in `contrast_reference.py`. H and W are cropped at the right and bottom to multiples of the patch.
    The arithmetic is float32 (float64 for float64 maps), even under autocast.

    Args:
        student: `(B, C, H, W)`, any floating dtype.
        teacher: the same shape; gets no gradient.
        patch_size: side N of a patch.
        channel_groups: number M of channel groups; must divide C.
        temperature: τ, above 0.
        distance: "l1" as in the released code, or "l2", the Euclidean norm, which the paper's ablation found best.
        negatives: "other_groups", the teacher's vectors of other groups in the patch, as in the released code; or
            "all", every other vector of the patch, as in the paper's figure.
        backend: "reference", the readable definition; "torch", the same in portions, on any device; "native", a C
            kernel for CPUs, compiled at first use; "triton", fused kernels for a CUDA GPU; or "auto", "native" or
            "triton" if they can run, else "torch". Only the reference has a second derivative.

    Returns:
        The InfoNCE loss summed over the B·H·W·M anchors and divided by B·H·W, H and W after cropping; at least 0, and
        near 0 when every student vector is much closer to its own teacher vector than to the negatives.

    Raises:
        ValueError: maps that are not 4-D, differ in shape or are smaller than a patch; a bad setting, or groups that do
            not divide the channels or leave no negatives; a backend that cannot run here, with the reason.
    """
    return _contrast(student, teacher, Settings(patch_size, channel_groups, temperature, distance, negatives), backend)


def spatial_contrast(
    student: Tensor,
    teacher: Tensor,
    *,
    patch_size: int = 4,
    temperature: float = 0.07,
    distance: str = "l1",
    backend: str = "auto",
) -> Tensor:
    """Contrast whole pixels with the patch's other positions, as a mean over B·H·W anchors; see `omni_contrast`."""
    return _contrast(student, teacher, Settings(patch_size, 1, temperature, distance, "all"), backend)


def channel_contrast(
    student: Tensor,
    teacher: Tensor,
    *,
    channel_groups: int = 16,
    temperature: float = 0.07,
    distance: str = "l1",
    backend: str = "auto",
) -> Tensor:
    """Contrast channel groups with the pixel's other groups; see `omni_contrast`. Nothing is cropped."""
    return _contrast(student, teacher, Settings(1, channel_groups, temperature, distance, "all"), backend)


def check_contrast_settings(
    *, patch_size: int, channel_groups: int, temperature: float, distance: str, negatives: str, backend: str
) -> None:
    """Raise ValueError for settings that cannot work with any map."""
    check_whole("patch_size", patch_size)
    check_whole("channel_groups", channel_groups)
    check_positive("temperature", temperature)
    check_choice("distance", distance, NORMS)
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("backend", backend, ["auto", "reference", *BACKENDS])
    if channel_groups == 1 and (negatives == "other_groups" or patch_size == 1):
        raise ValueError(
            f"patch_size={patch_size} and channel_groups=1 with negatives={negatives!r} leave an anchor no negatives, "
            "so the loss would always be 0; use several channel groups, or negatives='all' and a larger patch."
        )


def _contrast(student: Tensor, teacher: Tensor, settings: Settings, backend: str) -> Tensor:
    check_contrast_settings(**settings._asdict(), backend=backend)
    _check_maps(student, teacher, settings)
    if backend != "reference":
        with_gradient = torch.is_grad_enabled() and student.requires_grad
        return _with_gradient(student, teacher.detach(), *settings, backend, with_gradient)[0]
    with without_autocast(student):
        student, teacher = (_crop(at_least_float32(each), settings.patch_size) for each in (student, teacher.detach()))
        return contrast_reference(student, teacher.to(student.dtype), settings)


# A custom operator, which torch.compile treats as one node: nothing to trace, and no graph break.
@torch.library.custom_op("afdcd::contrast", mutates_args=())
def _with_gradient(
    student: Tensor,
    teacher: Tensor,
    patch_size: int,
    channel_groups: int,
    temperature: float,
    distance: str,
    negatives: str,
    backend: str,
    with_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the loss and its gradient by the student (a map, or empty if not wanted), at least in float32."""
    settings = Settings(patch_size, channel_groups, float(temperature), distance, negatives)
    name = _automatic(student, teacher) if backend == "auto" else backend
    with without_autocast(student):
        if name != "triton":  # which reads half precision itself
            student = at_least_float32(student)
            teacher = at_least_float32(teacher).to(student.dtype)
        reason = BACKENDS[name].unavailable(student, teacher)
        if reason is not None:
            raise ValueError(f"backend={name!r} cannot run: {reason}; use backend='torch'.")
        # of the whole map, because differentiating the crop would take two more copies
        gradient = at_least_float32(torch.zeros_like(student)) if with_gradient else None
        target = None if gradient is None else _crop(gradient, patch_size)
        loss = BACKENDS[name].run(_crop(student, patch_size), _crop(teacher, patch_size), target, settings)
    return loss, loss.new_empty(0) if gradient is None else gradient


@_with_gradient.register_fake
def _(student: Tensor, teacher: Tensor, *options: Any) -> tuple[Tensor, Tensor]:  # shapes alone, for tracing
    loss = at_least_float32(student.new_empty(()))
    return loss, torch.empty_like(student, dtype=loss.dtype) if options[-1] else loss.new_empty(0)


def _keep_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _scale_gradient(ctx: Any, grad_loss: Tensor | None, grad_gradient: Tensor | None) -> tuple:
    if grad_gradient is not None:
        raise RuntimeError(
            "this backend of the contrast has no second derivative; use backend='reference' with create_graph=True."
        )
    (gradient,) = ctx.saved_tensors
    return (None if grad_loss is None else (gradient * grad_loss).to(ctx.dtype), *[None] * 8)


_with_gradient.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def _check_maps(student: Tensor, teacher: Tensor, settings: Settings) -> None:
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be maps (B, C, H, W) of the same "
            "shape; project the student to the teacher's channels and resize one of them first."
        )
    size, channels = settings.patch_size, student.shape[1]
    if len(student) == 0 or min(student.shape[-2:]) < size:
        raise ValueError(
            f"maps of shape {tuple(student.shape)} hold no patch of {size}x{size}; "
            "use larger maps (a larger crop, less pooling) or a smaller patch_size."
        )
    check_divides(settings.channel_groups, channels, of=f"the {channels} channels of the maps")


def _crop(feature_map: Tensor, patch_size: int) -> Tensor:
    height, width = feature_map.shape[-2:]
    return feature_map[..., : height - height % patch_size, : width - width % patch_size]


def _automatic(student: Tensor, teacher: Tensor) -> str:
    preferred = AUTOMATIC.get(student.device.type, "torch")
    reason = BACKENDS[preferred].unavailable(student, teacher)
    _log_choice(preferred, str(student.device), reason)
    return "torch" if reason else preferred


@cache  # once per choice, device and process, not once per step
def _log_choice(preferred: str, device: str, reason: str | None) -> None:
    because, name = (f"; {preferred} cannot run: {reason}", "torch") if reason else ("", preferred)
    logger.info("contrast backend on %s: %s (chosen by backend='auto'%s)", device, name, because)
