"""DIST: the teacher's class probabilities matched up to scale and shift."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_positive, check_weight
from ..ops.precision import without_autocast
from .base import DistillationLoss
from .map_loss import comparable_logits

# added to the product of two norms: lets classes fade that neither network gives any probability
EPSILON = 1e-8
# of a vector's norm: what is left of a constant one after float32 has rounded its mean
ROUNDING = 1e-6


def pearson_distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Mean of `1 - ρ` over all vectors along `dim`; ρ is Pearson's correlation coefficient.

    Vectors that do not vary correlate with nothing: they count as 1 and get no gradient.

    Args:
        student: `(N, K)` float32 or float64.
        teacher: the same.
        dim: the dimension that holds a vector's components.

    Returns:
        A scalar in [0, 2], 0 where each vector is a positive multiple of the other plus a constant.
    """
    student, teacher = _deviations(student, dim), _deviations(teacher, dim)
    norms = student.norm(dim=dim) * teacher.norm(dim=dim)
    return 1 - ((student * teacher).sum(dim) / (norms + EPSILON)).mean()


def _deviations(vectors: Tensor, dim: int) -> Tensor:
    """From the mean; all zeros, without gradient, for a vector of equal components."""
    deviations = vectors - vectors.mean(dim, keepdim=True)
    constant = deviations.norm(dim=dim, keepdim=True) <= ROUNDING * vectors.norm(dim=dim, keepdim=True)
    return deviations.masked_fill(constant, 0.0)


def relation_terms(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The inter-class and the intra-class relation, each times T².

    Args:
        student_logits: `(B, K, h, w)` float32 or float64.
        teacher_logits: the same.
        temperature: T, above 0.

    Returns:
        Two scalars, both 0 where the class distributions agree at every pixel.
    """
    student, teacher = (
        F.softmax(logits / temperature, dim=1).movedim(1, -1).flatten(0, 2)  # (B·h·w, K)
        for logits in (student_logits, teacher_logits)
    )
    inter, intra = pearson_distance(student, teacher, dim=1), pearson_distance(student, teacher, dim=0)
    return temperature**2 * inter, temperature**2 * intra


class DISTLoss(DistillationLoss):
    """Relations between and within classes (Huang et al., NeurIPS 2022).

    With Y = softmax(logits / T) as a matrix of B·h·w pixels by K classes, and ρ Pearson's correlation:

        L_inter = T² · mean over pixels  of 1 - ρ(Ys[i, :], Yt[i, :])
        L_intra = T² · mean over classes of 1 - ρ(Ys[:, k], Yt[:, k])

    Compares the networks' own low-resolution logits; the teacher's are resized bilinearly (align_corners=False) where
    their size differs. Every pixel counts, ignored labels included. On several processes each one takes L_intra over
    the pixels of its own images. float32 inside, also under autocast.
    Distils logits; published for Cityscapes: the paper's β = γ = 1, T = 1, as far as we know (not checked).

    Relations: KDLoss asks for equal probabilities; this for the same up to scale and shift, which is easier on a small
    student of a strong teacher.

    Args:
        inter_weight: β, at least 0.
        intra_weight: γ, at least 0.
        temperature: T, above 0.

    Raises:
        ValueError: a bad value; in `forward`, logits of different batch or class counts, or of a single class.
    """

    citation = """@inproceedings{huang2022knowledge,
  title     = {Knowledge Distillation from A Stronger Teacher},
  author    = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""

    def __init__(self, *, inter_weight: float = 1.0, intra_weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.inter_weight, self.intra_weight, self.temperature = inter_weight, intra_weight, temperature
        self.check_arguments(self.get_config_dict())

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("inter_weight", arguments["inter_weight"])
        check_weight("intra_weight", arguments["intra_weight"])
        check_positive("temperature", arguments["temperature"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"dist_inter": β·L_inter, "dist_intra": γ·L_intra}`; `labels` are not used."""
        weights = {"dist_inter": self.inter_weight, "dist_intra": self.intra_weight}
        if not any(weights.values()):
            return {}
        with without_autocast(student.logits):
            logits = comparable_logits("dist", student.logits, teacher.logits)
            if logits[0].shape[1] < 2:
                raise ValueError("the loss 'dist' correlates class probabilities and needs 2 classes; there is 1.")
            terms = dict(zip(weights, relation_terms(*logits, self.temperature), strict=True))
            return {name: weights[name] * term for name, term in terms.items() if weights[name] > 0}
