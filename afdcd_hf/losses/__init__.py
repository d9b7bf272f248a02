"""Distillation losses, and how a recipe's words become one: `build_loss("kd+af_dcd", {...}, 512, 2048)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from .afdcd import AfDcdLoss
from .attention_transfer import AttentionTransferLoss
from .base import DistillationLoss
from .cirkd import CIRKDLoss
from .combined import LossPerPair, LossSum
from .cwd import CWDLoss
from .dist import DISTLoss
from .fitnet import FitNetLoss
from .ifvd import IFVDLoss
from .kd import KDLoss
from .mgd import MGDLoss
from .skd import SKDLoss

__all__ = [
    "LOSSES",
    "AfDcdLoss",
    "AttentionTransferLoss",
    "CIRKDLoss",
    "CWDLoss",
    "DISTLoss",
    "DistillationLoss",
    "FitNetLoss",
    "IFVDLoss",
    "KDLoss",
    "LossPerPair",
    "LossSum",
    "MGDLoss",
    "SKDLoss",
    "build_loss",
    "needs_feature_map",
    "validate_loss_spec",
]

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
        spec: names of `LOSSES` joined by "+", each once, such as "kd+af_dcd".
        loss_kwargs: name to the options of that loss, such as
            `{"kd": {"weight": 1.0}, "af_dcd": {"feature_weight": 2e-6, "contrast_weight": 5e-3}}`.
        student_channels: of the map to distil, or of each of several; None is enough for losses on logits alone.
        teacher_channels: likewise, and as many.
        num_classes: of the networks; for losses with an option of that name which is not given.

    Returns:
        The loss itself for one name, a `LossSum` for several. With several pairs of maps, a loss on maps becomes a
        `LossPerPair`, whose losses have equal options; a loss on logits, or a term on them, is there once.

    Raises:
        ValueError: see `validate_loss_spec`; or channel counts that are missing or do not fit the options.
    """
    names = validate_loss_spec(spec, loss_kwargs)
    channels = (_each(student_channels), _each(teacher_channels))
    if len(channels[0]) != len(channels[1]):
        raise ValueError(
            f"student_channels={student_channels} and teacher_channels={teacher_channels} belong to different numbers "
            "of maps; each map of the student needs one of the teacher."
        )
    options = {name: _with_classes(name, (loss_kwargs or {}).get(name, {}), num_classes) for name in names}
    losses = {name: _build_one(name, options[name], channels) for name in names}
    return losses[names[0]] if len(names) == 1 else LossSum(losses)


def validate_loss_spec(spec: str, loss_kwargs: LossOptions | None) -> list[str]:
    """Check a recipe's loss before any network is built.

    Args:
        spec: see `build_loss`.
        loss_kwargs: see `build_loss`.

    Returns:
        The names in `spec`, in its order.

    Raises:
        ValueError: an unknown or repeated loss; options for a loss that is not in `spec`; unknown, missing or bad
            options.
    """
    names = _split(spec)
    options = loss_kwargs or {}
    strangers = [name for name in options if name not in names]
    if strangers:
        raise ValueError(
            f"loss_kwargs has options for {strangers[0]!r}, which is not in loss={spec!r}; "
            f"add it to the loss, or remove them. Options go under the name of a loss: {', '.join(names)}."
        )
    for name in names:
        _check_options(name, options.get(name, {}))
    return names


def needs_feature_map(spec: str, loss_kwargs: LossOptions | None) -> bool:
    """Whether a recipe's loss reads feature maps with these options; arguments and errors as `validate_loss_spec`."""
    options = loss_kwargs or {}
    return any(_reads_map(name, options.get(name, {})) for name in validate_loss_spec(spec, loss_kwargs))


def _reads_map(name: str, options: Mapping[str, Any]) -> bool:
    loss_class = LOSSES[name]
    weight = loss_class.map_weight_option
    return loss_class.needs_feature_map and (weight is None or options.get(weight) != 0)


def _split(spec: str) -> list[str]:
    names = [name.strip() for name in spec.split("+")]
    for name in names:
        if name not in LOSSES:
            raise ValueError(
                f"unknown loss {name!r} in loss={spec!r}; known are {', '.join(LOSSES)}, "
                "joined by '+' as in 'kd+af_dcd'."
            )
        if names.count(name) > 1:
            raise ValueError(f"the loss {name!r} is more than once in loss={spec!r}; name each loss once.")
    return names


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping):
        raise ValueError(f"loss_kwargs[{name!r}] is {options!r}; expected option names with values.")
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    accepted = {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}
    unknown = [option for option in options if option not in accepted]
    if unknown:
        raise ValueError(f"unknown option {name}.{unknown[0]}; {name} accepts {', '.join(accepted)}.")
    missing = [option for option in accepted if accepted[option] is inspect.Parameter.empty and option not in options]
    if missing:
        raise ValueError(f"missing {' and '.join(f'{name}.{option}' for option in missing)}; give it a value.")
    LOSSES[name].check_arguments({**accepted, **options})


def _with_classes(name: str, options: Mapping[str, Any], num_classes: int | None) -> Mapping[str, Any]:
    """The options with the number of classes, where the loss wants to know it and the recipe does not say it."""
    wanted = "num_classes" in inspect.signature(LOSSES[name]).parameters and options.get("num_classes") is None
    return {**options, "num_classes": num_classes} if wanted else options


def _each(channels: Channels) -> tuple[int | None, ...]:
    return tuple(channels) if isinstance(channels, Sequence) else (channels,)


def _build_one(
    name: str, options: Mapping[str, Any], channels: tuple[tuple[int | None, ...], tuple[int | None, ...]]
) -> DistillationLoss:
    loss_class = LOSSES[name]
    if not loss_class.needs_feature_map:
        return loss_class(**options)
    if not _reads_map(name, options):
        return loss_class(None, None, **options)
    pairs = list(zip(*channels, strict=True))
    for student, teacher in pairs:
        if None in (student, teacher):
            raise ValueError(
                f"the loss {name!r} compares feature maps and needs their channels; it got "
                f"student_channels={student} and teacher_channels={teacher}."
            )
    once = loss_class.logits_weight_option
    further = options if once is None else {**options, once: 0}
    losses = [loss_class(*pair, **(further if index else options)) for index, pair in enumerate(pairs)]
    return losses[0] if len(losses) == 1 else LossPerPair(losses)
