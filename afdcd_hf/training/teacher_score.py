"""A quick look at how good the teacher is, before hours are spent on learning from it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset

from ..evaluation.segmenter import evaluate_segmenter
from .precision import evaluation_settings

logger = logging.getLogger(__name__)

_IMAGES, _SECONDS = 8, 15.0
_LEAST_ABOVE_CHANCE = 0.1

Rows = Sequence[Mapping[str, Any]]


class TeacherScore(NamedTuple):
    """A quick look at a teacher.

    Attributes:
        mean_iou: on the images looked at.
        chance: the mean IoU, on the same images, of predicting their most frequent class everywhere.
        images: how many there were.
    """

    mean_iou: float
    chance: float
    images: int

    @property
    def is_near_chance(self) -> bool:
        """Less than a tenth of the way from chance to perfection."""
        return not self.mean_iou >= self.chance + _LEAST_ABOVE_CHANCE * (1 - self.chance)


def score_teacher(trainer) -> TeacherScore | None:
    """The teacher's mean IoU on a few evaluation images; None where none is labelled.

    Call it on all processes. On a slow machine fewer images are looked at, but at least one per process.
    """
    datasets = evaluated_rows(trainer)
    if not datasets:
        return None
    rows, counts, done, start = datasets[0], 0, 0, time.perf_counter()
    indices = evenly_spread(len(rows), _IMAGES)
    while done < len(indices):
        chosen = indices[done : done + trainer.args.world_size]
        scores = evaluate_segmenter(
            trainer.teacher,
            Subset(rows, chosen),
            processor=trainer.processing_class,
            num_labels=trainer._num_labels(),
            ignore_index=ignore_index_of(trainer),
            settings=evaluation_settings(trainer.args),
            progress=False,
        )
        counts, done = counts + scores["confusion_matrix"], done + len(chosen)
        goes_on = [time.perf_counter() - start < _SECONDS]
        if trainer.args.world_size > 1:
            broadcast_object_list(goes_on, from_process=0)
        if not goes_on[0]:
            break
    return _score(counts, done) if counts.sum() else None


def _score(counts: np.ndarray, images: int) -> TeacherScore:
    truth, hits = counts.sum(1), np.diag(counts)
    union = truth + counts.sum(0) - hits
    # Predicting class c everywhere has the IoU truth[c] / all for c, and 0 for the other classes that occur.
    chance = truth.max() / truth.sum() / np.count_nonzero(truth)
    return TeacherScore(float(np.mean(hits[union > 0] / union[union > 0])), float(chance), images)


def report_teacher(trainer) -> None:
    """Log the teacher's score, as a warning where it is near chance."""
    score = score_teacher(trainer)
    if score is None:
        return
    values = 100 * score.mean_iou, score.images, 100 * score.chance
    text = "The teacher reaches %.1f %% mean IoU on %d evaluation images"
    if score.is_near_chance:
        logger.warning(
            f"{text}, hardly more than the %.1f %% of predicting the most frequent class everywhere: is it trained, on "
            "these classes in this order, and does it get its images as it was trained on them?",
            *values,
        )
    else:
        logger.info(f"{text} (the most frequent class everywhere: %.1f %%)", *values)


def evaluated_rows(trainer) -> list[Rows]:
    """The evaluation sets that are not empty."""
    given = trainer.eval_dataset
    datasets = list(given.values()) if isinstance(given, dict) else [given] if given is not None else []
    return [rows for rows in datasets if len(rows)]


def ignore_index_of(trainer) -> int:
    """What the student's evaluation does not count."""
    return getattr(getattr(trainer.student, "config", None), "semantic_loss_ignore_index", 255)


def evenly_spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread, with the first and the last."""
    return sorted({int(index) for index in np.linspace(0, length - 1, min(count, length)).round()})
