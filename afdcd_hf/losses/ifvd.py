"""Intra-class feature variation: how far each position lies from the centre of its class."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_ignore_index
from ..ops.precision import in_float32
from .base import MapLoss, given, unit_vectors


def centre_similarity(feature_map: Tensor, members: Tensor) -> Tensor:
    """Cosine similarity `(B, h·w)` of each position to the mean of its class in the same image; 0 without a class.

    `feature_map` is `(B, C, h, w)`, `members` `(B, K, h·w)` of its dtype, 1 where the position is of the class.
    """
    vectors = feature_map.flatten(start_dim=2)  # (B, C, N)
    sums = members @ vectors.transpose(1, 2)  # (B, K, C), of the direction of the means
    similarity = unit_vectors(sums, dim=2) @ unit_vectors(vectors, dim=1)  # (B, K, N)
    return (members * similarity).sum(dim=1)


@in_float32
def variation_error(student_map: Tensor, teacher_map: Tensor, members: Tensor) -> Tensor:
    """`Σ (m(S) - m(T))² / (B·h·w)`, m the similarity to the class centre; `members` `(B, K, h·w)` bool."""
    members = members.to(student_map.dtype)
    return F.mse_loss(centre_similarity(student_map, members), centre_similarity(teacher_map, members))


class IFVDLoss(MapLoss):
    """Intra-class feature variation distillation (Wang et al., ECCV 2020) without its adversarial part.

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and the labels brought to h×w (nearest):

        m_p(F) = cosine of the vector at position p and the mean over all positions of its class in its image
        L      = Σ_p (m_p(S) - m_p(T))² / (B·h·w)

    Positions without a class add 0, and are counted in the divisor, as in the authors' code; a batch without any label
    gives 0. The gradient also flows through the student's centres. Nothing needs equal channels, so the loss has no
    weights of its own. The published training adds a discriminator; it is left out, as SKDLoss explains. The default
    weight is that of later scripts that compare with it, for the head's last map, beside KD; the authors' is 200 beside
    10 times KD.

    Relations: SKDLoss compares similarities of all pairs of positions and reads no labels; this compares one number
    per position. It costs 2·B·K·(Cs + Ct)·h·w multiplications forward, for K classes.

    Args:
        ignore_index: label that belongs to no class; labels outside 0 ... K - 1 never do. None where there is none.
    """

    name = "ifvd"
    map_terms = {"ifvd": "weight"}
    checks = {"ignore_index": check_ignore_index}
    citation = """@inproceedings{wang2020intra,
  title     = {Intra-class Feature Variation Distillation for Semantic Segmentation},
  author    = {Wang, Yukang and Zhou, Wei and Jiang, Tao and Bai, Xiang and Xu, Yongchao},
  booktitle = {European Conference on Computer Vision},
  year      = {2020}
}"""

    def __init__(
        self,
        student_channels: int | None,
        teacher_channels: int | None,
        *,
        weight: float = 20.0,
        ignore_index: int | None = 255,
    ) -> None:
        super().__init__(**given(locals()))

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        maps = self.maps(student, teacher)
        return {"ifvd": variation_error(*maps, self.members(student, labels, maps[0].shape[-2:]))}
