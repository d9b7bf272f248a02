"""Several distillation losses as one: different ones on the same maps, or one kind on several pairs of maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..features import Activations
from .base import DistillationLoss


class _Several(DistillationLoss):
    losses: Any  # a ModuleDict or a ModuleList

    @property
    def parts(self) -> list[DistillationLoss]:
        return list(self.losses.values() if isinstance(self.losses, nn.ModuleDict) else self.losses)

    @property
    def reads_teacher_logits(self) -> bool:
        return any(loss.reads_teacher_logits for loss in self.parts)

    @property
    def citations(self) -> list[str]:
        return list(dict.fromkeys(text for loss in self.parts for text in loss.citations))


class LossSum(_Several):
    """Computes several losses on the same activations and merges their terms.

    Args:
        losses: name to loss; the weights of each are saved as `losses.<name>.*`.
    """

    def __init__(self, losses: Mapping[str, DistillationLoss]) -> None:
        super().__init__()
        self.losses = nn.ModuleDict(losses)
        self.needs_feature_map = any(loss.needs_feature_map for loss in self.parts)

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


class LossPerPair(_Several):
    """Compares several pairs of maps, each with a loss and weights of its own.

    The first loss sees the first map of student and teacher, the second the second, and so on. Its terms carry the
    number of the pair: `feature_1`, `contrast_1`, `feature_2`, ...

    Args:
        losses: one per pair, in the order of the layers; the weights of each are saved as `losses.<index>.*`.
    """

    needs_feature_map = True

    def __init__(self, losses: Sequence[DistillationLoss]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the terms of all pairs; ValueError when there are more or fewer maps than losses."""
        seen = {"student": student.of_each_layer(), "teacher": teacher.of_each_layer()}
        for role, each in seen.items():
            if len(each) != len(self.losses):
                raise ValueError(
                    f"there are {len(self.losses)} losses for as many pairs of maps, but {len(each)} map(s) of the "
                    f"{role}; name {len(self.losses)} layers with {role}_layer."
                )
        merged: dict[str, Tensor] = {}
        for number, (loss, *pair) in enumerate(zip(self.losses, *seen.values(), strict=True), 1):
            merged.update({f"{name}_{number}": term for name, term in loss(*pair, labels).items()})
        return merged

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments of each loss, in the order of the pairs."""
        return {"pairs": [loss.get_config_dict() for loss in self.parts]}
