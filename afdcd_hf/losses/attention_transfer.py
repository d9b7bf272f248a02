"""Attention transfer: where the network is active, whatever the channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_weight
from ..ops.precision import without_autocast
from .map_loss import MapLoss, unit_vectors


def attention(feature_map: Tensor) -> Tensor:
    """Each image's mean of squares over the channels, as a vector of length 1 over its positions.

    Args:
        feature_map: `(B, C, h, w)` float32 or float64.

    Returns:
        `(B, h·w)`, at least 0; all zeros for an image whose map is zero.
    """
    return unit_vectors(feature_map.square().mean(dim=1).flatten(start_dim=1), dim=1)


def attention_error(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """`Σ (attention(S) - attention(T))² / (B·h·w)`.

    Args:
        student_map: `(B, Cs, h, w)` float32 or float64.
        teacher_map: `(B, Ct, h, w)`.

    Returns:
        A scalar, 0 where the two attend to the same positions.
    """
    return F.mse_loss(attention(student_map), attention(teacher_map))


class AttentionTransferLoss(MapLoss):
    """Attention maps of the teacher (Zagoruyko and Komodakis, ICLR 2017), the activation-based kind.

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        Q(F) = Σ_c F_c² / C, flattened to (B, h·w) and divided by its L2 norm, image by image
        L    = Σ (Q(S) - Q(T))² / (B·h·w)

    Nothing needs equal channels, so the loss has no weights of its own. The maps' signs and scales do not matter. As Q
    has length 1, L is at most 2 / (h·w): hence the large weight. A teacher map of another size is resized bilinearly
    before Q. Every position counts. float32 inside, also under autocast.

    The paper writes the norm of the difference, its authors' code and this the mean of squares.

    Published weights: 10 000 beside KD with 1 (`loss: kd+at`), for the head's last map (`student_layer:
    head.features`, likewise for the teacher). As L falls with h·w, a weight belongs to one size of map.

    Relations: CWDLoss compares where each channel is active, this where all of them together are.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        weight: at least 0.

    Raises:
        ValueError: a bad value; in `forward`, maps of the wrong channels or batch.
    """

    citation = """@inproceedings{zagoruyko2017attention,
  title     = {Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via
               Attention Transfer},
  author    = {Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle = {International Conference on Learning Representations},
  year      = {2017},
  eprint    = {1612.03928},
  archivePrefix = {arXiv}
}"""

    def __init__(self, student_channels: int, teacher_channels: int, *, weight: float = 10_000.0) -> None:
        super().__init__(student_channels, teacher_channels)
        self.weight = weight
        self.check_arguments(self.get_config_dict())
        self.check_channels()

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        check_weight("weight", arguments["weight"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute `{"at": weight · L}`, or `{}` for weight 0; `labels` are not used."""
        if self.weight == 0:
            return {}
        with without_autocast(student.logits):
            return {"at": self.weight * attention_error(*self.maps("at", student, teacher))}
