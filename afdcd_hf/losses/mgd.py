"""MGD: restoring the teacher's map from a masked student map, which Af-DCD builds on."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..citations import bibtex
from ..features import Activations
from ..ops.checks import check_choice, check_fraction
from ..ops.precision import in_float32
from .base import MapLoss, option, uniform
from .projectors import PROJECTORS, EnhancedProjector, PlainProjector, mask_aligned


def random_mask(feature_map: Tensor, mask_ratio: float) -> Tensor:
    """Draw a mask `(B, 1, h, w)` for a map `(B, C, h, w)`: 1, kept, with probability `1 - mask_ratio`, else 0."""
    return (uniform(feature_map[:, :1]) >= mask_ratio).to(feature_map.dtype)


def center_mask(feature_map: Tensor) -> Tensor:
    """Make such a mask that hides the middle third: rows h//3 to 2h//3 and columns w//3 to 2w//3, ends excluded."""
    height, width = feature_map.shape[-2:]
    mask = torch.ones_like(feature_map[:, :1])
    mask[:, :, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = 0
    return mask


def restore(student_map: Tensor, mask: Tensor | None, align: nn.Module, projector: nn.Module) -> Tensor:
    """Compute S' = projector(mask ⊙ align(student_map)): `(B, Cs, h, w)` to `(B, Ct, h, w)`, in the layers' dtype."""
    hidden = align(student_map) if mask is None else mask_aligned(align, student_map, mask)
    return projector(hidden, mask) if isinstance(projector, (PlainProjector, EnhancedProjector)) else projector(hidden)


@in_float32
def restoration_error(restored: Tensor, target: Tensor, reduction: str = "paper") -> Tensor:
    """Compute `Σ (restored - target)² / B` of two `(B, Ct, h, w)` for "paper", the mean over all values for "mean".

    Only the difference is kept for the backward pass, so that the teacher's map can be freed.
    """
    divisor = restored.numel() if reduction == "mean" else restored.shape[0]
    return (restored - target).square().sum() / divisor


class RestorationLoss(MapLoss):
    """Base class of losses on S' = projector(mask ⊙ align(S)).

    Args:
        mask: "random" hides each position with probability `mask_ratio`, redrawn at each call;
            "center" hides the middle third of rows and columns.
        mask_ratio: λ in MGD's paper, ζ in Af-DCD's, in [0, 1); for mask "random".
        projector: "plain" is the papers'; "enhanced", "bottleneck", "depthwise" (starts as a ReLU), or "none" (with
            `mask_ratio=0`: S' = align(S)); costs in `afdcd_hf/losses/projectors.py`.
        reduction: "paper" is each loss's formula; "mean" turns sums over channels and positions into means, so that
            weights carry over to other maps.
    """

    mask: str = option(default="random", check=partial(check_choice, known=("random", "center")))
    mask_ratio: float = option(default=0.75, check=check_fraction)
    projector: Any = option(default="plain", check=partial(check_choice, known=PROJECTORS))
    reduction: str = option(default="paper", check=partial(check_choice, known=("paper", "mean")))

    def build(self) -> None:
        if self.needs_feature_map:
            self.align = self.new_align()
            self.projector = PROJECTORS[self.projector](self.teacher_channels)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        mask, ratio = options["mask"], options["mask_ratio"]
        if options["projector"] == "none" and (mask != "random" or ratio > 0):
            hides = f"mask_ratio={ratio}" if mask == "random" else f"mask={mask!r}"
            raise ValueError(
                f"projector='none' restores nothing, but {hides} hides positions: set mask_ratio=0 with mask='random', "
                "or use a projector."
            )

    def restored(self, student_map: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute S' `(B, Ct, h, w)` in the layers' dtype; `mask` `(B, 1, h, w)` is drawn as configured if None."""
        if mask is None and self.mask == "center":
            mask = center_mask(student_map)
        elif mask is None and self.mask_ratio > 0:  # else nothing is drawn, and dropout's random numbers stay the same
            mask = random_mask(student_map, self.mask_ratio)
        return restore(student_map, mask, self.align, self.projector)


class MGDLoss(RestorationLoss):
    """Masked generative distillation (Yang et al., ECCV 2022).

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and a mask `(B, 1, h, w)` shared by all channels:

        S' = projector(mask ⊙ align(S))
        L  = Σ (S' - T)² / B                      ("mean" divides further by Ct·h·w)

    `align` is a 1×1 convolution with bias, or the identity if Cs = Ct. L is a sum over channels and positions,
    hence the small weight. It is not 0 for S = T: the projector has to restore what is hidden. Published for
    segmentation, on the backbone's last map (the default layer): weight 2e-5, mask_ratio 0.75, the plain projector.

    Relations: AfDcdLoss uses this as its feature term, bit for bit, and adds a contrast on S' and T. FitNetLoss
    compares maps without mask and projector.

    For the options see `RestorationLoss`.
    """

    name = "mgd"
    map_terms = {"mgd": "weight"}
    citation = bibtex("yang2022masked")

    weight: float = option(default=2e-5)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        student_map, target = self.maps(student, teacher)
        return {"mgd": restoration_error(self.restored(student_map), target, reduction=self.reduction)}
