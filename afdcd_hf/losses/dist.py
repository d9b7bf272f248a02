"""DIST: the teacher's class probabilities matched up to scale and shift."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_positive
from ..ops.precision import in_float32
from .base import DistillationLoss, given

# added to the product of two norms: lets classes fade that neither model gives any probability
EPSILON = 1e-8
# of a vector's norm: what is left of a constant one after float32 has rounded its mean
ROUNDING = 1e-6


def pearson_distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Mean of `1 - ρ` over all vectors along `dim` of two `(N, K)`; ρ is Pearson's correlation coefficient.

    In [0, 2]; 0 where each vector is a positive multiple of the other plus a constant. Vectors that do not vary
    correlate with nothing: they count as 1 and get no gradient.
    """
    student, teacher = _deviations(student, dim), _deviations(teacher, dim)
    norms = student.norm(dim=dim) * teacher.norm(dim=dim)
    return 1 - ((student * teacher).sum(dim) / (norms + EPSILON)).mean()


def _deviations(vectors: Tensor, dim: int) -> Tensor:
    deviations = vectors - vectors.mean(dim, keepdim=True)
    constant = deviations.norm(dim=dim, keepdim=True) <= ROUNDING * vectors.norm(dim=dim, keepdim=True)
    return deviations.masked_fill(constant, 0.0)


@in_float32
def relation_terms(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The inter-class and the intra-class relation of two `(B, K, h, w)`, each times T²; 0 where they agree."""
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

    Compares the models' own low-resolution logits. Every pixel counts, ignored labels included. On several processes
    each one takes L_intra over the pixels of its own images. The defaults are those published for Cityscapes.

    Relations: KDLoss asks for equal probabilities; this for the same up to scale and shift, which is easier on a small
    student of a strong teacher.
    """

    name = "dist"
    logits_terms = {"dist_inter": "inter_weight", "dist_intra": "intra_weight"}
    checks = {"temperature": check_positive}
    citation = """@inproceedings{huang2022knowledge,
  title     = {Knowledge Distillation from A Stronger Teacher},
  author    = {Huang, Tao and You, Shan and Wang, Fei and Qian, Chen and Xu, Chang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}"""

    def __init__(self, *, inter_weight: float = 1.0, intra_weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(**given(locals()))

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(student, teacher)
        if logits[0].shape[1] < 2:
            raise ValueError("the loss 'dist' correlates class probabilities and needs 2 classes; there is 1.")
        return dict(zip(self.logits_terms, relation_terms(*logits, self.temperature), strict=True))
