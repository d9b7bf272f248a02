"""A teacher that was trained on images of another normalisation gets them so: one affine map per channel."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.loading import load_processor
from .teacher import copied

logger = logging.getLogger(__name__)


def processor_of(teacher: str | Path) -> Any:
    """The image processor of a saved teacher, or None (with a warning) where its folder has none."""
    try:
        return load_processor(teacher)
    except (OSError, ValueError) as error:
        logger.warning(
            "The teacher %s has no image processor, so it gets its images as the student does: %s", teacher, error
        )
        return None


def with_own_input(teacher: nn.Module, student_processor: Any, teacher_processor: Any) -> nn.Module:
    """The teacher, or a copy with the same weights that takes the student's `pixel_values` and sees its own.

    Both processors scale the same pixels, subtract a mean and divide by a deviation, in RGB or BGR order; so one
    result is a scale and an offset of the other. Resizing and cropping are no part of it: both models see one crop.

    Raises:
        ValueError: one of the processors does not say what it does to pixels.
    """
    change = _Change(student_processor, teacher_processor)
    if not change.is_needed:
        return teacher
    logger.info("The teacher's images are normalised otherwise than the student's: it gets its own.")
    seeing = copied(teacher, own_kernels=False)
    seeing.register_forward_pre_hook(change.apply, with_kwargs=True)
    return seeing


class _Change:
    """Student's pixel values `(B, 3, H, W)` to the teacher's."""

    def __init__(self, student_processor: Any, teacher_processor: Any):
        (own_bgr, own_scale, own_offset), (bgr, scale, offset) = map(
            _per_channel, (student_processor, teacher_processor)
        )
        self.flips = own_bgr != bgr
        if self.flips:
            own_scale, own_offset = own_scale.flip(0), own_offset.flip(0)
        self.scale = (scale / own_scale).view(3, 1, 1)
        self.offset = offset.view(3, 1, 1) - own_offset.view(3, 1, 1) * self.scale
        self.is_needed = self.flips or bool((self.scale != 1).any() or (self.offset != 0).any())

    def apply(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A forward pre-hook."""
        if args:
            return (self._of(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "pixel_values": self._of(kwargs["pixel_values"])}

    def _of(self, pixel_values: Tensor) -> Tensor:
        pixel_values = pixel_values.flip(1) if self.flips else pixel_values
        return pixel_values * self.scale.to(pixel_values) + self.offset.to(pixel_values)


def _per_channel(processor: Any) -> tuple[bool, Tensor, Tensor]:
    """Whether the channels are BGR, and scale and offset `(3,)` float64 by which pixels 0..255 become values."""
    timms = getattr(processor, "data_config", None)  # of transformers' wrapper of timm models
    if timms is not None:
        factor, mean, std = 1 / 255, timms["mean"], timms["std"]
    elif not hasattr(processor, "do_normalize"):
        raise ValueError(
            f"{type(processor).__name__} has no do_rescale, do_normalize, image_mean and image_std, so it is unknown "
            "what it does to pixels: give an image processor of transformers, or AfDcdImageProcessor(image_mean=...)."
        )
    else:
        factor = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    mean, std = (torch.as_tensor(each, dtype=torch.float64).expand(3) for each in (mean, std))
    bgr = any(getattr(processor, name, False) for name in ("do_flip_channels", "do_flip_channel_order"))
    return bool(bgr), factor / std, -mean / std
