"""What a loss compares, made comparable: checked, in float32, of one size, the teacher's without gradient.

The published weights of the losses on maps belong to the last map of the *head*; ours by default takes the last map of
the backbone. With our networks `student_layer: head.features` and `teacher_layer: head.features` name the former.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_whole
from ..ops.precision import at_least_float32
from .base import DistillationLoss


class MapLoss(DistillationLoss):
    """A loss on one map of each network.

    Args:
        student_channels: Cs; None where no term on maps is switched on.
        teacher_channels: Ct; likewise.

    Raises:
        ValueError: a channel count that is no whole number of at least 1.
    """

    needs_feature_map = True

    def __init__(self, student_channels: int | None, teacher_channels: int | None) -> None:
        super().__init__()
        self.student_channels, self.teacher_channels = student_channels, teacher_channels

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether there is a term on logits (`logits_weight_option`) with a weight; else only maps are compared."""
        return self.logits_weight_option is not None and getattr(self, self.logits_weight_option) > 0

    def check_channels(self) -> None:
        """Raise ValueError unless both channel counts are whole numbers of at least 1."""
        check_whole("student_channels", self.student_channels)
        check_whole("teacher_channels", self.teacher_channels)

    def new_align(self) -> nn.Module:
        """A 1×1 convolution with bias from Cs to Ct channels, or the identity where they are equal."""
        self.check_channels()
        if self.student_channels == self.teacher_channels:
            return nn.Identity()
        return nn.Conv2d(self.student_channels, self.teacher_channels, kernel_size=1)

    def maps(self, name: str, student: Activations, teacher: Activations) -> tuple[Tensor, Tensor]:
        """The two maps to compare; call it where autocast is off.

        Args:
            name: what a recipe calls the loss, for errors.
            student: with a map `(B, Cs, h, w)`, any floating dtype.
            teacher: with a map `(B, Ct, h', w')`, any floating dtype; never receives a gradient.

        Returns:
            `(B, Cs, h, w)` and `(B, Ct, h, w)`, float32 or float64; the teacher's resized bilinearly
            (align_corners=False) where its size differs.

        Raises:
            ValueError: a map that is missing, or of other channels, or of another batch.
        """
        for role, seen in (("student", student), ("teacher", teacher)):
            if seen.feature_map is None:
                raise ValueError(
                    f"the loss {name!r} compares feature maps and got none of the {role}; "
                    f"name the layer to capture with {role}_layer."
                )
        self._check_map("student", student.feature_map, self.student_channels)
        self._check_map("teacher", teacher.feature_map, self.teacher_channels)
        batches = len(student.feature_map), len(teacher.feature_map)
        if batches[0] != batches[1]:
            raise ValueError(f"the student's map has batch size {batches[0]} and the teacher's {batches[1]}.")
        return _comparable(student.feature_map, teacher.feature_map)

    def _check_map(self, role: str, feature_map: Tensor, channels: int | None) -> None:
        if feature_map.ndim != 4 or feature_map.shape[1] != channels:
            raise ValueError(
                f"the {role}'s map has shape {tuple(feature_map.shape)}; expected (B, {channels}, h, w), as "
                f"{role}_channels={channels} was given when the loss was built."
            )


def comparable_logits(name: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The two networks' logits to compare; call it where autocast is off.

    Args:
        name: what a recipe calls the loss, for errors.
        student: `(B, K, h, w)`, any floating dtype.
        teacher: `(B, K, h', w')`, any floating dtype; never receives a gradient.

    Returns:
        Both as `(B, K, h, w)`, float32 or float64; the teacher's resized bilinearly (align_corners=False) where its
        size differs.

    Raises:
        ValueError: logits of different batch or class counts.
    """
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must both be "
            "(B, K, h, w) of the same batch."
        )
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student has {student.shape[1]} classes and the teacher {teacher.shape[1]}; the loss {name!r} needs "
            f"the same classes in both: use a teacher trained on this data, or leave {name!r} out of the loss."
        )
    return _comparable(student, teacher)


def unit_vectors(vectors: Tensor, dim: int) -> Tensor:
    """Divide by the L2 norm along `dim`, except where that is 0.

    Vectors of zeros, which maps behind a ReLU have, stay zero and let the gradient through as it is. A small number
    added to the norm, as is usual, would multiply their gradient by its inverse, 10⁸ for instance.

    Args:
        vectors: any shape, float32 or float64.
        dim: the dimension that holds a vector's components.

    Returns:
        The shape of `vectors`.
    """
    norms = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / norms.masked_fill(norms == 0, 1.0)


def _comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    return student, teacher
