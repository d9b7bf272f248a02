"""Which checkpoints are complete, and which one to resume from.

transformers writes a checkpoint's files straight into `checkpoint-N`; when all are there, `checkpoint.json` is added,
with size and CRC-32 of every other file. A checkpoint whose marker does not hold is skipped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..atomic_io import written_whole
from ..charts.runs import STATE_NAME
from ..structured_files import read_json

logger = logging.getLogger(__name__)

MARKER_NAME, PART_PREFIX = "checkpoint.json", "_saving-model-"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save and safetensors have their own for a full disk
_CHECKPOINT = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


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
        if _step(folder) not in (-1, marker["step"]):
            return f"it holds step {marker['step']}, so its folder was renamed"
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
    return sorted((path for path in Path(folder).glob("*/") if _step(path) >= 0), key=_step, reverse=True)


def last_whole_checkpoint(folder: str | Path) -> Path:
    """The newest complete checkpoint of a run; each newer one that is not is named in a warning.

    Where there is none, one that has all its files but not its marker will do: an older one has been removed when the
    run was killed just before it could write the marker. FileNotFoundError where there is none of these either.
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
        raise FileNotFoundError(
            f"There is no checkpoint in {folder} to resume from. If that run was stopped before its first one, start "
            "it again with another output_dir, or remove that folder."
        )
    raise FileNotFoundError(
        f"No checkpoint in {folder} is complete ({', '.join(path.name for path in checkpoints)}); the warnings above "
        f"say why. To use one without {MARKER_NAME} all the same, name it: --resume_from_checkpoint {checkpoints[0]}."
    )


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint, named by the user, that is not there (FileNotFoundError) or not complete (ValueError).

    One without a marker is taken with a warning.
    """
    beside = checkpoints_of(checkpoint.parent)
    if not checkpoint.is_dir():
        known = ", ".join(path.name for path in beside) or "no checkpoint"
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}; {checkpoint.parent} has {known}.")
    fault = fault_of(checkpoint)
    if fault is not None and (checkpoint / MARKER_NAME).is_file():
        whole = next((path for path in beside if path != checkpoint and fault_of(path) is None), None)
        hint = f"{whole} is complete: resume from that." if whole else "No other checkpoint beside it is complete."
        raise ValueError(f"{checkpoint} is not complete: {fault}. {hint}")
    if fault is not None:
        logger.warning("%s cannot be checked: %s.", checkpoint, fault)


def checkpoint_to_resume(args: TrainingArguments, wanted: str | bool | None) -> str | None:
    """The folder to resume from, verified by the main process; leftovers of a killed run are removed.

    `wanted` is a checkpoint's folder; True or "last" for the last complete one in `args.output_dir`; None for none.
    Errors are those of `check_whole` and `last_whole_checkpoint`.
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


def _step(checkpoint: Path) -> int:
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _described(path: Path, *, to_disk: bool = False) -> dict[str, int]:
    """Size, and the CRC-32 that finds accidental damage (at 2 GiB/s; SHA-256 took 0.7 GiB/s where it was measured)."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
        if to_disk:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "crc32": checksum}
