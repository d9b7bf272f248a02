"""Structured knowledge distillation: similarities of pairs of positions, and class distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_weight, check_whole
from ..ops.precision import without_autocast
from .kd import kd_divergence
from .map_loss import MapLoss, comparable_logits, unit_vectors


def similarities(feature_map: Tensor) -> Tensor:
    """Cosine similarity of all pairs of positions of an image.

    Args:
        feature_map: `(B, C, h, w)` float32 or float64.

    Returns:
        `(B, h·w, h·w)` in [-1, 1]; 0 in rows and columns of positions where the map is zero.
    """
    units = unit_vectors(feature_map.flatten(start_dim=2), dim=1)  # (B, C, N)
    return units.transpose(1, 2) @ units  # (B, N, N)


def pairwise_error(student_map: Tensor, teacher_map: Tensor, pool_size: int = 2) -> Tensor:
    """`Σ (a_ij(S) - a_ij(T))² / (B·N²)` over the N² pairs of the pooled maps' positions, a the cosine similarity.

    Args:
        student_map: `(B, Cs, h, w)` float32 or float64.
        teacher_map: `(B, Ct, h, w)`.
        pool_size: kernel and stride of the max-pooling before; cells cut off by the right or lower border count too,
            so N = ⌈h / pool_size⌉·⌈w / pool_size⌉.

    Returns:
        A scalar, 0 where all similarities agree.
    """
    pooled = [F.max_pool2d(each, pool_size, ceil_mode=True) for each in (student_map, teacher_map)]
    return F.mse_loss(*map(similarities, pooled))


class SKDLoss(MapLoss):
    """Structured knowledge distillation (Liu et al., CVPR 2019) without its adversarial part.

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and logits `(B, K, h', w')`:

        a_ij(F)     = cosine of the vectors at positions i and j of maxpool(F)
        L_pairwise  = Σ (a_ij(S) - a_ij(T))² / (B·N²)
        L_pixelwise = Σ_pixels KL(softmax(teacher) ‖ softmax(student)) / (B·h'·w')

    Left out is the third, "holistic" part: a discriminator with an optimiser of its own that tells the two networks'
    score maps apart. It is a second network trained against the first, which the contract of a loss does not hold. Its
    published weights are 0.001 for the student and 0.1 for the discriminator. Numbers got here are therefore those of
    the pairwise and pixelwise parts, and not of the full method.

    Nothing needs equal channels, so the loss has no weights of its own. A teacher's map or logits of another size are
    resized bilinearly. Every position counts. float32 inside, also under autocast. Memory: two `(B, N, N)` matrices
    and their gradient, N = 2048 for a map of 64×128.

    Published weights: pairwise 10, pixelwise 1, for the head's last map (`student_layer: head.features`, likewise for
    the teacher) pooled by 2.

    Relations: L_pixelwise is KDLoss at temperature 1. In a sum with it (`loss: kd+skd`) set `pixelwise_weight=0`, or
    logits are compared twice. IFVDLoss compares similarities of positions to the centres of their classes instead of
    to each other.

    Args:
        student_channels: Cs; may be None where `pairwise_weight` is 0.
        teacher_channels: Ct; likewise.
        pairwise_weight: at least 0.
        pixelwise_weight: at least 0.
        pool_size: of L_pairwise; 1 for none.

    Raises:
        ValueError: a bad value; in `forward`, maps of the wrong channels or batch, or logits of different classes.
    """

    map_weight_option = "pairwise_weight"
    logits_weight_option = "pixelwise_weight"
    citation = """@inproceedings{liu2019structured,
  title     = {Structured Knowledge Distillation for Semantic Segmentation},
  author    = {Liu, Yifan and Chen, Ke and Liu, Chris and Qin, Zengchang and Luo, Zhenbo and Wang, Jingdong},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2019},
  eprint    = {1903.04197},
  archivePrefix = {arXiv}
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
        super().__init__(student_channels, teacher_channels)
        self.pairwise_weight, self.pixelwise_weight = pairwise_weight, pixelwise_weight
        self.pool_size = pool_size
        self.check_arguments(self.get_config_dict())
        if pairwise_weight > 0:
            self.check_channels()

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("pairwise_weight", arguments["pairwise_weight"])
        check_weight("pixelwise_weight", arguments["pixelwise_weight"])
        check_whole("pool_size", arguments["pool_size"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"skd_pairwise": ..., "skd_pixelwise": ...}`, weighted; `labels` are not used."""
        terms: dict[str, Tensor] = {}
        with without_autocast(student.logits):
            if self.pairwise_weight > 0:
                error = pairwise_error(*self.maps("skd", student, teacher), self.pool_size)
                terms["skd_pairwise"] = self.pairwise_weight * error
            if self.pixelwise_weight > 0:
                logits = comparable_logits("skd", student.logits, teacher.logits)
                terms["skd_pixelwise"] = self.pixelwise_weight * kd_divergence(*logits)
        return terms
