"""FitNet: the teacher's map itself as a hint."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_flag
from ..ops.precision import in_float32
from .base import MapLoss, given

# added to a channel's variance: keeps the gradient of channels that hardly vary finite
EPSILON = 1e-5


@in_float32
def hint_error(student_map: Tensor, teacher_map: Tensor, normalize: bool = False) -> Tensor:
    """The mean squared error `Σ (S - T)² / (B·C·h·w)` of two `(B, C, h, w)`, normalised by channel or as they are."""
    maps = (normalized(each) for each in (student_map, teacher_map)) if normalize else (student_map, teacher_map)
    return F.mse_loss(*maps)


def normalized(feature_map: Tensor) -> Tensor:
    """Each image and channel of `(B, C, h, w)` less its mean and divided by its standard deviation over h·w."""
    variance, mean = torch.var_mean(feature_map, dim=(2, 3), correction=0, keepdim=True)
    return (feature_map - mean) * torch.rsqrt(variance + EPSILON)


class FitNetLoss(MapLoss):
    """Plain mimicking of the teacher's map (Romero et al., ICLR 2015).

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        L = Σ (align(S) - T)² / (B·Ct·h·w)

    `align` is a 1×1 convolution with bias, or the identity where Cs = Ct; it trains beside the student. The paper
    sums (times ½) where this is a mean, and uses the term to initialise the student before distilling logits; here
    it is there from the first step to the last, as the segmentation papers that compare with it do, with weights of 1
    to 10 on the head's last map. Every position counts.

    With `normalize=True` align(S) and T are standardised over h and w, per image and channel, before they are compared:
    NFD (Liu et al., 2022, arXiv 2207.05256), in which magnitudes do not count. Its weight is not known to us.

    Relations: AfDcdLoss with `contrast_weight=0` hides positions first and lets 3×3 convolutions restore them; CWDLoss
    compares where a channel is active and leaves out how strongly.

    Args:
        normalize: compare standardised maps.
    """

    name = "fitnet"
    map_terms = {"fitnet": "weight"}
    checks = {"normalize": check_flag}
    citation = """@inproceedings{romero2015fitnets,
  title     = {FitNets: Hints for Thin Deep Nets},
  author    = {Romero, Adriana and Ballas, Nicolas and Ebrahimi Kahou, Samira and Chassang, Antoine and
               Gatta, Carlo and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations},
  year      = {2015}
}"""
    nfd_citation = """@article{liu2022normalized,
  title   = {Normalized Feature Distillation for Semantic Segmentation},
  author  = {Liu, Tao and Yang, Xi and Chen, Chenshu},
  journal = {arXiv preprint arXiv:2207.05256},
  year    = {2022}
}"""

    def __init__(
        self,
        student_channels: int | None,
        teacher_channels: int | None,
        *,
        weight: float = 1.0,
        normalize: bool = False,
    ) -> None:
        super().__init__(**given(locals()))
        if weight > 0:
            self.align = self.new_align()

    @property
    def citations(self) -> list[str]:
        return [self.citation, self.nfd_citation] if self.normalize else [self.citation]

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        student_map, teacher_map = self.maps(student, teacher)
        return {"fitnet": hint_error(self.align(student_map), teacher_map, normalize=self.normalize)}
