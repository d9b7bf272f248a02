"""What a run saves: the student alone, and in checkpoints what a resumed run needs to end with the same weights."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from ..redaction import without_tokens
from .checkpoints import (
    MARKER_NAME,
    STATE_NAME,
    WRITE_ERRORS,
    checkpoint_folder,
    files_written_whole,
    mark_complete,
    why_not_written,
)
from .distributed import whole_tensors
from .guard import check_finite_weights
from .resuming import check_same_run, facts_of, load_fitting

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME, RAW_STUDENT_NAME = "distillation.safetensors", "raw_student.safetensors"


def write_student(
    folder: Path, student: nn.Module, weights: dict[str, Tensor] | None, processor: Any, args: TrainingArguments
) -> None:
    """Write a student with its image processor and the run's settings.

    Unlike transformers' own method it writes no pickled `training_args.bin`: the settings go to a JSON file.

    Args:
        folder: exists.
        student: a module; with its configuration if it is a `PreTrainedModel`.
        weights: in place of the module's own.
        processor: image processor, or None.
        args: of the run.
    """
    if isinstance(student, PreTrainedModel):
        student.save_pretrained(folder, state_dict=weights)
    else:
        save_tensors(weights if weights is not None else student.state_dict(), folder / "model.safetensors")
    if processor is not None:
        processor.save_pretrained(folder)
    settings = folder / "training_args.json"
    settings.write_text(without_tokens(json.dumps(args.to_dict(), indent=2, default=str)) + "\n")
    for path in folder.glob("*.safetensors"):  # safetensors lets nobody but the owner read them
        path.chmod(settings.stat().st_mode)


def save_student(folder: Path, *student: Any, rescue: bool) -> None:
    """Write a student, each file whole or not at all; see `write_student`.

    Args:
        folder: made if it is missing.
        student: further arguments of `write_student`.
        rescue: where the folder cannot take it, write it to the folder for temporary files or to the home folder.

    Raises:
        OSError: it could not be written there; with the place where it lies instead, or what to free.
    """
    try:
        with files_written_whole(folder) as part:
            write_student(part, *student)
    except WRITE_ERRORS as error:
        text = why_not_written(folder, error)
        raise OSError(f"{text} {_rescued(folder, *student)}" if rescue else text) from error


def _rescued(folder: Path, *student: Any) -> str:
    places = (Path(tempfile.gettempdir()), Path.home())
    for place in places:
        target = place / f"afdcd-{folder.resolve().name}-{secrets.token_hex(4)}"
        try:
            with files_written_whole(target) as part:
                write_student(part, *student)
            return f"The trained student is saved in {target} instead: make room, and move it."
        except WRITE_ERRORS:
            shutil.rmtree(target, ignore_errors=True)
    return f"Nor could {' or '.join(map(str, places))} take it: make room before training again."


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors of any layout to a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


class CheckpointCallback(TrainerCallback):
    """Adds to transformers' checkpoints what our runs need to continue exactly, and marks them as complete.

    Attributes:
        unfinished: the checkpoint that is being written.
        saved_step: of the last one that was completed.
        resumed_step: with which this training began; 0 for a new one.
    """

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer: Any = trainer
        self.unfinished: Path | None = None
        self.saved_step: int | None = None
        self.resumed_step = 0

    def begin(self, checkpoint: Path | None) -> None:
        """Take back what each process alone knew, from a checkpoint that this run can continue."""
        trainer, rank = self.trainer, self.trainer.args.process_index
        self.unfinished, self.saved_step, self.resumed_step = None, None, 0
        if checkpoint is None:
            return
        check_same_run(checkpoint, self._facts(), trainer.args, trainer.is_deepspeed_enabled)
        self.resumed_step = TrainerState.load_from_json(str(checkpoint / STATE_NAME)).global_step
        path = _of_process(checkpoint, rank)
        if not path.is_file():  # plain transformers, or fewer processes
            logger.warning("%s is missing: random masks, and the next line of the log, start afresh.", path)
            return
        state = load_file(path)
        if len(list(checkpoint.glob("process_*"))) == trainer.args.world_size:  # or this would be a part of the sums
            terms = {name: each.to(trainer.args.device) for name, each in state.items() if name.startswith("terms.")}
            trainer.terms.load({name.removeprefix("terms."): each for name, each in terms.items()})
        for index, generator in enumerate(trainer.generators):
            generator.set_state(state[f"generator.{index}"])
        if trainer.budget is not None:
            trainer.budget.begin(state["seconds"].item())

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the student alone; into a checkpoint, also what the rest of the training needs. On every process.

        Args:
            folder: made if it is missing.
            weights: the student's, where FSDP or DeepSpeed has gathered them.
        """
        trainer, step = self.trainer, self.trainer.state.global_step
        if trainer.args.check_finite:
            check_finite_weights(trainer.evaluated_student, step)
        in_checkpoint = trainer.is_in_train and folder.name == checkpoint_folder("", step).name
        if in_checkpoint:
            self._save_beside_student(folder)
        if trainer.args.should_save:
            student = (trainer.evaluated_student, weights, trainer.processing_class, trainer.args)
            save_student(folder, *student, rescue=not in_checkpoint and step > 0)

    def load(self, folder: Path) -> None:
        """Load the student, which has to fit, and what a resumed training needs beside it."""
        trainer = self.trainer
        load_fitting(trainer.student, folder / "model.safetensors", "student")
        if trainer.average is not None:  # that was it
            trainer.average.restart(trainer.student)
        elif (folder / RAW_STUDENT_NAME).is_file():
            raise ValueError(
                f"{folder} was written with ema_decay, and this run has none: resume it with the same ema_decay."
            )
        for name, module in trainer.modules_to_resume().items():
            if module.state_dict():
                load_fitting(module, folder / name, "distillation loss" if name == LOSS_WEIGHTS_NAME else "student")

    def _save_beside_student(self, folder: Path) -> None:
        trainer, args = self.trainer, self.trainer.args
        folder.mkdir(parents=True, exist_ok=True)
        self.unfinished = folder
        if args.should_save:
            (folder / MARKER_NAME).unlink(missing_ok=True)
        if args.save_only_model:
            return
        for name, module in trainer.modules_to_resume().items():
            tensors = whole_tensors(module.state_dict())
            if args.should_save and tensors:
                save_tensors(tensors, folder / name)
        state = {f"terms.{name}": total for name, total in trainer.terms.state().items()}
        state |= {f"generator.{index}": each.get_state() for index, each in enumerate(trainer.generators)}
        if trainer.budget is not None:
            state["seconds"] = torch.tensor(trainer.budget.used, dtype=torch.float64)
        save_tensors(state, _of_process(folder, args.process_index))

    def on_train_begin(self, args, state, control, **kwargs):
        """The best checkpoint is found again where the whole output folder has been moved."""
        if state.best_global_step:
            best = checkpoint_folder(args.output_dir, state.best_global_step)
            if best.is_dir():
                state.best_model_checkpoint = str(best)

    def on_save(self, args, state, control, **kwargs):
        """transformers has written its files, too; on every process."""
        if self.unfinished is not None:
            self.trainer.accelerator.wait_for_everyone()
            if args.should_save:
                mark_complete(self.unfinished, {**self._facts(), "step": state.global_step})
            self.unfinished, self.saved_step = None, state.global_step

    def _facts(self) -> dict:
        samples = self.trainer.train_dataset
        return facts_of(self.trainer.args, len(samples) if hasattr(samples, "__len__") else None)


def _of_process(folder: Path, rank: int) -> Path:
    return folder / f"process_{rank}.safetensors"
