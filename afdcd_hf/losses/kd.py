"""Knowledge distillation on logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses.base import DistillationLoss
from afdcd_hf.ops.checks import check_positive, check_weight
from afdcd_hf.ops.precision import at_least_float32, without_autocast


def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`T² / (B·h·w) · Σ_pixels KL(softmax(teacher / T) ‖ softmax(student / T))`, summed over the classes.

    Args:
        student_logits: `(B, K, h, w)` float32 or float64.
        teacher_logits: the same.
        temperature: T, above 0.

    Returns:
        A scalar, 0 where the class distributions agree at every pixel.
    """
    teacher = F.softmax(teacher_logits / temperature, dim=1)  # (B, K, h, w)
    student = F.log_softmax(student_logits / temperature, dim=1)  # (B, K, h, w)
    per_pixel = F.kl_div(student, teacher, reduction="none").sum(dim=1)  # (B, h, w)
    return temperature**2 * per_pixel.mean()


class KDLoss(DistillationLoss):
    """Class distributions of the teacher at each pixel as soft labels (Hinton et al., 2015).

    Compares the networks' own low-resolution logits, not the upsampled ones, as the released Af-DCD code does. The
    teacher's are resized bilinearly (align_corners=False) where their size differs. Every pixel counts, ignored
    labels included. float32 inside, also under autocast.

    Relations: AfDcdLoss compares feature maps; the paper adds both.

    Args:
        weight: λ_kd, at least 0.
        temperature: T, above 0.

    Raises:
        ValueError: a bad value; in `forward`, logits of different batch or class counts.
    """

    needs_feature_map = False
    citation = """@article{hinton2015distilling,
  title   = {Distilling the Knowledge in a Neural Network},
  author  = {Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal = {arXiv preprint arXiv:1503.02531},
  year    = {2015}
}"""

    def __init__(self, *, weight: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature
        self.check_arguments(self.get_config_dict())

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("weight", arguments["weight"])
        check_positive("temperature", arguments["temperature"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"kd": weight · L_kd}`, or `{}` for weight 0; `labels` are not used."""
        if self.weight == 0:
            return {}
        _check_logits(student.logits, teacher.logits)
        with without_autocast(student.logits):
            student_logits = at_least_float32(student.logits)
            teacher_logits = at_least_float32(teacher.logits.detach())
            if teacher_logits.shape != student_logits.shape:
                size = student_logits.shape[-2:]
                teacher_logits = F.interpolate(teacher_logits, size, mode="bilinear", align_corners=False)
            return {"kd": self.weight * kd_divergence(student_logits, teacher_logits, self.temperature)}


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} must both be "
            "(B, K, h, w) of the same batch."
        )
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"the student has {student.shape[1]} classes and the teacher {teacher.shape[1]}; the loss 'kd' needs the "
            "same classes in both: use a teacher trained on this data, or leave 'kd' out of the loss."
        )
