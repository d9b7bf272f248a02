"""Checks before the first step of a run, so that it does not fail, or turn out useless, hours later."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from ..atomic_io import check_can_write
from ..data.checks import check_classes
from ..data.loading import evenly_spaced
from ..data.samples import TrainingSamples
from ..data.streaming import StreamedSamples, is_stream
from ..evaluation.segmenter import EvaluationSamples
from ..model_utils import ignore_index_of
from .distributed import images_per_step
from .options import plain_value

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

_IMAGES = 16  # checked per dataset
_TEACHER_IMAGES = {"cuda": 16, "cpu": 4}  # on a CPU, a large teacher may take ten seconds per image
_FEW_CLASSES = 5  # up to this many classes should all occur in the checked images

Rows = Sequence[Mapping[str, Any]]


def preflight(trainer: SegmentationTrainer, class_names: Sequence[str]) -> None:
    """Check disk, images, labels, class names (in the order of their ids), student and teacher, and log the findings.

    The main process reads the files; all processes run student and teacher and stop with the same error: OSError for
    disk and files, otherwise ValueError. Random states are left unchanged.
    """
    start = time.perf_counter()
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        problem: list[Any] = [None]
        if trainer.is_world_process_zero():
            try:
                _check_data(trainer, class_names)
            except (OSError, ValueError) as error:
                problem = [(OSError if isinstance(error, OSError) else ValueError)(str(error))]
        if trainer.args.world_size > 1:
            broadcast_object_list(problem, from_process=0)
        if problem[0] is not None:
            raise problem[0]
        for index, rows in enumerate(_evaluation_sets(trainer)):
            _try_student(trainer, rows)
            if index == 0 and getattr(trainer, "teacher_has_logits", False):
                _report_teacher(trainer, rows)
    logger.info("Preflight checks took %.1f s; --preflight false skips them.", time.perf_counter() - start)


def _check_data(trainer: SegmentationTrainer, class_names: Sequence[str]) -> None:
    check_classes(trainer.student, class_names)
    processor, num_labels, ignored = trainer.processing_class, len(class_names), ignore_index_of(trainer.student)
    if 0 <= ignored < num_labels:
        raise ValueError(
            f"The model's semantic_loss_ignore_index={ignored} is the id of class {class_names[ignored]!r}, which "
            f"would never be trained or scored: choose a number outside 0..{num_labels - 1}, such as -100."
        )
    samples = trainer.train_dataset
    if isinstance(samples, (TrainingSamples, StreamedSamples)):
        rows = _first_rows(samples.dataset) if isinstance(samples, StreamedSamples) else samples.dataset
        logger.info(check_images("training", rows, processor, class_names, samples.ignore_index, trains=True))
    if isinstance(samples, TrainingSamples) and samples.unlabelled is not None:
        logger.info(check_images("unlabelled", samples.unlabelled, processor, class_names, samples.ignore_index))
    _check_schedule(trainer)
    for rows in _evaluation_sets(trainer):
        logger.info(check_images("evaluation", rows, processor, class_names, ignored))


def check_images(
    part: str, rows: Rows, processor: Any, class_names: Sequence[str], ignore_index: int = 255, *, trains: bool = False
) -> str:
    """Read some images and labels, evenly spread over rows with `image` and `label`, and return a summary line.

    Errors name the first image that is unreadable or has an invalid label or, with `trains`, no label.
    """
    samples = EvaluationSamples(rows, processor, len(class_names), ignore_index)
    indices, sizes, values = evenly_spaced(len(rows), _IMAGES), [], set()
    for sample in (samples[index] for index in indices):
        if sample.label is not None:
            values.update(torch.unique(sample.label).tolist())
        elif trains:
            raise ValueError(f"{sample.name} has no label, but training needs one: is this the right split?")
        sizes.append(sample.size)
    _check_ids(part, values, len(indices), class_names, ignore_index, trains)
    sizes.sort(key=lambda size: size[0] * size[1])
    span = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    return (
        f"checked {len(indices)} of {len(rows)} {part} images: {span} pixels (height x width), "
        f"{len(values - {ignore_index})} of {len(class_names)} classes occur"
    )


def _check_ids(part: str, values: set[int], count: int, class_names: Sequence[str], ignored: int, trains: bool) -> None:
    if not values and part == "evaluation":
        raise ValueError(f"None of the {count} evaluation images checked has a label to score: is eval_split right?")
    if values == {ignored}:
        raise ValueError(
            f"No pixel of the {count} {part} images checked is labelled: all are {ignored}, which is ignored. Are "
            "these the right labels, and is label_map (or labels_as) right?"
        )
    missing = [index for index in range(len(class_names)) if index not in values]
    if not (trains and missing and values):
        return
    names = ", ".join(f"{index} ({class_names[index]})" for index in missing[:3])
    hint = f"If 255 stands for one of them, map it: label_map '{{\"255\": {missing[0]}}}'."
    if len(values - {ignored}) == 1 and ignored in values:
        raise ValueError(
            f"The {count} {part} images checked hold a single class and {ignored}, which is ignored. Class {names} "
            f"never occurs, so there is nothing to learn. {hint}"
        )
    if len(values) == 1:
        logger.warning("The %d %s images checked hold only class %d.", count, part, *values)
    elif ignored in values and len(class_names) <= _FEW_CLASSES:
        logger.warning("In %d %s images class %s never occurs, while %d does. %s", count, part, names, ignored, hint)


def _check_schedule(trainer: SegmentationTrainer) -> None:
    args, batch, steps = trainer.args, images_per_step(trainer.args), trainer.args.max_steps
    if not is_stream(trainer.train_dataset):  # a stream has no known length, but always max_steps
        count = len(trainer.train_dataset)
        steps = steps if steps > 0 else int(args.num_train_epochs * max(1, count // batch))
        passes = steps * batch / count
        logger.info("%d steps of %d images: %.1f epochs of %d training images", steps, batch, passes, count)
    check_disk_space(trainer, steps)
    args.check_warmup(steps)
    if args.save_strategy.value == "steps" and _in_steps(args.save_steps, steps) >= steps >= 1000:
        logger.warning("save_steps=%s: nothing is saved before the end, step %d.", args.save_steps, steps)


def check_writable(folder: Path) -> None:
    """Check by writing, because permission bits do not tell (root, read-only mounts); OSError if it fails."""
    try:
        check_can_write(folder / "file")
    except OSError as error:
        reason = (error.strerror or str(error)).partition(";")[0]
        raise OSError(f"output_dir={str(folder)!r} cannot be written: {reason}. Give another --output_dir.") from error


def check_disk_space(trainer: SegmentationTrainer, steps: int) -> None:
    """Log the size of a checkpoint; warn if there is no room for all of them, and raise OSError if not even for one."""
    args, folder, size = trainer.args, Path(trainer.args.output_dir), checkpoint_bytes(trainer)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"{folder}: {_mib(free)} are free, but one checkpoint takes {_mib(size)}. Free some disk space.")
    logger.info("A checkpoint takes %s; %s are free in %s", _mib(size), _mib(free), folder)
    by_steps = steps // _in_steps(args.save_steps, steps) if args.save_strategy.value == "steps" else 0
    count = min(by_steps, args.save_total_limit or by_steps)
    if (count + 1) * size > free:  # the oldest checkpoint is removed only after the new one is written
        logger.warning("All checkpoints will take about %s: set save_total_limit.", _mib((count + 1) * size))


def checkpoint_bytes(trainer: SegmentationTrainer) -> int:
    """Estimate a checkpoint's size: student, loss, averaged weights, and the optimizer's one or two states a weight."""
    args, module, scored = trainer.args, trainer.trained_module, trainer.evaluated_student
    tensors = [] if scored is trainer.student and not args.save_only_model else list(scored.state_dict().values())
    if not args.save_only_model:
        kept = 1 if plain_value(args.optim).startswith(("sgd", "rmsprop", "lion", "adafactor", "adagrad")) else 2
        trained = [each for each in module.parameters() if each.requires_grad]
        tensors += [*module.state_dict().values(), *(kept * trained)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def _in_steps(interval: float, steps: int) -> int:
    """Convert an interval to steps; transformers takes a number below 1 as a share of the run."""
    return max(1, math.ceil(interval * steps) if interval < 1 else int(interval))


def _mib(number: float) -> str:
    return f"{number / 2**20:.1f} MiB"


def _try_student(trainer: SegmentationTrainer, rows: Rows) -> None:
    """Segment an evaluation image as the evaluation at the end of the run will."""
    width, height = rows[0]["image"].size
    try:
        _score(trainer, trainer.student, rows, trainer.args.world_size)
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # wrong shapes, or out of memory
        raise ValueError(
            f"The student cannot segment an evaluation image of {height}x{width} pixels (height x width), so it "
            f"could not be scored: {' '.join(str(error).split())}"
        ) from error


def _report_teacher(trainer: SegmentationTrainer, rows: Rows) -> None:
    """Log the teacher's mean IoU on a few images; a warning if it is less than a tenth of the way from chance to 1."""
    count = max(_TEACHER_IMAGES.get(trainer.args.device.type, 4), trainer.args.world_size)
    scores = _score(trainer, trainer.teacher, rows, count)
    if not scores["num_pixels"]:
        return
    # Predicting class c everywhere has the IoU truth[c] / all for c, and 0 for the other classes that occur.
    truth = scores["confusion_matrix"].sum(1)
    chance = truth.max() / truth.sum() / np.count_nonzero(truth)
    near_chance = scores["mean_iou"] < chance + 0.1 * (1 - chance)
    text = "The teacher reaches %.1f %% mean IoU on %d evaluation images (predicting the most frequent class: %.1f %%)"
    if near_chance:
        text += ". Is it trained, on these classes in this order, and does its image processor match its training?"
    level = logging.WARNING if near_chance else logging.INFO
    logger.log(level, text, 100 * scores["mean_iou"], scores["num_images"], 100 * chance)


def _score(trainer: SegmentationTrainer, model: nn.Module, rows: Rows, count: int) -> dict[str, Any]:
    few: Any = Subset(cast(Dataset, rows), evenly_spaced(len(rows), count))  # Subset accepts any sequence
    return trainer.score(model, few, ignore_index=ignore_index_of(trainer.student), progress=False)


def _evaluation_sets(trainer: SegmentationTrainer) -> list[Rows]:
    """Return the evaluation sets that are not empty."""
    given: Any = trainer.eval_dataset
    datasets = given.values() if isinstance(given, dict) else [] if given is None else [given]
    return [rows for rows in (_first_rows(data) if is_stream(data) else data for data in datasets) if len(rows)]


def _first_rows(stream: Any) -> Rows:
    """Return the first images of a stream, which preflight checks."""
    if not (rows := list(islice(stream, _IMAGES))):
        raise ValueError("The stream is empty: check dataset and split.")
    return rows
