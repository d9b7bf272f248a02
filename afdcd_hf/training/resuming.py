"""Whether a run can continue from a checkpoint, and loading weights that have to fit."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments

from .checkpoints import read_marker
from .distributed import images_per_step

logger = logging.getLogger(__name__)

# What a checkpoint holds, or the restored optimizer and schedule would override.
_FIXED = ("loss", "optim", "optim_args", "learning_rate", "weight_decay", "decay_all", "lr_scheduler_type")
# What takes effect at once when it is changed, so that the run does not end as the uninterrupted one would.
_FREE = ("loss_kwargs", "student_layer", "teacher_layer", "lr_scheduler_kwargs", "warmup_steps", "max_steps")
_EFFECTS = {
    "processes": "dropout and random masks differ from the uninterrupted run's",
    "images_per_step": "the order of the images and the meaning of the steps change",
    "training_samples": "the order of the images changes; is this the same dataset?",
    "seed": "the order and augmentation of the images change",
    "versions": "results may differ in their last digits",
}


def facts_of(args: TrainingArguments, training_samples: int | None) -> dict[str, Any]:
    """What a checkpoint's marker says of its run, for a resumed run to be compared with."""
    settings = {name: getattr(args, name) for name in (*_FIXED, *_FREE) if hasattr(args, name)}
    facts = {
        "format": 2,
        "resumable": not args.save_only_model,
        "processes": args.world_size,
        "images_per_step": images_per_step(args),
        "training_samples": training_samples,
        "seed": args.seed,
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, accelerate)},
        "timed": getattr(args, "max_seconds", None) is not None,
        "settings": {name: getattr(value, "value", value) for name, value in settings.items()},
    }
    return json.loads(json.dumps(facts, default=str))  # as it will be read


def check_same_run(folder: Path, now: Mapping[str, Any], args: Any, deepspeed: bool) -> None:
    """Say what will make the continuation differ, and refuse what cannot be continued.

    Args:
        folder: the checkpoint.
        now: the facts of the run that is to continue there.
        args: of that run.
        deepspeed: whether DeepSpeed keeps the optimizer's state.

    Raises:
        ValueError: the checkpoint holds the student alone, or was written with settings that must stay.
    """
    marker = read_marker(folder)
    resumable = marker.get("resumable") if marker is not None else (folder / "scheduler.pt").is_file()
    if not resumable and not deepspeed:
        raise ValueError(
            f"{folder} holds the student only (save_only_model), without optimizer and schedule: it cannot be "
            "resumed. Start a new run from that student, on the command line with --model."
        )
    if marker is None:
        return
    if marker.get("timed", now["timed"]) != now["timed"]:
        way, other = ("with", "none") if marker["timed"] else ("without", f"{args.max_seconds:g}")
        raise ValueError(
            f"{folder} was written {way} max_seconds, and this run has {other}: their schedules differ. Resume it "
            f"{way} max_seconds."
        )
    before, after = marker.get("settings") or {}, now["settings"]
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    if fixed := [name for name in _FIXED if before and name in changed]:
        named = ", ".join(f"{name} {before.get(name)!r} (now {after.get(name)!r})" for name in fixed)
        raise ValueError(
            f"{folder} was written with {named}, which its saved state brings along: resume with the same, or start a "
            "new run from that student (--model)."
        )
    for name in (name for name in _FREE if before and name in changed):
        logger.warning("%s: %s was %s, now %s: the run changes there.", folder, name, before.get(name), after.get(name))
    for name, effect in _EFFECTS.items():
        if marker.get(name) != now[name]:
            what = name.replace("_", " ")
            logger.warning("%s: %s were %s, now %s: %s.", folder, what, marker.get(name), now[name], effect)


def load_fitting(module: Any, path: Path, what: str) -> None:
    """Load a module's weights, which must fit in names and shapes.

    Args:
        module: to load into.
        path: a safetensors file.
        what: the module is, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights that are missing, unexpected or of another shape are named; or the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the checkpoint was written without ema_decay or without this loss, or with "
            "save_only_model. Resume with the settings that the run was started with, or start a new one from that "
            "student (--model)."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}. Resume from an earlier checkpoint.") from error
    expected = module.state_dict()
    tied = set(getattr(module, "all_tied_weights_keys", None) or ())
    left_out = tied | set(getattr(module, "_keys_to_ignore_on_save", None) or ())
    missing = [name for name in expected if name not in tensors and name not in left_out]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} {_shape(tensor)} instead of {_shape(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"The checkpoint's weights do not fit this {what}. Missing: {_few(missing)}; unexpected: "
            f"{_few(unexpected)}; of another shape: {_few(shapes)}. Resume with the {what} that the run was started "
            "with."
        )
    module.load_state_dict(tensors, strict=False)
    if tied:
        module.tie_weights()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
