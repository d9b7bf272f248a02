"""Knowledge distillation on logits."""

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
        with without_autocast(student.logits):
            logits = comparable_logits("kd", student.logits, teacher.logits)
            return {"kd": self.weight * kd_divergence(*logits, self.temperature)}
