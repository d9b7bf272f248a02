"""Structured knowledge distillation: similarities of pairs of positions, and class distributions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_whole
from ..ops.precision import in_float32
from .base import MapLoss, given, unit_vectors
from .kd import kd_divergence


def similarities(feature_map: Tensor) -> Tensor:
    """Cosine similarity of all pairs of positions of an image, `(B, C, h, w)` to `(B, h·w, h·w)` in [-1, 1].

    It is 0 in rows and columns of positions where the map is zero.
    """
    units = unit_vectors(feature_map.flatten(start_dim=2), dim=1)  # (B, C, N)
    return units.transpose(1, 2) @ units  # (B, N, N)


@in_float32
def pairwise_error(student_map: Tensor, teacher_map: Tensor, pool_size: int = 2) -> Tensor:
    """`Σ (a_ij(S) - a_ij(T))² / (B·N²)` over the N² pairs of positions of two max-pooled maps `(B, C, h, w)`.

    a is the cosine similarity. Cells cut off by the right or lower border count too: N = ⌈h / pool⌉·⌈w / pool⌉.
    """
    pooled = [F.max_pool2d(each, pool_size, ceil_mode=True) for each in (student_map, teacher_map)]
    return F.mse_loss(similarities(pooled[0]), similarities(pooled[1]))


class SKDLoss(MapLoss):
    """Structured knowledge distillation (Liu et al., CVPR 2019) without its adversarial part.

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and logits `(B, K, h', w')`:

        a_ij(F)     = cosine of the vectors at positions i and j of maxpool(F)
        L_pairwise  = Σ (a_ij(S) - a_ij(T))² / (B·N²)
        L_pixelwise = Σ_pixels KL(softmax(teacher) ‖ softmax(student)) / (B·h'·w')

    Left out is the third, "holistic" part: a discriminator with an optimiser of its own that tells the two models'
    score maps apart. It is a second model trained against the first, which the contract of a loss does not hold.
    Numbers got here are therefore those of the pairwise and pixelwise parts, and not of the full method.

    Nothing needs equal channels, so the loss has no weights of its own. Every position counts. Memory: two `(B, N, N)`
    matrices and their gradient, N = 2048 for a map of 64×128. The defaults are those of later scripts that compare with
    it, for the head's last map; the authors' own weigh 1 and 10, pooled to 2×2 positions (half the map's sides).

    Relations: L_pixelwise is KDLoss at temperature 1. In a sum with it (`loss: kd+skd`) set `pixelwise_weight=0`, or
    logits are compared twice. IFVDLoss compares similarities of positions to the centres of their classes instead of
    to each other.

    Args:
        pool_size: of L_pairwise; 1 for none.
    """

    name = "skd"
    map_terms = {"skd_pairwise": "pairwise_weight"}
    logits_terms = {"skd_pixelwise": "pixelwise_weight"}
    checks = {"pool_size": check_whole}
    citation = """@inproceedings{liu2019structured,
  title     = {Structured Knowledge Distillation for Semantic Segmentation},
  author    = {Liu, Yifan and Chen, Ke and Liu, Chris and Qin, Zengchang and Luo, Zhenbo and Wang, Jingdong},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019}
}"""

    def __init__(
        self,
        student_channels: int | None,
        teacher_channels: int | None,
        *,
        pairwise_weight: float = 10.0,
        pixelwise_weight: float = 1.0,
        pool_size: int = 2,
    ) -> None:
        super().__init__(**given(locals()))

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        terms = {}
        if self.pairwise_weight > 0:
            terms["skd_pairwise"] = pairwise_error(*self.maps(student, teacher), pool_size=self.pool_size)
        if self.pixelwise_weight > 0:
            terms["skd_pixelwise"] = kd_divergence(*self.logits(student, teacher))
        return terms
