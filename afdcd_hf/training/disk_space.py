"""Whether a run's files can be written, and how much room they take."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .option_values import plain_value

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer
    from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)

# Tensors of a parameter's size that an optimizer keeps for it; by the start of transformers' name of the optimizer.
_OPTIMIZER_STATES = {"sgd": 0, "rmsprop": 1, "lion": 1, "adafactor": 1, "adagrad": 1}


def check_writable(folder: Path) -> None:
    """Write a file into the folder and remove it: permission bits alone say too little (root, read-only mounts).

    Raises:
        OSError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="_writable-") as file:
            file.write(b"can this be written?")
            file.flush()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"output_dir={str(folder)!r} cannot be written: {reason}. Give another --output_dir.") from error


def check_room(trainer: SegmentationTrainer, steps: int, steps_per_epoch: int) -> None:
    """Log what the run's checkpoints take, and warn where not all of them will find room.

    Raises:
        OSError: if not even one of them does.
    """
    folder = Path(trainer.args.output_dir)
    student, checkpoint = checkpoint_bytes(trainer)
    there = len(list(folder.glob("checkpoint-*")))
    # One more for a moment: a checkpoint is written whole before the oldest is removed.
    count = max(0, number_of_checkpoints(trainer.args, steps, steps_per_epoch) - there) + bool(trainer.args.should_save)
    free, needed = shutil.disk_usage(folder).free, count * checkpoint + student
    if free < max(student, checkpoint):
        raise OSError(
            f"{folder}: {_size(free)} are free, but one checkpoint takes {_size(checkpoint)}. Make room, or give an "
            "--output_dir on another disk."
        )
    logger.info("A checkpoint takes %s; %s are free in %s", _size(checkpoint), _size(free), folder)
    if needed > free:
        logger.warning(
            "All checkpoints of this run will take about %s, but %s are free in %s: set save_total_limit or larger "
            "save_steps, or the run ends when the disk is full.", _size(needed), _size(free), folder,
        )  # fmt: skip


def checkpoint_bytes(trainer: SegmentationTrainer) -> tuple[int, int]:
    """Bytes of the saved student alone, and of a checkpoint with everything that resuming takes."""
    student = _bytes(trainer.evaluated_student.state_dict().values())
    if trainer.args.save_only_model:
        return student, student
    module = trainer.trained_module
    everything = _bytes(module.state_dict().values())  # with the weights of the loss
    if trainer.evaluated_student is not trainer.student:
        everything += student  # the averaged weights, beside the raw ones
    trained = _bytes(parameter for parameter in module.parameters() if parameter.requires_grad)
    name = plain_value(trainer.args.optim)
    states = next((count for start, count in _OPTIMIZER_STATES.items() if name.startswith(start)), 2)  # 2: Adam's
    states += name == "sgd" and "momentum" in (trainer.args.optim_args or "")
    return student, everything + states * trained


def number_of_checkpoints(args: SegmentationTrainingArguments, steps: int, steps_per_epoch: int) -> int:
    """How many a run of so many optimizer steps keeps at most at the same time."""
    strategy = plain_value(args.save_strategy)
    by_epoch = strategy == "epoch" or (strategy == "best" and args.eval_strategy == "epoch")
    interval = args.save_steps if strategy == "steps" else args.eval_steps or steps
    every = steps_per_epoch if by_epoch else in_steps(interval, steps)
    count, limit = 0 if strategy == "no" else math.ceil(steps / every), args.save_total_limit
    # The best one is kept in addition where the limit leaves room for the newest only.
    return min(count, max(limit, 2) if args.load_best_model_at_end else limit) if limit else count


def in_steps(interval: float, steps: int) -> int:
    """transformers takes a number below 1 for a share of the run."""
    return max(1, math.ceil(interval * steps) if interval < 1 else int(interval))


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


def _size(number: float) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.1f} MiB"
