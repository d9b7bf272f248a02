"""FitNet: the teacher's map itself as a hint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_weight
from ..ops.precision import without_autocast
from .map_loss import MapLoss


def hint_error(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """`Σ (S - T)² / (B·C·h·w)`, the mean squared error.

    Args:
        student_map: `(B, C, h, w)` float32 or float64.
        teacher_map: the same.

    Returns:
        A scalar, 0 where the maps are equal.
    """
    return F.mse_loss(student_map, teacher_map)


class FitNetLoss(MapLoss):
    """Plain mimicking of the teacher's map (Romero et al., ICLR 2015).

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        L = Σ (align(S) - T)² / (B·Ct·h·w)

    `align` is a 1×1 convolution with bias, or the identity where Cs = Ct; it trains beside the student. The paper
    sums (times ½) where this is a mean, and uses the term to initialise the student before distilling logits; here
    it is there from the first step to the last, as the segmentation papers that compare with it do.
    A teacher map of another size is resized bilinearly. Every position counts. float32 inside, also under autocast.

    Published weights: 1 to 10 for the mean over the head's last map (`student_layer: head.features`, likewise for the
    teacher). Over other maps, and over the backbone's last, which is the default here, they have to be found.

    Relations: AfDcdLoss with `contrast_weight=0` hides positions first and lets a network of 3×3 convolutions restore
    them; CWDLoss compares where a channel is active and leaves out how strongly.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        weight: at least 0.

    Raises:
        ValueError: a bad value; in `forward`, maps of the wrong channels or batch.
    """

    citation = """@inproceedings{romero2015fitnets,
  title     = {FitNets: Hints for Thin Deep Nets},
  author    = {Romero, Adriana and Ballas, Nicolas and Ebrahimi Kahou, Samira and Chassang, Antoine and
               Gatta, Carlo and Bengio, Yoshua},
  booktitle = {International Conference on Learning Representations},
  year      = {2015},
  eprint    = {1412.6550},
  archivePrefix = {arXiv}
}"""

    def __init__(self, student_channels: int, teacher_channels: int, *, weight: float = 1.0) -> None:
        super().__init__(student_channels, teacher_channels)
        self.weight = weight
        self.check_arguments(self.get_config_dict())
        self.check_channels()
        if weight > 0:  # weights without a gradient would stop DistributedDataParallel
            self.align = self.new_align()

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("weight", arguments["weight"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"fitnet": weight · L}`, or `{}` for weight 0; `labels` are not used."""
        if self.weight == 0:
            return {}
        with without_autocast(student.logits):
            student_map, teacher_map = self.maps("fitnet", student, teacher)
            return {"fitnet": self.weight * hint_error(self.align(student_map), teacher_map)}
