"""How a student is written: whole, for `from_pretrained`, and somewhere else where its folder cannot take it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainingArguments

from ..redaction import without_tokens
from .checkpoints import WRITE_ERRORS, files_written_whole, why_not_written


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
        try:
            target = Path(tempfile.mkdtemp(prefix=f"afdcd-{folder.name}-", dir=place))
            with files_written_whole(target) as part:
                write_student(part, *student)
            return f"The trained student is saved in {target} instead: make room, and move it."
        except WRITE_ERRORS:
            continue
    return f"Nor could {' or '.join(map(str, places))} take it: make room before training again."


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors of any layout to a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
