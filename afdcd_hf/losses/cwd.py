"""Channel-wise distillation: where each channel is active."""

from __future__ import annotations

from torch import Tensor

from ..features import Activations
from ..ops.checks import check_positive
from ..ops.precision import in_float32
from .base import MapLoss, given, kl_divergences


@in_float32
def channel_wise_divergence(student_map: Tensor, teacher_map: Tensor, temperature: float = 4.0) -> Tensor:
    """`T² / (B·C) · Σ_channels KL(softmax(teacher / T) ‖ softmax(student / T))`, the softmax over the positions of two
    `(B, C, h, w)`."""
    return temperature**2 * kl_divergences(student_map.flatten(2), teacher_map.flatten(2), temperature, dim=2).mean()


class CWDLoss(MapLoss):
    """Channel-wise divergence (Shu et al., ICCV 2021), on maps, on logits, or on both.

    For a pair of maps or logits S, T `(B, C, h, w)` and temperature τ:

        φ(F)_c = softmax over the h·w positions of F_c / τ
        L      = τ² / (B·C) · Σ_c KL(φ(T)_c ‖ φ(S)_c)

    On maps S is align(S): a 1×1 convolution with bias that trains beside the student, or the identity where the
    channels are equal. On logits a channel is a class. Every position counts.

    The defaults are the published ones, for the head's last map, beside KD. C is Ct, as in the authors' code; CIRKD's
    divides by Cs, where a 50 acts like a 100 here for 128 → 256 channels. A constant added to a channel changes
    nothing; a map twice as large in value is one at half the temperature: weights and τ belong to one kind of map.

    Relations: KDLoss normalises over classes at each pixel; this normalises over pixels in each channel.
    AttentionTransferLoss puts all channels into one map first.
    """

    name = "cwd"
    map_terms = {"cwd_map": "map_weight"}
    logits_terms = {"cwd_logits": "logits_weight"}
    checks = {"map_temperature": check_positive, "logits_temperature": check_positive}
    citation = """@inproceedings{shu2021channel,
  title     = {Channel-wise Knowledge Distillation for Dense Prediction},
  author    = {Shu, Changyong and Liu, Yifan and Gao, Jianfei and Yan, Zheng and Shen, Chunhua},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2021}
}"""

    def __init__(
        self,
        student_channels: int | None,
        teacher_channels: int | None,
        *,
        map_weight: float = 50.0,
        logits_weight: float = 3.0,
        map_temperature: float = 4.0,
        logits_temperature: float = 4.0,
    ) -> None:
        super().__init__(**given(locals()))
        if map_weight > 0:
            self.align = self.new_align()

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        terms = {}
        if self.map_weight > 0:
            student_map, teacher_map = self.maps(student, teacher)
            terms["cwd_map"] = channel_wise_divergence(self.align(student_map), teacher_map, self.map_temperature)
        if self.logits_weight > 0:
            logits = self.logits(student, teacher)
            terms["cwd_logits"] = channel_wise_divergence(*logits, self.logits_temperature)
        return terms
