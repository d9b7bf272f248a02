"""What a run saves: the student alone, and checkpoints from which a resumed run ends with the same weights.

transformers writes a checkpoint's files straight into `checkpoint-N`; when all are there, `checkpoint.json` is added,
with size and CRC-32 of every other file. A checkpoint whose marker does not hold is skipped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import textwrap
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import accelerate
import torch
import transformers
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic_io import written_whole
from ..charts.runs import STATE_NAME
from ..messages import without_tokens
from ..structured_files import read_json
from .distributed import images_per_step, whole_tensors

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME, RAW_STUDENT_NAME = "distillation.safetensors", "raw_student.safetensors"
MARKER_NAME, PART_PREFIX = "checkpoint.json", "_saving-model-"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save and safetensors have their own for a full disk
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# What a checkpoint holds, or the restored optimizer and schedule would override.
_FIXED = ("loss", "optim", "optim_args", "learning_rate", "weight_decay", "decay_all", "lr_scheduler_type",
          "max_seconds")  # fmt: skip
# What takes effect at once when it is changed, so that the run does not end as the uninterrupted one would.
_FREE = ("loss_kwargs", "task_loss", "class_weights", "task_weight", "aux_weight", "student_layer", "teacher_layer",
         "lr_scheduler_kwargs", "warmup_steps", "max_steps")  # fmt: skip


class NonFiniteLossError(ValueError):
    """The loss, or weights to be saved, became infinite or NaN; of a loss the message has terms, images and advice."""


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
            logger.warning("%s is missing: the next line of the log starts afresh.", path)
            return
        state = load_file(path)
        if len(list(checkpoint.glob("process_*"))) == args.world_size:  # or this would be a part of the sums
            terms = {name: each.to(args.device) for name, each in state.items() if name.startswith("terms.")}
            trainer.terms.load({name.removeprefix("terms."): each for name, each in terms.items()})
        if trainer.budget is not None:
            trainer.budget.begin(state["seconds"].item())

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the student alone; into a checkpoint, also what the rest of the training needs. On every process.

        `weights` are the student's, where FSDP or DeepSpeed has gathered them.
        """
        trainer, args, step = self.trainer, self.trainer.args, self.trainer.state.global_step
        named = trainer.evaluated_student.state_dict() if args.check_finite else {}
        # read from the device once, not once a tensor
        finite = torch.stack([tensor.isfinite().all() for tensor in named.values()]).tolist() if named else []
        if broken := [name for name, is_finite in zip(named, finite, strict=True) if not is_finite]:
            told = f"{len(broken)} of {len(named)} weights of the student are not finite, {broken[0]} for one"
            raise NonFiniteLossError(f"step {step}: {told}: they are not saved.")
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
            saved = f"The trained student is saved in {elsewhere} instead: make room, and move it."
            raise OSError(f"{why_not_written(folder, error)} {saved}") from error

    def load(self, folder: Path) -> None:
        """Load the student, which has to fit, and what a resumed training needs beside it."""
        trainer = self.trainer
        _load_fitting(trainer.student, folder / "model.safetensors", "student")
        if trainer.average is not None:  # that was it
            trainer.average.restart()
        elif (folder / RAW_STUDENT_NAME).is_file():
            raise ValueError(f"{folder} was written with ema_decay: resume it with the same ema_decay.")
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
    """Write a student, or `weights` in place of its own, with its image processor and the run's settings as JSON."""
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
    if not (folder / MARKER_NAME).is_file():
        return
    marker: dict[str, Any] = read_json(folder / MARKER_NAME, "the marker of a checkpoint")
    before, after = ({**facts, **facts["settings"]} for facts in (marker, now))
    differing = [name for name in after if name != "settings" and before.get(name, after[name]) != after[name]]
    if fixed := [name for name in differing if name in _FIXED]:
        named = ", ".join(f"{name} {before[name]!r} (now {after[name]!r})" for name in fixed)
        raise ValueError(
            f"{folder} was written with {named}, which its saved state brings along: resume with the same, or start a "
            "new run from that student (--model)."
        )
    for name in differing:
        logger.warning("%s: %s was %s, now %s: the run changes.", folder, name, before[name], after[name])


def _load_fitting(module: Any, path: Path, what: str) -> None:
    """Load a module's weights, which must fit in names and shapes."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was written without ema_decay or without this loss, or with "
            "save_only_model. Resume with the settings that the run was started with, or start a new one (--model)."
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


def checkpoint_folder(output: str | Path, step: int) -> Path:
    """Where the state after an optimizer step is saved."""
    return Path(output) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def mark_complete(folder: Path, facts: dict[str, Any]) -> None:
    """Bring every file of a checkpoint to the disk, then describe them, and the run, in the marker."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER_NAME)
    files = {path.relative_to(folder).as_posix(): _described(path, to_disk=True) for path in paths}
    with written_whole(folder / MARKER_NAME) as part:
        part.write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")
        _described(part, to_disk=True)


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint is not complete, by its marker; None if it is."""
    if not (folder / MARKER_NAME).is_file():
        return f"it has no {MARKER_NAME}: plain transformers wrote it, or its writing was cut short"
    try:
        marker: dict[str, Any] = read_json(folder / MARKER_NAME, "the marker of a checkpoint")
        for name, expected in marker["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (found := (folder / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {found} bytes instead of {expected['bytes']}"
            if _described(folder / name) != expected:
                return f"{name} is damaged (its checksum is wrong)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MARKER_NAME} is damaged ({error!r})"
    return None


def checkpoints_of(folder: str | Path) -> list[Path]:
    """The folders `checkpoint-N` of a run, newest step first."""
    by_step = {int(found[1]): path for path in Path(folder).glob("*/") if (found := _CHECKPOINT.fullmatch(path.name))}
    return [by_step[step] for step in sorted(by_step, reverse=True)]


def last_whole_checkpoint(folder: str | Path) -> Path:
    """The newest complete checkpoint of a run; each newer one that is not is named in a warning.

    Where there is none, one with all files but its marker will do, as a kill leaves it that came between removing the
    older one and writing the marker. FileNotFoundError where there is none of these either.
    """
    checkpoints = checkpoints_of(folder)
    for checkpoint in checkpoints:
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("skipping %s: %s.", checkpoint, fault)
    for checkpoint in checkpoints:
        if not (checkpoint / MARKER_NAME).exists() and (checkpoint / STATE_NAME).is_file():
            logger.warning("no checkpoint is marked as complete; %s has its last file and is used.", checkpoint)
            return checkpoint
    if not checkpoints:
        raise FileNotFoundError(f"There is no checkpoint in {folder} to resume from: start with another output_dir.")
    raise FileNotFoundError(
        f"No checkpoint in {folder} is complete; the warnings above say why. To use one without {MARKER_NAME} all the "
        f"same, name it: --resume_from_checkpoint {checkpoints[0]}."
    )


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint that is not there or not complete; one without a marker is taken with a warning."""
    if not checkpoint.is_dir():
        known = ", ".join(path.name for path in checkpoints_of(checkpoint.parent)) or "no checkpoint"
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}; {checkpoint.parent} has {known}.")
    fault = fault_of(checkpoint)
    if fault is not None and (checkpoint / MARKER_NAME).is_file():
        raise ValueError(f"{checkpoint} is not complete: {fault}. Resume from last, which finds the newest that is.")
    if fault is not None:
        logger.warning("%s cannot be checked: %s.", checkpoint, fault)


def checkpoint_to_resume(args: TrainingArguments, wanted: str | bool | None) -> str | None:
    """The folder to resume from, verified by the main process; leftovers of a killed run are removed.

    `wanted` is a checkpoint's folder; True or "last" for the last complete one in `args.output_dir`; None for none.
    """
    found: list[Any] = [None]
    if args.process_index == 0:
        output = Path(args.output_dir or ".")
        for path in output.glob(f"{PART_PREFIX}*"):
            shutil.rmtree(path)
        try:
            if wanted is True or wanted in ("last", "true", "True"):
                found = [str(last_whole_checkpoint(output))]
            elif wanted:
                check_whole(Path(wanted))
                found = [str(wanted)]
        except (OSError, ValueError) as error:
            found = [error]
    if args.world_size > 1:
        broadcast_object_list(found, from_process=0)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def why_not_written(target: Path, error: Exception) -> str:
    """One line with the path, the cause, and how much room there is."""
    cause = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**20
    return f"{target} could not be written: {cause} ({free:.1f} MiB are free there)."


def _described(path: Path, *, to_disk: bool = False) -> dict[str, int]:
    """Size, and the CRC-32 that finds accidental damage (at 2 GiB/s; SHA-256 took 0.7 GiB/s where it was measured)."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
        if to_disk:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "crc32": checksum}
