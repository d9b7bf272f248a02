"""A quick look at student and teacher, before hours are spent on learning."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from torch import nn
from torch.utils.data import Dataset, Subset

from ..evaluation.segmenter import evaluate_segmenter
from .precision import evaluation_settings

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

_IMAGES = {"cuda": 16, "cpu": 4}  # on a CPU, a large teacher may take ten seconds an image
_LEAST_ABOVE_CHANCE = 0.1

Rows = Sequence[Mapping[str, Any]]


class TeacherScore(NamedTuple):
    """A teacher's mean IoU on a few images, and that of predicting their most frequent class everywhere."""

    mean_iou: float
    chance: float
    images: int

    @property
    def is_near_chance(self) -> bool:
        """Less than a tenth of the way from chance to perfection."""
        return not self.mean_iou >= self.chance + _LEAST_ABOVE_CHANCE * (1 - self.chance)


def try_student(trainer: SegmentationTrainer) -> None:
    """Segment an evaluation image of each dataset now, as the evaluation at the end of the run will.

    Raises:
        ValueError: the student cannot.
    """
    for rows in evaluated_rows(trainer):
        size = rows[0]["image"].size[::-1]
        try:
            _scores(trainer, trainer.student, rows, trainer.args.world_size)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # of shapes, or out of memory
            raise ValueError(
                f"The student cannot segment an evaluation image of {size[0]}x{size[1]} pixels (height x width), so it "
                f"could not be scored: {' '.join(str(error).split())}"
            ) from error


def score_teacher(trainer: SegmentationTrainer) -> TeacherScore | None:
    """The teacher's mean IoU on a few evaluation images; None where none is labelled. Call it on all processes."""
    datasets = evaluated_rows(trainer)
    if not datasets:
        return None
    count = max(_IMAGES.get(trainer.args.device.type, 4), trainer.args.world_size)
    scores = _scores(trainer, trainer.teacher, datasets[0], count)
    return _score(scores["confusion_matrix"], scores["num_images"]) if scores["num_pixels"] else None


def report_teacher(trainer: SegmentationTrainer) -> None:
    """Log the teacher's score, as a warning where it is near chance."""
    score = score_teacher(trainer)
    if score is None:
        return
    text = "The teacher reaches %.1f %% mean IoU on %d evaluation images"
    values = 100 * score.mean_iou, score.images, 100 * score.chance
    if score.is_near_chance:
        text += ", hardly more than the %.1f %% of predicting the most frequent class everywhere: is it trained, on "
        text += "these classes in this order, and does it get its images as it was trained on them?"
        logger.warning(text, *values)
    else:
        logger.info(text + " (the most frequent class everywhere: %.1f %%)", *values)


def evaluated_rows(trainer: SegmentationTrainer) -> list[Rows]:
    """The evaluation sets that are not empty."""
    given = trainer.eval_dataset
    datasets = list(given.values()) if isinstance(given, dict) else [given] if given is not None else []
    return [rows for rows in datasets if len(rows)]


def ignore_index_of(trainer: SegmentationTrainer) -> int:
    """What the student's evaluation does not count."""
    return getattr(getattr(trainer.student, "config", None), "semantic_loss_ignore_index", 255)


def evenly_spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread, with the first and the last."""
    return sorted({int(index) for index in np.linspace(0, length - 1, min(count, length)).round()})


def _scores(trainer: SegmentationTrainer, model: nn.Module, rows: Rows, count: int) -> dict[str, Any]:
    few: Any = Subset(cast(Dataset, rows), evenly_spread(len(rows), count))  # rows are enough for it
    return evaluate_segmenter(
        model,
        few,
        processor=trainer.processing_class,
        num_labels=trainer._num_labels(),
        ignore_index=ignore_index_of(trainer),
        settings=evaluation_settings(trainer.args),
        progress=False,
    )


def _score(counts: np.ndarray, images: int) -> TeacherScore:
    truth, hits = counts.sum(1), np.diag(counts)
    union = truth + counts.sum(0) - hits
    # Predicting class c everywhere has the IoU truth[c] / all for c, and 0 for the other classes that occur.
    chance = truth.max() / truth.sum() / np.count_nonzero(truth)
    return TeacherScore(float(np.mean(hits[union > 0] / union[union > 0])), float(chance), images)
