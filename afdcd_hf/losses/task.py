"""The task loss: cross entropy on the labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..models.modeling_afdcd import segmentation_cross_entropy


class TaskLoss(nn.Module):
    """L_task of method and baseline alike: cross entropy at the label's size, plus the auxiliary head's.

    Args:
        weight: factor of the main term.
        aux_weight: factor of the auxiliary term, for networks that return `aux_logits`.
        ignore_index: label that is not counted.
        align_corners: how logits are upsampled to the label's size; True for our networks, as in the released code.
    """

    def __init__(
        self, weight: float = 1.0, aux_weight: float = 0.4, ignore_index: int = 255, align_corners: bool = True
    ):
        super().__init__()
        self.weight = weight
        self.aux_weight = aux_weight
        self.settings = (ignore_index, align_corners)

    @classmethod
    def for_model(cls, model: nn.Module, weight: float, aux_weight: float) -> TaskLoss:
        """Take ignore index and upsampling from the network's configuration (255 and False where it says nothing)."""
        config = getattr(model, "config", None)
        ignore_index = getattr(config, "semantic_loss_ignore_index", 255)
        return cls(weight, aux_weight, ignore_index, getattr(config, "align_corners", False))

    def forward(self, outputs: Any, labels: Tensor) -> dict[str, Tensor]:
        """Weighted terms "task" and, where `outputs.aux_logits` is there, "auxiliary".

        Args:
            outputs: anything with `.logits` `(B, K, h, w)`.
            labels: `(B, H, W)` int64.
        """
        terms = {"task": self.weight * segmentation_cross_entropy(outputs.logits, labels, *self.settings)}
        aux_logits = getattr(outputs, "aux_logits", None)
        if aux_logits is not None:
            terms["auxiliary"] = self.aux_weight * segmentation_cross_entropy(aux_logits, labels, *self.settings)
        return terms
