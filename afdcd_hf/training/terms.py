"""The loss terms of a training: their means for the log, and a look at how they compare in the first batch."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

logger = logging.getLogger(__name__)


class TermMeans:
    """Sums of the loss terms since the last line of the log. A term counts 0 in a step that does not have it.

    Args:
        report: log the terms of the first batch of all.
    """

    def __init__(self, *, report: bool = False) -> None:
        self._report = report
        self.load({})

    def add(self, terms: Mapping[str, Tensor], share: float) -> None:
        """Take in the detached terms of a batch that is so large a share of an optimizer step."""
        if self._report:
            self._report = False
            report_first_terms({name: term.item() for name, term in terms.items()})
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + share * term
        self._steps += share

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over ranks and steps, and start afresh; every process has to call this."""
        if not self._steps:
            return {}
        means = accelerator.reduce(torch.stack(list(self._sums.values())) / self._steps, "mean").tolist()
        named = dict(zip(self._sums, means, strict=True))
        self.load({})
        return named

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to end with the same line of the log."""
        return {**self._sums, "": torch.tensor(self._steps, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; nothing at all to start afresh."""
        self._sums = {name: total for name, total in state.items() if name}
        self._steps = state[""].item() if state else 0.0


def report_first_terms(terms: dict[str, float]) -> None:
    """Log every weighted loss term of the first batch, and warn of one that dominates or is negligible.

    The published weights belong to sums over ResNet-101's maps at one crop size: with another teacher or crop they are
    easily off by orders of magnitude, and nothing else would show it.
    """
    logger.info("Weighted loss terms of the first batch: %s", ", ".join(f"{k} {v:.4g}" for k, v in terms.items()))
    task = terms.get("task", 0.0)
    if not task > 0:
        return
    for name, value in terms.items():
        if name not in ("task", "auxiliary") and not 0.01 <= abs(value) / task <= 20:
            logger.warning(
                "The weighted loss term %r is %.4g on the first batch, %.3g times the task loss (%.4g): it %s the "
                "task loss. Change its weight; a loss that has the option reduction='mean' has weights that carry over "
                "to other teachers and crops.",
                name, value, value / task, task, "dominates" if abs(value) > task else "is negligible next to",
            )  # fmt: skip
