"""What is looked at before the first step of a run, so that it does not fail, or come to nothing, hours later."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list

from ..data.checks import check_classes
from ..data.samples import TrainingSamples
from ..evaluation.segmenter import EvaluationSamples
from .disk_space import check_room, check_writable, in_steps
from .distributed import images_per_step
from .first_look import Rows, evaluated_rows, evenly_spread, ignore_index_of, report_teacher, try_student

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

_IMAGES = 16  # of each part
_FEW_CLASSES = 5  # so few should all occur in these


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
        _on_main_process(trainer, lambda: _look(trainer, class_names))
        try_student(trainer)
        if getattr(trainer, "teacher", None) is not None:
            report_teacher(trainer)
    logger.info("Preflight checks took %.1f s; --preflight false skips them.", time.perf_counter() - start)


def _on_main_process(trainer: SegmentationTrainer, look: Callable[[], None]) -> None:
    told: list[Any] = [None]
    if trainer.is_world_process_zero():
        try:
            look()
        except (OSError, ValueError) as error:
            told[0] = (OSError if isinstance(error, OSError) else ValueError, str(error))
    if trainer.args.world_size > 1:
        broadcast_object_list(told, from_process=0)
    if told[0] is not None:
        kind, message = told[0]
        raise kind(message)


def _look(trainer: SegmentationTrainer, class_names: Sequence[str]) -> None:
    check_writable(Path(trainer.args.output_dir))
    check_classes(trainer.student, class_names)
    processor, num_labels, ignored = trainer.processing_class, len(class_names), ignore_index_of(trainer)
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
    for rows in evaluated_rows(trainer):
        logger.info(check_images("evaluation", rows, processor, class_names, ignored))


def check_images(
    part: str,
    rows: Rows,
    processor: Any,
    class_names: Sequence[str],
    ignore_index: int = 255,
    *,
    trains: bool = False,
) -> str:
    """Read some images, evenly spread over a dataset, and their labels.

    Args:
        part: "training" or "evaluation", for messages.
        rows: with PIL images in `image` and `label`.
        processor: image processor of the model.
        class_names: in the order of their ids.
        ignore_index: label that does not count.
        trains: whether every image needs a label, and the classes that occur are questioned.

    Returns:
        A line on what was seen.

    Raises:
        OSError: a file cannot be read; the error names it, and says how many more there are.
        ValueError: a label that does not fit its image, holds other values than 0..K-1 and `ignore_index`, is missing
            though needed, or labels of which nothing, or a single class, is left to learn.
    """
    samples = EvaluationSamples(rows, processor, len(class_names), ignore_index)
    indices, seen, problems = evenly_spread(len(rows), _IMAGES), [], []
    for index in indices:
        try:
            sample = samples[index]
            if sample.label is None and trains:
                raise ValueError(f"{sample.name} has no label, but is to be trained on: is this the right split?")
            seen.append((sample.size, set() if sample.label is None else set(torch.unique(sample.label).tolist())))
        except (OSError, ValueError) as error:
            problems.append(error)
    if problems:
        more = f" ({len(problems)} of the {len(indices)} {part} images looked at are like this.)"
        kind = OSError if isinstance(problems[0], OSError) else ValueError
        raise kind(f"{problems[0]}{more if len(problems) > 1 else ''}") from problems[0]
    values: set[int] = set().union(*(labels for _, labels in seen))
    _question(part, values, len(indices), class_names, ignore_index, trains)
    sizes = sorted({size for size, _ in seen}, key=lambda size: size[0] * size[1])
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
    args = trainer.args
    batch = images_per_step(args)
    steps_per_epoch = max(1, num_images // batch)
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * steps_per_epoch)
    passes = steps * batch / num_images
    if args.max_seconds is not None:
        logger.info("%g s of training steps of %d images, with the schedule of %d", args.max_seconds, batch, steps)
    else:
        logger.info("%d steps of %d images: %.1f passes over %d training images", steps, batch, passes, num_images)
    line, warning = check_room(trainer, steps, steps_per_epoch)
    logger.info(line)
    if warning is not None:
        logger.warning(warning)
    if args.get_warmup_steps(steps) >= steps:
        raise ValueError(
            f"warmup_steps={args.warmup_steps:g} must be less than the run's {steps} steps: the learning rate would "
            "still be rising when it ends."
        )
    if args.save_strategy.value == "steps" and in_steps(args.save_steps, steps) >= steps >= 1000:
        logger.warning("save_steps=%s: nothing is saved before the end, step %d.", args.save_steps, steps)
