"""Channel-wise distillation: where each channel is active."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_positive, check_weight
from ..ops.precision import without_autocast
from .map_loss import MapLoss, comparable_logits


def channel_wise_divergence(student_map: Tensor, teacher_map: Tensor, temperature: float = 4.0) -> Tensor:
    """`T² / (B·C) · Σ_channels KL(softmax(teacher / T) ‖ softmax(student / T))`, the softmax over the positions.

    Args:
        student_map: `(B, C, h, w)` float32 or float64.
        teacher_map: the same.
        temperature: T, above 0.

    Returns:
        A scalar, 0 where the channels of the two differ by a constant each.
    """
    student, teacher = (
        F.log_softmax(each.flatten(start_dim=2) / temperature, dim=2) for each in (student_map, teacher_map)
    )  # (B, C, h·w)
    per_channel = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=2)  # (B, C)
    return temperature**2 * per_channel.mean()


class CWDLoss(MapLoss):
    """Channel-wise divergence (Shu et al., ICCV 2021), on maps, on logits, or on both.

    For a pair of maps or logits S, T `(B, C, h, w)` and temperature τ:

        φ(F)_c = softmax over the h·w positions of F_c / τ
        L      = τ² / (B·C) · Σ_c KL(φ(T)_c ‖ φ(S)_c)

    On maps S is align(S): a 1×1 convolution with bias that trains beside the student, or the identity where the
    channels are equal. On logits a channel is a class. A teacher's map or logits of another size are resized
    bilinearly. Every position counts. float32 inside, also under autocast.

    Published weights: 50 for the head's last map (`student_layer: head.features`, likewise for the teacher), 3 for
    logits, τ = 4 for both, beside KD with 1 (`loss: kd+cwd`). A constant added to a channel changes nothing; a map
    twice as large in value is one at half the temperature, so weights and τ belong to one kind of map.

    Relations: KDLoss normalises over classes at each pixel; this normalises over pixels in each channel.
    AttentionTransferLoss puts all channels into one map first.

    Args:
        student_channels: of the map; may be None where `map_weight` is 0.
        teacher_channels: likewise.
        map_weight: at least 0.
        logits_weight: at least 0.
        map_temperature: τ for maps, above 0.
        logits_temperature: τ for logits, above 0.

    Raises:
        ValueError: a bad value; in `forward`, maps of the wrong channels or batch, or logits of different classes.
    """

    map_weight_option = "map_weight"
    logits_weight_option = "logits_weight"
    citation = """@inproceedings{shu2021channel,
  title     = {Channel-wise Knowledge Distillation for Dense Prediction},
  author    = {Shu, Changyong and Liu, Yifan and Gao, Jianfei and Yan, Zheng and Shen, Chunhua},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year      = {2021},
  eprint    = {2011.13256},
  archivePrefix = {arXiv}
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
        super().__init__(student_channels, teacher_channels)
        self.map_weight, self.logits_weight = map_weight, logits_weight
        self.map_temperature, self.logits_temperature = map_temperature, logits_temperature
        self.check_arguments(self.get_config_dict())
        if map_weight > 0:  # weights without a gradient would stop DistributedDataParallel
            self.align = self.new_align()

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("map_weight", arguments["map_weight"])
        check_weight("logits_weight", arguments["logits_weight"])
        check_positive("map_temperature", arguments["map_temperature"])
        check_positive("logits_temperature", arguments["logits_temperature"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"cwd_map": ..., "cwd_logits": ...}`, weighted; `labels` are not used."""
        terms: dict[str, Tensor] = {}
        with without_autocast(student.logits):
            if self.map_weight > 0:
                student_map, teacher_map = self.maps("cwd", student, teacher)
                divergence = channel_wise_divergence(self.align(student_map), teacher_map, self.map_temperature)
                terms["cwd_map"] = self.map_weight * divergence
            if self.logits_weight > 0:
                logits = comparable_logits("cwd", student.logits, teacher.logits)
                terms["cwd_logits"] = self.logits_weight * channel_wise_divergence(*logits, self.logits_temperature)
        return terms
