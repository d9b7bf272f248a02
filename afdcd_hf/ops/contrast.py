"""Contrastive terms between a student's and a teacher's feature map: argument checks and choice of the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .checks import check_choice, check_divides, check_positive, check_whole
from .contrast_reference import NEGATIVES, NORMS, contrast_reference
from .contrast_torch import contrast_compiled, contrast_torch
from .contrast_triton import contrast_triton, triton_available
from .precision import at_least_float32, without_autocast

logger = logging.getLogger(__name__)

# A backend takes two checked, cropped maps and the keywords of `contrast_reference`, and returns the scalar.
# Triton itself is imported when the backend of that name first runs.
BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": contrast_reference,
    "torch": contrast_torch,
    "compiled": contrast_compiled,
    "triton": contrast_triton,
}
CONVERTS_ITSELF = ("triton",)  # reads half precision, computes in float32: a float32 copy of the maps is not needed


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
    The arithmetic is float32 (float64 for float64 maps), also under autocast. The teacher gets no gradient.

    Args:
        student: `(B, C, H, W)`, any floating dtype.
        teacher: same shape as `student`.
        patch_size: side N of a patch.
        channel_groups: number M of groups the channels are cut in; must divide C.
        temperature: τ, above 0.
        distance: "l1" as in the released code, or "l2", the Euclidean norm, which the paper's ablation found best.
        negatives: "other_groups", the teacher's vectors of other groups at all positions of the patch as in the
            released code; or "all", every other vector of the patch as in the paper's figure.
        backend: "reference", the readable definition; "torch", blocked, on any device; "compiled", the same through
            `torch.compile`, faster once it has compiled for 20 to 60 s; "triton", fused kernels for a CUDA GPU; or
            "auto", "triton" where that can run, else "torch". All but the reference have no second derivative.

    Returns:
        The InfoNCE loss summed over the B·H·W·M anchors and divided by B·H·W, H and W after cropping; at least 0, and
        near 0 when every student vector is much closer to its own teacher vector than to the negatives.

    Raises:
        ValueError: maps that are not 4-D, differ in shape or are smaller than a patch; groups that do not divide the
            channels; sizes that leave no negatives; an unknown name; a temperature that is not positive; a backend
            that cannot run here, with the reason.
    """
    settings = {
        "patch_size": patch_size,
        "channel_groups": channel_groups,
        "temperature": temperature,
        "distance": distance,
        "negatives": negatives,
    }
    return _contrast(student, teacher, settings, backend)


def spatial_contrast(
    student: Tensor,
    teacher: Tensor,
    *,
    patch_size: int = 4,
    temperature: float = 0.07,
    distance: str = "l1",
    backend: str = "auto",
) -> Tensor:
    """Contrast whole pixels of a patch; the negatives are the teacher's other positions of the same patch.

    Arguments, result and errors as in `omni_contrast`; here the sum runs over B·H·W anchors, so it is their mean.
    """
    settings = {
        "patch_size": patch_size,
        "channel_groups": 1,
        "temperature": temperature,
        "distance": distance,
        "negatives": "all",
    }
    return _contrast(student, teacher, settings, backend)


def channel_contrast(
    student: Tensor,
    teacher: Tensor,
    *,
    channel_groups: int = 16,
    temperature: float = 0.07,
    distance: str = "l1",
    backend: str = "auto",
) -> Tensor:
    """Contrast the channel groups of a pixel; the negatives are the teacher's other groups at the same pixel.

    Arguments, result and errors as in `omni_contrast`; nothing is cropped.
    """
    settings = {
        "patch_size": 1,
        "channel_groups": channel_groups,
        "temperature": temperature,
        "distance": distance,
        "negatives": "all",
    }
    return _contrast(student, teacher, settings, backend)


def check_contrast_settings(
    *, patch_size: int, channel_groups: int, temperature: float, distance: str, negatives: str, backend: str
) -> None:
    """Raise ValueError for settings that work with no map at all."""
    check_whole("patch_size", patch_size)
    check_whole("channel_groups", channel_groups)
    check_positive("temperature", temperature)
    check_choice("distance", distance, NORMS)
    check_choice("negatives", negatives, NEGATIVES)
    check_choice("backend", backend, ["auto", *BACKENDS])
    if channel_groups == 1 and (negatives == "other_groups" or patch_size == 1):
        raise ValueError(
            f"patch_size={patch_size} and channel_groups=1 with negatives={negatives!r} leave an anchor no negatives, "
            "so the loss would always be 0; use several channel groups, or negatives='all' and a larger patch."
        )


def _contrast(student: Tensor, teacher: Tensor, settings: dict, backend: str) -> Tensor:
    check_contrast_settings(**settings, backend=backend)
    _check_maps(student, teacher, settings["patch_size"], settings["channel_groups"])
    student, teacher = (_crop(maps, settings["patch_size"]) for maps in (student, teacher.detach()))
    name = _automatic(student, teacher) if backend == "auto" else backend
    with without_autocast(student):
        if name not in CONVERTS_ITSELF:
            student = at_least_float32(student)
            teacher = at_least_float32(teacher).to(student.dtype)
        return BACKENDS[name](student, teacher, **settings)


def _check_maps(student: Tensor, teacher: Tensor, patch_size: int, channel_groups: int) -> None:
    if student.ndim != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be maps (B, C, H, W) of the same "
            "shape; project the student to the teacher's channels and resize one of them first."
        )
    batch, channels, height, width = student.shape
    if batch == 0 or min(height, width) < patch_size:
        raise ValueError(
            f"maps of shape {tuple(student.shape)} hold no patch of {patch_size}x{patch_size}; "
            "use larger maps (a larger crop, less pooling) or a smaller patch_size."
        )
    check_divides(channel_groups, channels, of=f"the {channels} channels of the maps")


def _crop(feature_map: Tensor, patch_size: int) -> Tensor:
    height, width = feature_map.shape[-2:]
    return feature_map[..., : height - height % patch_size, : width - width % patch_size]


def _automatic(student: Tensor, teacher: Tensor) -> str:
    chosen, reason = "torch", None
    if student.device.type == "cuda":
        reasons = [triton_available(maps.device, maps.dtype) for maps in (student, teacher)]
        reason = next(filter(None, reasons), None)
        chosen = "torch" if reason else "triton"
    if not torch.compiler.is_compiling():  # a log call would break the compiled graph
        _log_choice(chosen, str(student.device), reason)
    return chosen


@cache  # once per choice, device and process, not once per step
def _log_choice(name: str, device: str, reason: str | None) -> None:
    because = f"; triton cannot run: {reason}" if reason else ""
    logger.info("contrast backend on %s: %s (chosen by backend='auto'%s)", device, name, because)
