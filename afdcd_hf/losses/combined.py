"""Several distillation losses as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from afdcd_hf.features import Activations
from afdcd_hf.losses.base import DistillationLoss


class LossSum(DistillationLoss):
    """Computes several losses on the same activations and merges their terms.

    Args:
        losses: name to loss; the weights of each are saved as `losses.<name>.*`.
    """

    def __init__(self, losses: Mapping[str, DistillationLoss]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)

    @property
    def needs_feature_map(self) -> bool:
        """Whether any of the losses does."""
        return any(loss.needs_feature_map for loss in self.losses.values())

    @property
    def citations(self) -> list[str]:
        """BibTeX of all of them."""
        return [text for loss in self.losses.values() for text in loss.citations]

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the terms of all losses; ValueError when two of them use the same name."""
        merged: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            terms = loss(student, teacher, labels)
            clash = sorted(merged.keys() & terms.keys())
            if clash:
                raise ValueError(f"the loss {name!r} returns the term {clash[0]!r}, and so does one before it.")
            merged.update(terms)
        return merged

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments of each loss under its name."""
        return {name: loss.get_config_dict() for name, loss in self.losses.items()}
