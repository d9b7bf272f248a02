"""Losses on feature maps: the maps checked and made comparable.

Most published weights of such losses belong to the last map of the *head*; ours by default takes the last map of the
backbone. With our models `student_layer: head.features` and `teacher_layer: head.features` name the former.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..features import Activations
from ..ops.checks import check_whole
from .base import DistillationLoss, comparable


class MapLoss(DistillationLoss):
    """A loss on one map of each model.

    Args:
        student_channels: Cs; None where no term on maps is switched on.
        teacher_channels: Ct; likewise.
        options: of the subclass.

    Raises:
        ValueError: a bad option, or a channel count that is not a whole number of at least 1.
    """

    needs_feature_map = True

    def __init__(self, student_channels: int | None, teacher_channels: int | None, **options: Any) -> None:
        super().__init__(student_channels=student_channels, teacher_channels=teacher_channels, **options)
        if self.reads_map(options):
            check_whole("student_channels", student_channels)
            check_whole("teacher_channels", teacher_channels)

    def new_align(self) -> nn.Module:
        """A 1×1 convolution with bias from Cs to Ct channels, or the identity where they are equal."""
        if self.student_channels == self.teacher_channels:
            return nn.Identity()
        return nn.Conv2d(self.student_channels, self.teacher_channels, kernel_size=1)

    def maps(self, student: Activations, teacher: Activations) -> tuple[Tensor, Tensor]:
        """Both maps in float32 or float64, `(B, Cs, h, w)` and `(B, Ct, h, w)`: the student's size, the teacher's
        detached.

        Raises:
            ValueError: a map that is missing, or of other channels, or of another batch.
        """
        ours = self._checked("student", student.feature_map, self.student_channels)
        theirs = self._checked("teacher", teacher.feature_map, self.teacher_channels)
        if len(ours) != len(theirs):
            raise ValueError(f"the student's map has batch size {len(ours)} and the teacher's {len(theirs)}.")
        return comparable(ours, theirs)

    def _checked(self, role: str, feature_map: Tensor | None, channels: int) -> Tensor:
        if feature_map is None:
            raise ValueError(
                f"the loss {self.name!r} compares feature maps and got none of the {role}; "
                f"name the layer to capture with {role}_layer."
            )
        if feature_map.ndim != 4 or feature_map.shape[1] != channels:
            raise ValueError(
                f"the {role}'s map has shape {tuple(feature_map.shape)}; expected (B, {channels}, h, w), as "
                f"{role}_channels={channels} was given when the loss was built."
            )
        return feature_map


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
