"""What a run saves: the student alone, and in checkpoints what a resumed run needs to end with the same weights."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState

from ..messages import without_tokens
from ..structured_files import read_json
from .checkpoints import (
    MARKER_NAME,
    PART_PREFIX,
    STATE_NAME,
    WRITE_ERRORS,
    checkpoint_folder,
    mark_complete,
    why_not_written,
)
from .distributed import images_per_step, whole_tensors
from .guard import check_finite_weights

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME, RAW_STUDENT_NAME = "distillation.safetensors", "raw_student.safetensors"

# What a checkpoint holds, or the restored optimizer and schedule would override.
_FIXED = ("loss", "optim", "optim_args", "learning_rate", "weight_decay", "decay_all", "lr_scheduler_type",
          "max_seconds")  # fmt: skip
# What takes effect at once when it is changed, so that the run does not end as the uninterrupted one would.
_FREE = ("loss_kwargs", "task_loss", "class_weights", "task_weight", "aux_weight", "student_layer", "teacher_layer",
         "lr_scheduler_kwargs", "warmup_steps", "max_steps")  # fmt: skip
_OF_RUN = ("processes", "images_per_step", "training_samples", "seed", "versions")


class CheckpointCallback(TrainerCallback):
    """Adds to transformers' checkpoints what our runs need to continue exactly, and marks them as complete."""

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer: Any = trainer
        self.begin(None)

    def begin(self, folder: str | None) -> None:
        """Take back what each process alone knew, from a checkpoint that this run can continue."""
        self.unfinished: Path | None = None  # the checkpoint that is being written
        self.saved_step: int | None = None  # of the last one that was completed
        self.resumed_step = 0  # with which this training begins
        trainer, args = self.trainer, self.trainer.args
        trainer.terms.load({})
        if trainer.budget is not None:
            trainer.budget.begin(0.0)
        if folder is None:
            return
        checkpoint = Path(folder)
        _check_same_run(checkpoint, self._facts(), trainer.is_deepspeed_enabled)
        self.resumed_step = TrainerState.load_from_json(str(checkpoint / STATE_NAME)).global_step
        path = _of_process(checkpoint, args.process_index)
        if not path.is_file():  # plain transformers, or fewer processes
            logger.warning("%s is missing: random masks, and the next line of the log, start afresh.", path)
            return
        state = load_file(path)
        if len(list(checkpoint.glob("process_*"))) == args.world_size:  # or this would be a part of the sums
            terms = {name: each.to(args.device) for name, each in state.items() if name.startswith("terms.")}
            trainer.terms.load({name.removeprefix("terms."): each for name, each in terms.items()})
        for index, generator in enumerate(trainer.generators):
            generator.set_state(state[f"generator.{index}"])
        if trainer.budget is not None:
            trainer.budget.begin(state["seconds"].item())

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the student alone; into a checkpoint, also what the rest of the training needs. On every process.

        `weights` are the student's, where FSDP or DeepSpeed has gathered them. An OSError says where the student lies
        instead, or what to free.
        """
        trainer, args, step = self.trainer, self.trainer.args, self.trainer.state.global_step
        if args.check_finite:
            check_finite_weights(trainer.evaluated_student, step)
        in_checkpoint = trainer.is_in_train and folder.name == checkpoint_folder("", step).name
        if in_checkpoint:
            self._save_beside_student(folder)
        if not args.should_save:
            return
        student = (trainer.evaluated_student, weights, trainer.processing_class, args)
        try:
            _write_whole(folder, *student)
        except WRITE_ERRORS as error:
            if in_checkpoint or not step:
                raise OSError(why_not_written(folder, error)) from error
            elsewhere = Path(tempfile.mkdtemp(prefix=f"afdcd-{folder.resolve().name}-"))  # or all would be lost
            _write_whole(elsewhere, *student)
            raise OSError(
                f"{why_not_written(folder, error)} The trained student is saved in {elsewhere} instead: make room, and "
                "move it."
            ) from error

    def load(self, folder: Path) -> None:
        """Load the student, which has to fit, and what a resumed training needs beside it."""
        trainer = self.trainer
        _load_fitting(trainer.student, folder / "model.safetensors", "student")
        if trainer.average is not None:  # that was it
            trainer.average.restart()
        elif (folder / RAW_STUDENT_NAME).is_file():
            raise ValueError(
                f"{folder} was written with ema_decay, and this run has none: resume it with the same ema_decay."
            )
        for name, module in trainer.modules_to_resume().items():
            if module.state_dict():
                _load_fitting(module, folder / name, "distillation loss" if name == LOSS_WEIGHTS_NAME else "student")

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

    def on_save(self, args, state, control, **kwargs):
        if self.unfinished is not None:  # transformers has written its files, too
            self.trainer.accelerator.wait_for_everyone()
            if args.should_save:
                mark_complete(self.unfinished, {**self._facts(), "step": state.global_step})
            self.unfinished, self.saved_step = None, state.global_step

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint's marker says of its run, for a resumed run to be compared with."""
        args, samples = self.trainer.args, self.trainer.train_dataset
        settings = {name: getattr(args, name) for name in (*_FIXED, *_FREE) if hasattr(args, name)}
        settings["max_seconds"] = None if args.max_seconds is None else "given"  # how many may differ
        facts = {
            "format": 2,
            "processes": args.world_size,
            "images_per_step": images_per_step(args),
            "training_samples": len(samples) if hasattr(samples, "__len__") else None,
            "seed": args.seed,
            "versions": {module.__name__: module.__version__ for module in (torch, transformers, accelerate)},
            "settings": {name: getattr(value, "value", value) for name, value in settings.items()},
        }
        return json.loads(json.dumps(facts, default=str))  # as it will be read


def write_student(
    folder: Path, student: nn.Module, weights: dict[str, Tensor] | None, processor: Any, args: TrainingArguments
) -> None:
    """Write a student, or `weights` in place of its own, with its image processor and the run's settings.

    Unlike transformers' own method it writes no pickled `training_args.bin`: the settings go to a JSON file.
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


def _write_whole(folder: Path, *student: Any) -> None:
    """`write_student`, but a file that is there already is replaced when all of the new ones have been written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART_PREFIX, dir=folder) as part:
        write_student(Path(part), *student)
        for path in Path(part).iterdir():
            os.replace(path, folder / path.name)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors of any layout to a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _of_process(folder: Path, rank: int) -> Path:
    return folder / f"process_{rank}.safetensors"


def _check_same_run(folder: Path, now: dict[str, Any], deepspeed: bool) -> None:
    """Say what will make the continuation differ, and refuse what cannot be continued."""
    if not (folder / "scheduler.pt").is_file() and not deepspeed:  # which keeps the optimizer's state elsewhere
        raise ValueError(
            f"{folder} holds the student only (save_only_model), without optimizer and schedule: it cannot be "
            "resumed. Start a new run from that student, on the command line with --model."
        )
    marker: dict[str, Any] = {}
    if (folder / MARKER_NAME).is_file():
        marker = read_json(folder / MARKER_NAME, "the marker of a checkpoint")
    before, after = ({**facts, **facts.get("settings", {})} for facts in (marker, now))
    compared = [name for name in (*_FIXED, *_FREE, *_OF_RUN) if before.get(name, after.get(name)) != after.get(name)]
    if fixed := [name for name in compared if name in _FIXED]:
        named = ", ".join(f"{name} {before[name]!r} (now {after.get(name)!r})" for name in fixed)
        raise ValueError(
            f"{folder} was written with {named}, which its saved state brings along: resume with the same, or start a "
            "new run from that student (--model)."
        )
    for name in compared:
        logger.warning("%s: %s was %s, now %s: the run changes.", folder, name, before[name], after.get(name))


def _load_fitting(module: Any, path: Path, what: str) -> None:
    """Load a module's weights, which must fit in names and shapes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was written without ema_decay or without this loss, or with "
            "save_only_model. Resume with the settings that the run was started with, or start a new one from that "
            "student (--model)."
        )
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    not_saved = tied | set(getattr(module, "_keys_to_ignore_on_save", None) or ())
    own = {name: tensor for name, tensor in module.state_dict().items() if name in not_saved}
    try:
        module.load_state_dict({**own, **load_file(path)})
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"The weights in {path} do not fit this {what}. Resume with the {what} that the run was started with. "
            f"{textwrap.shorten(str(error), 800, placeholder=' ...')}"
        ) from error
    if tied:
        module.tie_weights()
