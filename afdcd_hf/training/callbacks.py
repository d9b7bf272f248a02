"""What happens beside the training loop."""

from __future__ import annotations

import logging

from transformers import TrainerCallback

from ..data.samples import TrainingSamples

logger = logging.getLogger(__name__)


class EpochCallback(TrainerCallback):
    """Tells the training samples which epoch it is, so that augmentation differs from epoch to epoch.

    accelerate does this for iterable datasets and samplers only. Persistent data workers see it too: the number lies in
    shared memory.
    """

    def __init__(self, samples: TrainingSamples):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Called by the Trainer, also for the epoch in which a run is resumed."""
        self.samples.set_epoch(int(state.epoch or 0))


def report_first_terms(terms: dict[str, float]) -> None:
    """Log every weighted loss term of the first batch, and warn of one that drowns or is drowned by the task loss.

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
                "The weighted loss term %r is %.4g on the first batch, %.3g times the task loss (%.4g): it will %s. "
                "Change its weight; a loss that has the option reduction='mean' has weights that carry over to other "
                "teachers and crops.",
                name, value, value / task, task, "drown the labels" if abs(value) > task else "hardly count",
            )  # fmt: skip
