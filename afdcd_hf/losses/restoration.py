"""What MGD and Af-DCD share: the teacher's map restored from a masked map of the student."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..ops.checks import check_choice, check_fraction
from ..ops.precision import in_float32
from .map_loss import MapLoss
from .masks import MASKS, draw_mask
from .projectors import PROJECTORS, check_restorable, restore

REDUCTIONS = ("paper", "mean")


class RestorationLoss(MapLoss):
    """A loss on S' = projector(mask ⊙ align(S)), with options `mask`, `mask_ratio`, `projector` and `reduction`."""

    checks = {
        "mask": partial(check_choice, known=MASKS),
        "mask_ratio": check_fraction,
        "projector": partial(check_choice, known=PROJECTORS),
        "reduction": partial(check_choice, known=REDUCTIONS),
    }

    def __init__(self, student_channels: int | None, teacher_channels: int | None, **options: Any) -> None:
        super().__init__(student_channels, teacher_channels, **options)
        if self.reads_map(options):
            self.align = self.new_align()
            self.projector = PROJECTORS[options["projector"]](self.teacher_channels)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        check_restorable(options["projector"], options["mask"], options["mask_ratio"])

    def restored(self, student_map: Tensor, mask: Tensor | None = None) -> Tensor:
        """S' `(B, Ct, h, w)`, in the layers' dtype; `mask` `(B, 1, h, w)` is drawn as configured if None."""
        if mask is None:
            mask = draw_mask(self.mask, student_map, self.mask_ratio, self._source)
        return restore(student_map, mask, self.align, self.projector)


@in_float32
def restoration_error(restored: Tensor, target: Tensor, reduction: str = "paper") -> Tensor:
    """`Σ (restored - target)² / B` of two `(B, Ct, h, w)` for "paper", the mean over all values for "mean".

    Only the difference is kept for the backward pass: the teacher's map, which nothing else needs by then, is freed.
    """
    divisor = restored.numel() if reduction == "mean" else restored.shape[0]
    return (restored - target).square().sum() / divisor
