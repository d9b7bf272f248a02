"""What is looked at before the first step of a run, so that it does not fail, or come to nothing, hours later."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import Dataset, Subset

from ..data.checks import check_classes
from ..data.samples import TrainingSamples
from ..data.streaming import StreamedSamples, is_stream
from ..evaluation.segmenter import EvaluationSamples
from .disk_space import check_room, check_writable, in_steps
from .distributed import images_per_step

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

_IMAGES = 16  # of each part
_TEACHERS_IMAGES = {"cuda": 16, "cpu": 4}  # on a CPU, a large teacher may take ten seconds an image
_FEW_CLASSES = 5  # so few should all occur in these

Rows = Sequence[Mapping[str, Any]]


def preflight(trainer: SegmentationTrainer, class_names: Sequence[str]) -> None:
    """Check folder, disk, images, labels, class names, student and teacher; a few lines of the log tell what was found.

    The main process reads the files; all processes run student and teacher together, and all stop with the same error.
    The random states are afterwards what they were: a run is the same with and without.

    Args:
        trainer: of the run that is about to begin.
        class_names: the data's, in the order of their ids.

    Raises:
        OSError: the output folder cannot be written, the disk is too full, or an image cannot be read.
        ValueError: labels that do not fit their images or the number of classes, another number of classes, or a
            student that cannot segment an evaluation image.
    """
    start = time.perf_counter()
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        problem: list[Any] = [None]
        if trainer.is_world_process_zero():
            try:
                _look(trainer, class_names)
            except (OSError, ValueError) as error:
                problem = [(OSError if isinstance(error, OSError) else ValueError, str(error))]
        if trainer.args.world_size > 1:
            broadcast_object_list(problem, from_process=0)
        if problem[0] is not None:
            kind, message = problem[0]
            raise kind(message)
        _try_student(trainer)
        if getattr(trainer, "teacher_has_logits", False):
            _report_teacher(trainer)
    logger.info("Preflight checks took %.1f s; --preflight false skips them.", time.perf_counter() - start)


def _look(trainer: SegmentationTrainer, class_names: Sequence[str]) -> None:
    check_writable(Path(trainer.args.output_dir))
    check_classes(trainer.student, class_names)
    processor, num_labels, ignored = trainer.processing_class, len(class_names), _ignore_index(trainer)
    if 0 <= ignored < num_labels:
        raise ValueError(
            f"The model's semantic_loss_ignore_index={ignored} is the id of class {class_names[ignored]!r}, which "
            f"would never be learned or scored: choose a number outside 0..{num_labels - 1}, such as -100 or 255."
        )
    if isinstance(trainer.train_dataset, TrainingSamples):
        rows, train_ignored = trainer.train_dataset.dataset, trainer.train_dataset.ignore_index
        logger.info(check_images("training", rows, processor, class_names, train_ignored, trains=True))
        if (more := trainer.train_dataset.unlabelled) is not None:
            logger.info(check_images("unlabelled", more, processor, class_names, train_ignored))
        _check_schedule(trainer, len(rows))
    if isinstance(trainer.train_dataset, StreamedSamples):
        rows, train_ignored = _first(trainer.train_dataset.dataset), trainer.train_dataset.ignore_index
        logger.info(check_images("training", rows, processor, class_names, train_ignored, trains=True))
    for rows in _evaluated(trainer):
        logger.info(check_images("evaluation", rows, processor, class_names, ignored))


def check_images(
    part: str, rows: Rows, processor: Any, class_names: Sequence[str], ignore_index: int = 255, *, trains: bool = False
) -> str:
    """Read some images and labels, evenly spread over rows with `image` and `label`; return a line on what was seen.

    Raises:
        OSError: a file cannot be read; the error names it, and says how many more there are.
        ValueError: a label that does not fit its image, holds other values than 0..K-1 and `ignore_index` or, where
            the model `trains` on it, is missing; labels of which nothing, or a single class, is left to learn.
    """
    samples = EvaluationSamples(rows, processor, len(class_names), ignore_index)
    indices, sizes, problems = evenly_spread(len(rows), _IMAGES), [], []
    values: set[int] = set()
    for index in indices:
        try:
            sample = samples[index]
            if sample.label is not None:
                values.update(torch.unique(sample.label).tolist())
            elif trains:
                raise ValueError(f"{sample.name} has no label, but is to be trained on: is this the right split?")
            sizes.append(sample.size)
        except (OSError, ValueError) as error:
            problems.append(error)
    if problems:
        more = f" ({len(problems)} of the {len(indices)} {part} images looked at are like this.)"
        kind = OSError if isinstance(problems[0], OSError) else ValueError
        raise kind(f"{problems[0]}{more if len(problems) > 1 else ''}") from problems[0]
    _question(part, values, len(indices), class_names, ignore_index, trains)
    sizes.sort(key=lambda size: size[0] * size[1])
    span = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    return (
        f"{len(indices)} of {len(rows)} {part} images are readable: {span} pixels (height x width), "
        f"{len(values - {ignore_index})} of {len(class_names)} classes occur"
    )


def _question(part: str, values: set[int], count: int, class_names: Sequence[str], ignored: int, trains: bool) -> None:
    """Whether the labels can mean what they seem to: ids of classes, and a value for pixels that do not count."""
    if values == {ignored}:
        raise ValueError(
            f"Not one pixel of {count} {part} images is labelled: all are {ignored}, which is ignored. Are these the "
            "right labels, and is label_map (or labels_as) right?"
        )
    missing = [index for index in range(len(class_names)) if index not in values]
    if not (trains and missing and values):
        return
    names = ", ".join(f"{index} ({class_names[index]})" for index in missing[:3])
    hint = f"If {ignored} stands for one of them, say so: label_map '{{\"{ignored}\": {missing[0]}}}'."
    if len(values - {ignored}) == 1 and ignored in values:
        raise ValueError(
            f"{count} {part} images hold a single class and {ignored}, which is ignored; class {names} never occurs, "
            f"so there is nothing to learn. {hint}"
        )
    if len(values) == 1:
        logger.warning("%d %s images hold class %d alone.", count, part, *values)
    elif ignored in values and len(class_names) <= _FEW_CLASSES:
        logger.warning("In %d %s images class %s never occurs, while %d does. %s", count, part, names, ignored, hint)


def _check_schedule(trainer: SegmentationTrainer, num_images: int) -> None:
    args, batch = trainer.args, images_per_step(trainer.args)
    steps_per_epoch = max(1, num_images // batch)
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * steps_per_epoch)
    if args.max_seconds is not None:
        logger.info("%g s of training steps of %d images, with the schedule of %d", args.max_seconds, batch, steps)
    else:
        passes = steps * batch / num_images
        logger.info("%d steps of %d images: %.1f passes over %d training images", steps, batch, passes, num_images)
    check_room(trainer, steps, steps_per_epoch)
    args.check_warmup(steps)
    if args.save_strategy.value == "steps" and in_steps(args.save_steps, steps) >= steps >= 1000:
        logger.warning("save_steps=%s: nothing is saved before the end, step %d.", args.save_steps, steps)


def _try_student(trainer: SegmentationTrainer) -> None:
    """Segment an evaluation image of each dataset now, as the evaluation at the end of the run will."""
    for rows in _evaluated(trainer):
        size = rows[0]["image"].size[::-1]
        try:
            _scores(trainer, trainer.student, rows, trainer.args.world_size)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # of shapes, or out of memory
            raise ValueError(
                f"The student cannot segment an evaluation image of {size[0]}x{size[1]} pixels (height x width), so it "
                f"could not be scored: {' '.join(str(error).split())}"
            ) from error


def _report_teacher(trainer: SegmentationTrainer) -> None:
    """Log the teacher's mean IoU on a few images; a warning less than a tenth of the way from chance to perfection."""
    for rows in _evaluated(trainer)[:1]:
        count = max(_TEACHERS_IMAGES.get(trainer.args.device.type, 4), trainer.args.world_size)
        scores = _scores(trainer, trainer.teacher, rows, count)
        if not scores["num_pixels"]:
            return
        # Predicting class c everywhere has the IoU truth[c] / all for c, and 0 for the other classes that occur.
        truth = scores["confusion_matrix"].sum(1)
        chance = truth.max() / truth.sum() / np.count_nonzero(truth)
        text = "The teacher reaches %.1f %% mean IoU on %d evaluation images"
        values = 100 * scores["mean_iou"], scores["num_images"], 100 * chance
        if scores["mean_iou"] >= chance + 0.1 * (1 - chance):
            logger.info(text + " (the most frequent class everywhere: %.1f %%)", *values)
        else:
            text += ", hardly more than the %.1f %% of predicting the most frequent class everywhere: is it trained, "
            text += "on these classes in this order, and does it get its images as it was trained on them?"
            logger.warning(text, *values)


def _scores(trainer: SegmentationTrainer, model: nn.Module, rows: Rows, count: int) -> dict[str, Any]:
    few: Any = Subset(cast(Dataset, rows), evenly_spread(len(rows), count))  # rows are enough for it
    return trainer.score(model, few, ignore_index=_ignore_index(trainer), progress=False)


def _evaluated(trainer: SegmentationTrainer) -> list[Rows]:
    """The evaluation sets that are not empty."""
    given = trainer.eval_dataset
    datasets = list(given.values()) if isinstance(given, dict) else [given] if given is not None else []
    return [rows for rows in (_first(one) if is_stream(one) else one for one in datasets) if len(rows)]


def _first(stream: Any) -> Rows:
    """What is looked at of a stream; none at all is an error, since it could neither be trained on nor scored."""
    if not (rows := list(islice(stream, _IMAGES))):
        raise ValueError("The stream is empty: are dataset and split right?")
    return rows


def _ignore_index(trainer: SegmentationTrainer) -> int:
    return getattr(getattr(trainer.student, "config", None), "semantic_loss_ignore_index", 255)


def evenly_spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly spread, with the first and the last."""
    return sorted({int(index) for index in np.linspace(0, length - 1, min(count, length)).round()})
