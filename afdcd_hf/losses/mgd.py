"""MGD: the teacher's map restored from a masked map of the student."""

from __future__ import annotations

from torch import Tensor

from ..features import Activations
from .base import given
from .restoration import RestorationLoss, restoration_error


class MGDLoss(RestorationLoss):
    """Masked generative distillation (Yang et al., ECCV 2022).

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and a mask `(B, 1, h, w)` shared by all channels:

        S' = projector(mask ⊙ align(S))
        L  = Σ (S' - T)² / B

    `align` is a 1×1 convolution with bias, or the identity where Cs = Ct. L is a sum over channels and positions,
    hence the small weight. It is not 0 where S = T: the projector has to restore what is hidden. Published for
    segmentation, on the backbone's last map (the default layer): weight 2e-5, mask_ratio 0.75, the plain projector.

    Relations: AfDcdLoss has this as its feature term, to the bit, and adds a contrast on S' and T. FitNetLoss compares
    without mask and projector.

    Args:
        weight: α, at least 0.
        mask: "random" hides each position with probability `mask_ratio`, drawn anew at each call from `generator`;
            "center" hides the middle third of rows and columns.
        mask_ratio: λ of the paper, in [0, 1); for mask "random".
        projector: "plain" is the paper's; "enhanced", "bottleneck", "depthwise", "none" (with `mask_ratio=0`):
            `afdcd_hf/losses/projectors.py`.
        reduction: "paper" as above; "mean" divides further by Ct·h·w, for weights that carry over to other maps.
    """

    name = "mgd"
    map_terms = {"mgd": "weight"}
    citation = """@inproceedings{yang2022masked,
  title     = {Masked Generative Distillation},
  author    = {Yang, Zhendong and Li, Zhe and Shao, Mingqi and Shi, Dachuan and Yuan, Zehuan and Yuan, Chun},
  booktitle = {European Conference on Computer Vision},
  year      = {2022}
}"""

    def __init__(
        self,
        student_channels: int | None,
        teacher_channels: int | None,
        *,
        weight: float = 2e-5,
        mask: str = "random",
        mask_ratio: float = 0.75,
        projector: str = "plain",
        reduction: str = "paper",
    ) -> None:
        super().__init__(**given(locals()))

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        student_map, target = self.maps(student, teacher)
        return {"mgd": restoration_error(self.restored(student_map), target, reduction=self.reduction)}
