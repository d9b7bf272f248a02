"""The contract of a distillation loss."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..features import Activations
from .random_source import RandomSource


class DistillationLoss(nn.Module):
    """Compares what a student and a teacher computed for the same images.

    A loss owns its hyper-parameters and the weights that train beside the student, never a network. It returns named
    scalars that are already weighted; whoever trains adds them up and logs them.

    A subclass stores each constructor argument under its own name. Options are keyword-only; the two channel counts
    of a loss that needs feature maps come first, by position.

    Attributes:
        needs_feature_map: whether `forward` reads `feature_map`, not only `logits`.
        map_weight_option: for a loss with a term on maps and one on logits, the option that weighs the former; at 0
            the loss needs no map.
        logits_weight_option: likewise for logits; with several pairs of maps the term on logits is there once.
        citation: BibTeX of the paper.
    """

    needs_feature_map: ClassVar[bool] = False
    map_weight_option: ClassVar[str | None] = None
    logits_weight_option: ClassVar[str | None] = None
    citation: ClassVar[str]

    _source: RandomSource | None = None

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether `forward` may read the teacher's logits; where no loss does, the teacher runs no further than its
        maps."""
        return True

    @property
    def generator(self) -> torch.Generator | None:
        """Where the loss draws random numbers from, on the device of the maps; None for torch's global generator.

        Setting it sets it for the losses inside too. It is no part of the state dict or the configuration.
        """
        return None if self._source is None else self._source.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        source = None if generator is None else RandomSource(generator)
        for module in self.modules():
            if isinstance(module, DistillationLoss):
                module._source = source

    @property
    def citations(self) -> list[str]:
        """BibTeX of every paper that the loss comes from."""
        return [self.citation]

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: logits `(B, K, h, w)` and, where needed, the map `(B, Cs, h', w')`; gradients flow into these.
            teacher: the same of the teacher; never receives a gradient.
            labels: `(B, H, W)` int64, for losses that read them.

        Returns:
            One scalar per term; terms of weight 0 are left out.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward.")

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        """Raise ValueError for a bad option; takes all keyword-only arguments, and needs no channel counts."""

    def get_config_dict(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return {name: getattr(self, name) for name in self._argument_names()}

    @classmethod
    def _argument_names(cls) -> list[str]:
        return list(inspect.signature(cls).parameters)
