"""Saving the student, and checkpoints from which a resumed run ends with the same weights as an uninterrupted one.

transformers writes a checkpoint's files directly into `checkpoint-N`. Once they are complete, `checkpoint.json` is
added as a marker, with size and CRC-32 of every other file. A checkpoint that does not match its marker is skipped.
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
from dataclasses import fields
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

from ..atomic_io import atomic_write
from ..charts.runs import STATE_NAME
from ..messages import without_tokens
from ..structured_files import read_json
from .distributed import gather_full_tensors, images_per_step
from .recipe_arguments import public_value

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

LOSS_WEIGHTS_NAME, RAW_STUDENT_NAME = "distillation.safetensors", "raw_student.safetensors"
MARKER_NAME, SETTINGS_NAME, PART_PREFIX = "checkpoint.json", "training_args.json", "_saving-model-"
ASIDE = "-stopped-"  # and a number, at the end of the name of a folder that `resumes_or_moves_aside` renamed
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # the last two: torch.save and safetensors on a full disk
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# Settings stored in a checkpoint, or overridden by the restored optimizer and schedule.
_FIXED = ("loss", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate", "weight_decay",
          "decay_all", "lr_scheduler_type", "max_seconds")  # fmt: skip
# How the names of settings begin that may change on resuming, because they do not influence the result: places,
# logging, saving and evaluation, speed and hardware, and the batch sizes, which `images_per_step` summarises.
_WITHOUT_INFLUENCE = re.compile(
    "output_dir|data_dir|unlabelled_dir|pretrained_backbone|resume|do_|run_name|project|trackio|log|report|disable_tqdm|"
    "eval|max_eval|load_best|metric|greater|save|restore|enable_jit|push|hub|check_finite|preflight|skip_memory|debug|"
    "total_batch|per_device|auto_find|use_cpu|local_rank|ddp|fsdp|deepspeed|accelerator|parallelism|torch|channels_last|"
    "fold_teacher|gradient_checkpointing|activation|dataloader(?!_drop_last)|bf16_full|fp16_full"
)


class NonFiniteLossError(ValueError):
    """The loss, or weights to be saved, became infinite or NaN; for a loss, the message names terms and images."""


class CheckpointCallback(TrainerCallback):
    """Adds the state that exact resumption needs to transformers' checkpoints, and marks them as complete."""

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer: Any = trainer
        self.options: dict[str, Any] = {}  # of model, teacher and data, which the trainer's arguments do not hold
        self.begin(None)

    def begin(self, folder: str | None) -> None:
        """Start a run, restoring each process's own state from the checkpoint in `folder`, if given."""
        self.unfinished: Path | None = None  # the checkpoint being written
        self.saved_step: int | None = None  # step of the last completed checkpoint
        self.resumed_step = 0  # step that this run starts from
        trainer, args = self.trainer, self.trainer.args
        self._run = Path(args.output_dir if folder is None else Path(folder).parent)
        trainer.terms.load({})
        if trainer.budget is not None:
            trainer.budget.begin(0.0)
        if folder is None:
            return
        checkpoint = Path(folder)
        _check_same_run(checkpoint, self._facts(), trainer.is_deepspeed_enabled)
        self.resumed_step = TrainerState.load_from_json(str(checkpoint / STATE_NAME)).global_step
        path, first = (_process_state_path(checkpoint, rank) for rank in (args.process_index, 0))
        clock = first if first.is_file() else path  # all processes follow rank 0's, additional ones too
        if trainer.budget is not None and clock.is_file():
            trainer.budget.begin(load_file(clock)["seconds"].item())
        if not path.is_file():  # written by plain transformers, or by fewer processes
            logger.warning("%s is missing: the next log line covers only the steps from here on.", path)
            return
        state = load_file(path)
        if len(list(checkpoint.glob("process_*"))) == args.world_size:  # otherwise the sums would be incomplete
            terms = {name: each.to(args.device) for name, each in state.items() if name.startswith("terms.")}
            trainer.terms.load({name.removeprefix("terms."): each for name, each in terms.items()})

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write the student and, into a checkpoint, the state needed to resume. Call on every process.

        `weights` are the student's weights as gathered by FSDP or DeepSpeed, if either is used.
        """
        trainer, args, step = self.trainer, self.trainer.args, self.trainer.state.global_step
        named = trainer.evaluated_student.state_dict() if args.check_finite else {}
        # one device synchronisation, not one per tensor
        finite = torch.stack([tensor.isfinite().all() for tensor in named.values()]).tolist() if named else []
        if broken := [name for name, is_finite in zip(named, finite, strict=True) if not is_finite]:
            what = f"{len(broken)} of {len(named)} weights of the student are not finite, {broken[0]} for example"
            raise NonFiniteLossError(f"step {step}: {what}; nothing is saved.")
        in_checkpoint = trainer.is_in_train and folder.name == checkpoint_folder("", step).name
        if in_checkpoint:
            self._save_training_state(folder)
        if not args.should_save:
            return
        student = (trainer.evaluated_student, weights, trainer.processing_class, args)
        try:
            _write_and_replace(folder, *student)
        except WRITE_ERRORS as error:
            if in_checkpoint or not step:
                raise OSError(write_error_message(folder, error)) from error
            elsewhere = Path(tempfile.mkdtemp(prefix=f"afdcd-{folder.resolve().name}-"))  # so that nothing is lost
            _write_and_replace(elsewhere, *student)
            saved = f"The trained student is saved in {elsewhere} instead: free disk space and move it."
            raise OSError(f"{write_error_message(folder, error)} {saved}") from error

    def load(self, folder: Path) -> None:
        """Load the student, whose names and shapes must match, and the other state needed to resume."""
        trainer = self.trainer
        _load_strictly(trainer.student, folder / "model.safetensors", "student")
        if trainer.average is not None:  # model.safetensors holds the average
            trainer.average.restart()
        elif (folder / RAW_STUDENT_NAME).is_file():
            raise ValueError(f"{folder} was written with ema_decay: resume it with the same ema_decay.")
        for name, module in trainer.modules_to_resume().items():
            if module.state_dict():
                _load_strictly(module, folder / name, "distillation loss" if name == LOSS_WEIGHTS_NAME else "student")

    def _save_training_state(self, folder: Path) -> None:
        trainer, args = self.trainer, self.trainer.args
        folder.mkdir(parents=True, exist_ok=True)
        self.unfinished = folder
        if args.should_save:
            (folder / MARKER_NAME).unlink(missing_ok=True)
        if args.save_only_model:
            return
        for name, module in trainer.modules_to_resume().items():
            tensors = gather_full_tensors(module.state_dict())
            if args.should_save and tensors:
                save_tensors(tensors, folder / name)
        state = {f"terms.{name}": total for name, total in trainer.terms.state().items()}
        if trainer.budget is not None:
            state["seconds"] = torch.tensor(trainer.budget.used, dtype=torch.float64)
        save_tensors(state, _process_state_path(folder, args.process_index))

    def on_train_begin(self, args, state, control, **kwargs):
        best = checkpoint_folder(self._run, state.best_global_step or 0)
        if state.best_model_checkpoint is None and best.is_dir():  # transformers drops it if the run's path has changed
            state.best_model_checkpoint = str(best)

    def on_save(self, args, state, control, **kwargs):
        if self.unfinished is not None:  # transformers has written its files by now
            self.trainer.accelerator.wait_for_everyone()
            if args.should_save:
                mark_complete(self.unfinished, {**self._facts(), "step": state.global_step})
            self.unfinished, self.saved_step = None, state.global_step

    def _facts(self) -> dict[str, Any]:
        """Return the facts on the run for the checkpoint's marker, which a resumed run is compared with."""
        args, samples = self.trainer.args, self.trainer.train_dataset
        given = {**{field.name: getattr(args, field.name) for field in fields(args)}, **self.options}
        settings = {name: value for name, value in given.items() if not _WITHOUT_INFLUENCE.match(name)}
        settings["max_seconds"] = None if args.max_seconds is None else "given"  # the number may differ
        facts = {
            "format": 2,
            "processes": args.world_size,
            "images_per_step": images_per_step(args),
            "training_samples": len(samples) if hasattr(samples, "__len__") else None,
            "seed": args.seed,
            "versions": {module.__name__: module.__version__ for module in (torch, transformers, accelerate)},
            "settings": {name: public_value(name, value) for name, value in settings.items()},
        }
        return json.loads(without_tokens(json.dumps(facts, default=str)))  # as read back from the marker


def write_student(
    folder: Path, student: nn.Module, weights: dict[str, Tensor] | None, processor: Any, args: TrainingArguments
) -> None:
    """Write a student, with `weights` instead of its own if given, its image processor and the run's settings."""
    if isinstance(student, PreTrainedModel):
        student.save_pretrained(folder, state_dict=weights)
    else:
        save_tensors(weights if weights is not None else student.state_dict(), folder / "model.safetensors")
    if processor is not None:
        processor.save_pretrained(folder)
    settings = folder / SETTINGS_NAME
    settings.write_text(without_tokens(json.dumps(args.to_dict(), indent=2, default=str)) + "\n")
    for path in folder.glob("*.safetensors"):  # safetensors writes files that only the owner may read
        path.chmod(settings.stat().st_mode)


def _write_and_replace(folder: Path, *student: Any) -> None:
    """Run `write_student`, replacing existing files only once all new ones are written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART_PREFIX, dir=folder) as part:
        write_student(Path(part), *student)
        for path in Path(part).iterdir():
            os.replace(path, folder / path.name)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors of any layout to a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _process_state_path(folder: Path, rank: int) -> Path:
    return folder / f"process_{rank}.safetensors"


def _check_same_run(folder: Path, now: dict[str, Any], deepspeed: bool) -> None:
    """Warn of settings that make the continuation differ; ValueError if the run cannot be resumed."""
    if not (folder / "scheduler.pt").is_file() and not deepspeed:  # DeepSpeed keeps the optimizer's state elsewhere
        raise ValueError(
            f"{folder} holds the student only (save_only_model), without optimizer and schedule: it cannot be "
            "resumed. Start a new run from that student (--model)."
        )
    if not (folder / MARKER_NAME).is_file():
        return
    marker: dict[str, Any] = read_json(folder / MARKER_NAME, "the marker of a checkpoint")
    # an older version's marker may hold paths
    before = marker | {name: public_value(name, value) for name, value in marker["settings"].items()}
    after = now | now["settings"]
    differing = [name for name in after if name != "settings" and before.get(name, after[name]) != after[name]]
    if fixed := [name for name in differing if name in _FIXED]:
        named = ", ".join(f"{name} {before[name]!r} (now {after[name]!r})" for name in fixed)
        raise ValueError(
            f"{folder} was written with {named}, which its saved state depends on: resume with the same, or start a "
            "new run from that student (--model)."
        )
    if changes := "; ".join(f"{name} was {before[name]}, now {after[name]}" for name in differing):
        logger.warning("%s: %s: the result will differ.", folder, changes)


def _load_strictly(module: Any, path: Path, what: str) -> None:
    """Load a module's weights, whose names and shapes must match."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was written without ema_decay or without this loss, or with "
            "save_only_model. Resume with the original settings of the run, or start a new one (--model)."
        )
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    not_saved = tied | set(getattr(module, "_keys_to_ignore_on_save", None) or ())
    own = {name: tensor for name, tensor in module.state_dict().items() if name in not_saved}
    try:
        module.load_state_dict({**own, **load_file(path)})
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"The weights in {path} do not fit this {what}. Resume with the original {what} of the run. "
            f"{textwrap.shorten(str(error), 800, placeholder=' ...')}"
        ) from error
    if tied:
        module.tie_weights()


def checkpoint_folder(output: str | Path, step: int) -> Path:
    """Return the folder of the checkpoint after optimizer step `step`."""
    return Path(output) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def mark_complete(folder: Path, facts: dict[str, Any]) -> None:
    """Flush every file of a checkpoint to disk, then write the marker with their sizes and checksums, and `facts`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER_NAME)
    files = {path.relative_to(folder).as_posix(): _size_and_checksum(path, to_disk=True) for path in paths}
    with atomic_write(folder / MARKER_NAME) as part:
        part.write_text(json.dumps({**facts, "files": files}, indent=2) + "\n", encoding="utf-8")
        _size_and_checksum(part, to_disk=True)


def find_fault(folder: Path) -> str | None:
    """Check a checkpoint against its marker; return why it is not complete, or None if it is."""
    if not (folder / MARKER_NAME).is_file():
        return f"it has no {MARKER_NAME}: plain transformers wrote it, or writing it was interrupted"
    try:
        marker: dict[str, Any] = read_json(folder / MARKER_NAME, "the marker of a checkpoint")
        for name, expected in marker["files"].items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (found := (folder / name).stat().st_size) != expected["bytes"]:
                return f"{name} has {found} bytes instead of {expected['bytes']}"
            if _size_and_checksum(folder / name) != expected:
                return f"{name} is damaged (its checksum is wrong)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MARKER_NAME} is damaged ({error!r})"
    return None


def checkpoints_of(folder: str | Path) -> list[Path]:
    """List the folders `checkpoint-N` of a run, newest step first."""
    by_step = {int(found[1]): path for path in Path(folder).glob("*/") if (found := _CHECKPOINT.fullmatch(path.name))}
    return [by_step[step] for step in sorted(by_step, reverse=True)]


def last_complete_checkpoint(folder: str | Path) -> Path:
    """Return the newest complete checkpoint of a run, with a warning for each newer one that is not complete.

    If there is none, return the newest with all files but the marker: a kill between removing the older checkpoint and
    writing the marker leaves one. FileNotFoundError if there is none of these either.
    """
    checkpoints = checkpoints_of(folder)
    for checkpoint in checkpoints:
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning("skipping %s: %s.", checkpoint, fault)
    for checkpoint in checkpoints:
        if not (checkpoint / MARKER_NAME).exists() and (checkpoint / STATE_NAME).is_file():
            logger.warning("no checkpoint is marked as complete; using %s, whose last file exists.", checkpoint)
            return checkpoint
    if not checkpoints:
        raise FileNotFoundError(f"There is no checkpoint in {folder} to resume from: start with another output_dir.")
    raise FileNotFoundError(
        f"No checkpoint in {folder} is complete; the warnings above say why. To use one without {MARKER_NAME} anyway, "
        f"give its path: --resume_from_checkpoint {checkpoints[0]}."
    )


def resumes_or_moves_aside(run: Path) -> bool:
    """Whether an unfinished run has a checkpoint to resume from; if not, its folder is renamed for it to begin again.

    Nothing happens to a folder that is empty or does not exist.
    """
    if not run.is_dir() or not any(run.iterdir()):
        return False
    try:
        last_complete_checkpoint(run)
        return True
    except FileNotFoundError:
        aside = next(path for n in range(1, 10**6) if not (path := run.with_name(f"{run.name}{ASIDE}{n}")).exists())
        logger.warning("%s has no complete checkpoint: it is kept as %s, and the run begins again.", run, aside)
        run.rename(aside)
        return False


def check_complete(checkpoint: Path) -> None:
    """Raise if a checkpoint is missing or not complete; one without a marker is accepted with a warning."""
    if not checkpoint.is_dir():
        known = ", ".join(path.name for path in checkpoints_of(checkpoint.parent)) or "no checkpoint"
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}; {checkpoint.parent} has {known}.")
    fault = find_fault(checkpoint)
    if fault is not None and (checkpoint / MARKER_NAME).is_file():
        raise ValueError(f"{checkpoint} is not complete: {fault}. Resume from last, the newest complete checkpoint.")
    if fault is not None:
        logger.warning("%s cannot be checked: %s.", checkpoint, fault)


def checkpoint_to_resume(args: TrainingArguments, wanted: str | bool | None) -> str | None:
    """Return the folder to resume from, checked by the main process; leftovers of a killed run are removed.

    `wanted` is a checkpoint's folder; True or "last" for the newest complete one in `args.output_dir`; or None.
    """
    found: list[Any] = [None]
    if args.process_index == 0:
        output = Path(args.output_dir)
        for path in output.glob(f"{PART_PREFIX}*"):
            shutil.rmtree(path)
        try:
            if not wanted and args.save_strategy != "no" and (older := checkpoints_of(output)):
                mixed = "%s holds checkpoints of an earlier training, up to %s: resume it, or give another output_dir."
                logger.warning(mixed, output, older[0].name)
            if wanted is True or wanted in ("last", "true", "True"):
                found = [str(last_complete_checkpoint(output))]
            elif wanted:
                check_complete(Path(wanted))
                found = [str(wanted)]
        except (OSError, ValueError) as error:
            found = [error]
    if args.world_size > 1:
        broadcast_object_list(found, from_process=0)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def write_error_message(target: Path, error: Exception) -> str:
    """Return one line with the path, the cause and the free disk space."""
    cause = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**20
    return f"{target} could not be written: {cause} ({free:.1f} MiB are free there)."


def _size_and_checksum(path: Path, *, to_disk: bool = False) -> dict[str, int]:
    """Return size and CRC-32, which finds accidental damage (measured: 2 GiB/s, against 0.7 GiB/s for SHA-256)."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
        if to_disk:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "crc32": checksum}
