"""Attention transfer: where the model is active, whatever the channel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..features import Activations
from ..ops.precision import in_float32
from .base import MapLoss, given, unit_vectors


def attention(feature_map: Tensor) -> Tensor:
    """Each image's mean of squares over the channels of `(B, C, h, w)`, as a vector `(B, h·w)` of length 1, or 0."""
    return unit_vectors(feature_map.square().mean(dim=1).flatten(start_dim=1), dim=1)


@in_float32
def attention_error(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """`Σ (attention(S) - attention(T))² / (B·h·w)` of `(B, Cs, h, w)` and `(B, Ct, h, w)`."""
    return F.mse_loss(attention(student_map), attention(teacher_map))


class AttentionTransferLoss(MapLoss):
    """Attention maps of the teacher (Zagoruyko and Komodakis, ICLR 2017), the activation-based kind.

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        Q(F) = Σ_c F_c² / C, flattened to (B, h·w) and divided by its L2 norm, image by image
        L    = Σ (Q(S) - Q(T))² / (B·h·w)

    Nothing needs equal channels, so the loss has no weights of its own. The maps' signs and scales do not matter. As Q
    has length 1, L is at most 2 / (h·w): hence the large weight, which belongs to one size of map. A teacher map of
    another size is resized before Q. Every position counts. The paper writes the norm of the difference, its authors'
    code and this the mean of squares. The default weight is the published one, for the head's last map, beside KD.

    Relations: CWDLoss compares where each channel is active, this where all of them together are.
    """

    name = "at"
    map_terms = {"at": "weight"}
    citation = """@inproceedings{zagoruyko2017attention,
  title     = {Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via
               Attention Transfer},
  author    = {Zagoruyko, Sergey and Komodakis, Nikos},
  booktitle = {International Conference on Learning Representations},
  year      = {2017}
}"""

    def __init__(self, student_channels: int | None, teacher_channels: int | None, *, weight: float = 10_000.0) -> None:
        super().__init__(**given(locals()))

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        return {"at": attention_error(*self.maps(student, teacher))}
