"""Knowledge distillation on logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_flag, check_positive, optional
from ..ops.precision import in_float32
from .base import DistillationLoss, given

# of LSKD, where its authors' code adds it to a pixel's standard deviation
EPSILON = 1e-7


@in_float32
def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`T² / (B·h·w) · Σ_pixels KL(softmax(teacher / T) ‖ softmax(student / T))`, for two `(B, K, h, w)`."""
    teacher = F.softmax(teacher_logits / temperature, dim=1)  # (B, K, h, w)
    student = F.log_softmax(student_logits / temperature, dim=1)  # (B, K, h, w)
    per_pixel = F.kl_div(student, teacher, reduction="none").sum(dim=1)  # (B, h, w)
    return temperature**2 * per_pixel.mean()


def standardized(logits: Tensor) -> Tensor:
    """Less the mean over the classes and divided by their standard deviation (of K - 1), at each pixel."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + EPSILON)


class KDLoss(DistillationLoss):
    """Class distributions of the teacher at each pixel as soft labels (Hinton et al., 2015).

        L = T² / (B·h·w) · Σ_pixels KL(softmax(teacher / T) ‖ softmax(student / T))

    Compares the models' own low-resolution logits, not the upsampled ones, as the released Af-DCD code does. Every
    pixel counts, ignored labels included.

    With `standardize=True` both models' logits are standardised over the classes at each pixel first: LSKD (Sun et al.,
    CVPR 2024, arXiv 2403.01427), in which the student need not match the teacher's scale. Its weight for segmentation
    has not been published.

    Relations: AfDcdLoss compares feature maps; the paper adds both.

    Args:
        temperature: T; None for 1, or with `standardize` for LSKD's base temperature 2.
        standardize: compare standardised logits.
    """

    name = "kd"
    logits_terms = {"kd": "weight"}
    checks = {"standardize": check_flag, "temperature": optional(check_positive)}
    citation = """@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
}"""
    lskd_citation = """@inproceedings{sun2024logit,
  title     = {Logit Standardization in Knowledge Distillation},
  author    = {Sun, Shangquan and Ren, Wenqi and Li, Jingzhi and Wang, Rui and Cao, Xiaochun},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024}
}"""

    def __init__(self, *, weight: float = 1.0, temperature: float | None = None, standardize: bool = False) -> None:
        if temperature is None:
            temperature = 2.0 if standardize else 1.0
        super().__init__(**given(locals()))

    @property
    def citations(self) -> list[str]:
        return [self.citation, self.lskd_citation] if self.standardize else [self.citation]

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        ours, theirs = self.logits(student, teacher)
        if self.standardize:
            if ours.shape[1] < 2:
                raise ValueError("kd.standardize divides by the spread over classes and needs 2 classes; there is 1.")
            ours, theirs = standardized(ours), standardized(theirs)
        return {"kd": kd_divergence(ours, theirs, self.temperature)}
