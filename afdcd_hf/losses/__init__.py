"""Distillation losses, and how to build one from a recipe: `build_loss("kd+af_dcd", {...}, 512, 2048)`."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .afdcd import AfDcdLoss
from .base import DistillationLoss, LossPerPair, LossSum
from .cirkd import CIRKDLoss
from .logit_losses import BPKDLoss, DISTLoss, KDLoss
from .map_losses import AttentionTransferLoss, CWDLoss, FitNetLoss, IFVDLoss, SKDLoss
from .mgd import MGDLoss

LOSSES: dict[str, type[DistillationLoss]] = {
    "af_dcd": AfDcdLoss,
    "kd": KDLoss,
    "fitnet": FitNetLoss,
    "at": AttentionTransferLoss,
    "skd": SKDLoss,
    "ifvd": IFVDLoss,
    "cwd": CWDLoss,
    "mgd": MGDLoss,
    "cirkd": CIRKDLoss,
    "dist": DISTLoss,
    "bpkd": BPKDLoss,
}

LossOptions = Mapping[str, Mapping[str, Any]]
Channels = int | Sequence[int] | None


def build_loss(
    spec: str,
    loss_kwargs: LossOptions | None,
    student_channels: Channels = None,
    teacher_channels: Channels = None,
    num_classes: int | None = None,
) -> DistillationLoss:
    """Build the loss a recipe describes.

    Args:
        spec: names joined by "+", each once, such as "kd+af_dcd". A name is a key of `LOSSES`, an entry point of the
            group `afdcd_hf.losses`, or `my_file.py:MyLoss` for a class of your own, which is then called `MyLoss`.
        loss_kwargs: name -> options of that loss, such as
            `{"kd": {"weight": 1.0}, "af_dcd": {"feature_weight": 2e-6, "contrast_weight": 5e-3}}`.
        student_channels: of the map to distil, or of each of several; None for losses on logits alone.
        teacher_channels: the same for the teacher's maps, as many of them.
        num_classes: of the models; for losses that have such an option, if it is not given.

    Returns:
        The loss itself for one name, a `LossSum` for several. With several pairs of maps, a loss on maps becomes a
        `LossPerPair`, whose losses have equal options; losses and terms on logits are computed once.

    Raises:
        ValueError: as `validate_loss_spec`; also channel counts that are missing or do not fit the options.
    """
    students, teachers = (
        each if isinstance(each, Sequence) else (each,) for each in (student_channels, teacher_channels)
    )
    if len(students) != len(teachers):
        raise ValueError(
            f"student_channels={student_channels} and teacher_channels={teacher_channels} belong to different numbers "
            "of maps; each map of the student needs one of the teacher."
        )
    losses = {}
    for name, loss_class in _classes(spec, loss_kwargs).items():
        options = dict((loss_kwargs or {}).get(name, {}))
        if "num_classes" in option_defaults(loss_class) and options.get("num_classes") is None:
            options["num_classes"] = num_classes
        losses[name] = _build_one(name, loss_class, options, list(zip(students, teachers, strict=True)))
    return next(iter(losses.values())) if len(losses) == 1 else LossSum(losses)


def validate_loss_spec(spec: str, loss_kwargs: LossOptions | None) -> list[str]:
    """Check a recipe's loss before any model is built; arguments as in `build_loss`.

    Returns:
        The names in `spec`, in order.

    Raises:
        ValueError: an unknown or repeated loss; options for a loss that is not in `spec`; unknown, missing or bad
            options.
    """
    return list(_classes(spec, loss_kwargs))


def needs_feature_map(spec: str, loss_kwargs: LossOptions | None) -> bool:
    """Return whether a recipe's loss reads feature maps; arguments and errors as in `validate_loss_spec`."""
    return any(each.reads_map((loss_kwargs or {}).get(name, {})) for name, each in _classes(spec, loss_kwargs).items())


def _classes(spec: str, loss_kwargs: LossOptions | None) -> dict[str, type[DistillationLoss]]:
    """Return the classes of the losses in `spec` by name, after all checks that need no model."""
    classes: dict[str, type[DistillationLoss]] = {}
    for word in (each.strip() for each in spec.split("+")):
        found = (word, LOSSES[word]) if word in LOSSES else _own_loss(word)
        if found is None:
            raise ValueError(
                f"unknown loss {word!r} in loss={spec!r}; known: {', '.join(LOSSES)}, joined by '+' as in "
                "'kd+af_dcd', or my_file.py:MyLoss for your own loss."
            )
        if found[0] in classes:
            raise ValueError(f"the loss {found[0]!r} appears more than once in loss={spec!r}; name each loss once.")
        classes[found[0]] = found[1]
    options = loss_kwargs or {}
    if unused := [name for name in options if name not in classes]:
        raise ValueError(
            f"loss_kwargs has options for {unused[0]!r}, which is not in loss={spec!r}; "
            f"add it to the loss, or remove them. Options go under the name of a loss: {', '.join(classes)}."
        )
    for name, loss_class in classes.items():
        _check_options(name, loss_class, options.get(name, {}))
    return classes


def option_defaults(loss: type[DistillationLoss]) -> dict[str, Any]:
    """Return a loss's options with their defaults, `inspect.Parameter.empty` for required ones."""
    parameters = inspect.signature(loss).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}


def _check_options(name: str, loss_class: type[DistillationLoss], options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping):
        raise ValueError(f"loss_kwargs[{name!r}] is {options!r}; expected option names with values.")
    accepted = option_defaults(loss_class)
    if unknown := [option for option in options if option not in accepted]:
        raise ValueError(f"unknown option {name}.{unknown[0]}; {name} accepts {', '.join(accepted)}.")
    values = {**accepted, **options}
    if missing := [f"{name}.{option}" for option, value in values.items() if value is inspect.Parameter.empty]:
        raise ValueError(f"missing {' and '.join(missing)}; give it a value.")
    loss_class.check_options(values)


def _build_one(
    name: str, loss_class: Any, options: dict[str, Any], pairs: list[tuple[int | None, int | None]]
) -> DistillationLoss:
    if not loss_class.needs_feature_map:
        return loss_class(**options)
    if not loss_class.reads_map(options):
        return loss_class(None, None, **options)
    for student, teacher in pairs:
        if student is None or teacher is None:
            raise ValueError(
                f"the loss {name!r} compares feature maps and needs their channels; it got student_channels={student} "
                f"and teacher_channels={teacher}."
            )
    without_logits = options | dict.fromkeys(loss_class.logits_terms.values(), 0)
    losses = [loss_class(*pair, **(without_logits if index else options)) for index, pair in enumerate(pairs)]
    return losses[0] if len(losses) == 1 else LossPerPair(losses)


def _own_loss(word: str) -> tuple[str, type[DistillationLoss]] | None:
    """Return name and class of a user's own loss; None if the word is neither a class in a file nor an entry point."""
    path, _, name = word.rpartition(":")
    if path.endswith(".py"):
        found = getattr(_module(path), name, None)
        if found is None:
            raise ValueError(f"loss={word!r}: {path} defines no {name!r}.")
    elif entries := list(entry_points(group="afdcd_hf.losses", name=word)):
        name, found = word, entries[0].load()
    else:
        return None
    if not (isinstance(found, type) and issubclass(found, DistillationLoss)):
        raise ValueError(f"loss={word!r} is {found!r}; expected a subclass of afdcd_hf.DistillationLoss.")
    return name, found


def _module(path: str) -> ModuleType:
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ValueError(f"the loss {path!r} is not a file in {Path.cwd()}; give the path of a Python file.")
    # a unique name, under which the classes are found when unpickled in this process
    name = f"afdcd_own_loss_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # the suffix is .py
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise ValueError(f"the loss file {path} fails with {type(error).__name__}: {error}") from error
    return sys.modules[name]
