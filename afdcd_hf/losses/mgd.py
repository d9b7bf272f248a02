"""MGD: the teacher's map restored from a masked map of the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..features import Activations
from ..ops.checks import check_choice, check_fraction, check_weight
from ..ops.precision import without_autocast
from .map_loss import MapLoss
from .masks import MASKS, draw_mask
from .projectors import PROJECTORS, check_restorable, restore

REDUCTIONS = ("paper", "mean")


def restoration_error(restored: Tensor, target: Tensor, reduction: str = "paper") -> Tensor:
    """`Σ (restored - target)² / B` for "paper", the mean over all values for "mean".

    Args:
        restored: S' `(B, Ct, h, w)` float32 or float64.
        target: T, the same; it gets no gradient.
        reduction: one of `REDUCTIONS`.

    Returns:
        A scalar, 0 where the two are equal.
    """
    divisor = restored.numel() if reduction == "mean" else restored.shape[0]
    return _SquaredError.apply(restored, target) / divisor


class _SquaredError(torch.autograd.Function):
    """Σ (restored - target)², which keeps the difference for the backward pass.

    PyTorch's own keeps both maps: the teacher's, which nothing else needs by then, could not be freed.
    """

    @staticmethod
    def forward(ctx, restored: Tensor, target: Tensor) -> Tensor:
        difference = restored - target
        ctx.save_for_backward(difference)
        return difference.square().sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        return difference.mul(2 * gradient), None


class MGDLoss(MapLoss):
    """Masked generative distillation (Yang et al., ECCV 2022).

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and a mask `(B, 1, h, w)` shared by all channels:

        S' = projector(mask ⊙ align(S))
        L  = Σ (S' - T)² / B

    `align` is a 1×1 convolution with bias, or the identity where Cs = Ct. L is a sum over channels and positions,
    hence the small weight. It is not 0 where S = T: the projector has to restore what is hidden. A teacher map of
    another size is resized bilinearly (align_corners=False) to the student's. float32 inside, also under autocast.
    Distils maps; published for segmentation: weight 2e-5, mask_ratio 0.75, the plain projector.

    Relations: AfDcdLoss has this as its feature term, to the bit, and adds a contrast on S' and T. FitNetLoss compares
    without mask and projector.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        weight: α, at least 0.
        mask: "random" hides each position with probability `mask_ratio`, drawn anew at each call from `generator`;
            "center" hides the middle third of rows and columns.
        mask_ratio: λ of the paper, in [0, 1); for mask "random".
        projector: "plain" is the paper's; "enhanced", "bottleneck", "depthwise", "none" (with `mask_ratio=0`):
            `afdcd_hf/losses/projectors.py`.
        reduction: "paper" as above; "mean" divides further by Ct·h·w, for weights that carry over to other maps.

    Raises:
        ValueError: a bad or unknown value; in `forward`, maps that are missing or of the wrong channels.
    """

    citation = """@inproceedings{yang2022masked,
  title     = {Masked Generative Distillation},
  author    = {Yang, Zhendong and Li, Zhe and Shao, Mingqi and Shi, Dachuan and Yuan, Zehuan and Yuan, Chun},
  booktitle = {European Conference on Computer Vision},
  year      = {2022}
}"""

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        weight: float = 2e-5,
        mask: str = "random",
        mask_ratio: float = 0.75,
        projector: str = "plain",
        reduction: str = "paper",
    ) -> None:
        super().__init__(student_channels, teacher_channels)
        self.weight, self.mask, self.mask_ratio, self.reduction = weight, mask, mask_ratio, reduction
        self.projector_kind = projector  # `projector` is the module
        self.check_arguments(self.get_config_dict())
        self.align = self.new_align()
        self.projector = PROJECTORS[projector](teacher_channels)
        self.requires_grad_(weight > 0)  # DDP stops at weights that should train and take no part

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("weight", arguments["weight"])
        check_choice("mask", arguments["mask"], MASKS)
        check_fraction("mask_ratio", arguments["mask_ratio"])
        check_choice("projector", arguments["projector"], PROJECTORS)
        check_restorable(arguments["projector"], arguments["mask"], arguments["mask_ratio"])
        check_choice("reduction", arguments["reduction"], REDUCTIONS)

    def get_config_dict(self) -> dict[str, Any]:
        names = [name for name in self._argument_names() if name != "projector"]
        return {name: getattr(self, name) for name in names} | {"projector": self.projector_kind}

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"mgd": α·L}` from the maps, or `{}` for weight 0; `labels` are not used."""
        if self.weight == 0:
            return {}
        with without_autocast(student.logits):
            student_map, target = self.maps("mgd", student, teacher)
            mask = draw_mask(self.mask, student_map, self.mask_ratio, self._source)
            restored = restore(student_map, mask, self.align, self.projector)  # (B, Ct, h, w)
            return {"mgd": self.weight * restoration_error(restored, target, self.reduction)}
