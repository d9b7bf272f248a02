"""`class_weights="balanced"`: counted from the training labels, once, before the first step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate.utils import reduce

from ..data.samples import TrainingSamples
from ..data.statistics import count_labels
from ..losses.task import TaskLoss
from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)


def settle_class_weights(args: SegmentationTrainingArguments, train_dataset: Any) -> None:
    """Replace "balanced" in the arguments by numbers, rounded so that a recipe repeats them; others stay.

    Several processes share the labels.

    Raises:
        ValueError: the labels cannot be counted, do not fit the number of classes, or no task loss takes weights.
        OSError: a label cannot be read.
    """
    if args.class_weights != "balanced":
        return
    TaskLoss(kind=args.task_loss, class_weights=[1.0])  # refused where they have no effect, before all is read
    if not isinstance(train_dataset, TrainingSamples):
        raise ValueError(
            f"class_weights='balanced' counts the labels of TrainingSamples, and train_dataset is a "
            f"{type(train_dataset).__name__}: give one number for each class, such as "
            "afdcd_hf.data.count_labels(rows).balanced_weights.tolist()."
        )
    samples, mine = train_dataset, range(args.process_index, len(train_dataset), args.world_size)
    counted = count_labels(
        samples.dataset,
        samples.num_labels,
        samples.ignore_index,
        indices=mine,
        progress=not args.disable_tqdm and args.process_index == 0,
    )
    counted.pixels[:] = reduce(torch.from_numpy(counted.pixels).to(args.device), "sum").cpu().numpy()
    args.class_weights = counted.balanced_weights.round(6).tolist()
    if args.process_index == 0:
        logger.info("class_weights, balanced over %d labels: %s", len(samples), args.class_weights)
