"""Intra-class feature variation: how far each position lies from the centre of its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_weight
from ..ops.precision import without_autocast
from .label_maps import check_ignore_index, check_labels, class_members
from .map_loss import MapLoss, unit_vectors


def centre_similarity(feature_map: Tensor, members: Tensor) -> Tensor:
    """Cosine similarity of each position to the mean of its class in the same image.

    Args:
        feature_map: `(B, C, h, w)` float32 or float64.
        members: `(B, K, h·w)` of the map's dtype, 1 where the position is of the class and 0 elsewhere.

    Returns:
        `(B, h·w)` in [-1, 1]; 0 where a position has no class.
    """
    vectors = feature_map.flatten(start_dim=2)  # (B, C, N)
    sums = members @ vectors.transpose(1, 2)  # (B, K, C), of the direction of the means
    similarity = unit_vectors(sums, dim=2) @ unit_vectors(vectors, dim=1)  # (B, K, N)
    return (members * similarity).sum(dim=1)


def variation_error(student_map: Tensor, teacher_map: Tensor, members: Tensor) -> Tensor:
    """`Σ (m(S) - m(T))² / (B·h·w)`, m the similarity to the class centre.

    Args:
        student_map: `(B, Cs, h, w)` float32 or float64.
        teacher_map: `(B, Ct, h, w)`.
        members: `(B, K, h·w)` bool.

    Returns:
        A scalar, 0 where positions lie equally far from their centres, and without any labelled position.
    """
    members = members.to(student_map.dtype)
    return F.mse_loss(centre_similarity(student_map, members), centre_similarity(teacher_map, members))


class IFVDLoss(MapLoss):
    """Intra-class feature variation distillation (Wang et al., ECCV 2020) without its adversarial part.

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and the labels brought to h×w (nearest):

        m_p(F) = cosine of the vector at position p and the mean over all positions of its class in its image
        L      = Σ_p (m_p(S) - m_p(T))² / (B·h·w)

    Positions without a class add 0, and are counted in the divisor, as in the authors' code; a batch without any label
    gives 0. The gradient also flows through the student's centres. Nothing needs equal channels, so the loss has no
    weights of its own. A teacher map of another size is resized bilinearly. float32 inside, also under autocast.

    The published training adds a discriminator, as SKD's does. It is left out, for the reason given there (SKDLoss).

    Published weights: 20 beside KD with 1 (`loss: kd+ifvd`), for the head's last map (`student_layer: head.features`,
    likewise for the teacher).

    Relations: SKDLoss compares similarities of all pairs of positions and reads no labels; this compares one number
    per position. It costs 2·B·K·(Cs + Ct)·h·w multiplications forward, for K classes.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        weight: at least 0.
        ignore_index: label that belongs to no class, as for the task loss; labels outside 0 ... K - 1 (K the
            number of the student's classes) never do. None where there is none.

    Raises:
        ValueError: a bad value; in `forward`, no labels, or maps of the wrong channels or batch.
    """

    citation = """@inproceedings{wang2020intra,
  title     = {Intra-class Feature Variation Distillation for Semantic Segmentation},
  author    = {Wang, Yukang and Zhou, Wei and Jiang, Tao and Bai, Xiang and Xu, Yongchao},
  booktitle = {European Conference on Computer Vision},
  year      = {2020}
}"""

    def __init__(
        self, student_channels: int, teacher_channels: int, *, weight: float = 20.0, ignore_index: int | None = 255
    ) -> None:
        super().__init__(student_channels, teacher_channels)
        self.weight = weight
        self.ignore_index = ignore_index
        self.check_arguments(self.get_config_dict())
        self.check_channels()

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("weight", arguments["weight"])
        check_ignore_index(arguments["ignore_index"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"ifvd": weight · L}`, or `{}` for weight 0."""
        if self.weight == 0:
            return {}
        check_labels("ifvd", labels, student.logits)
        with without_autocast(student.logits):
            maps = self.maps("ifvd", student, teacher)
            members = class_members(labels, student.logits.shape[1], maps[0].shape[-2:], self.ignore_index)
            return {"ifvd": self.weight * variation_error(*maps, members)}
