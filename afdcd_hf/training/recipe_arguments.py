"""Turns a recipe and a command line into the arguments of a run. Heavy imports wait until these are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ..messages import close_names, public_name
from ..recipes import parse_json_object
from ..structured_files import parse_yaml
from .options import (
    DataArguments,
    DistillationOptions,
    ModelArguments,
    SegmentationOptions,
    TeacherArguments,
    accepts_list,
    allows_list,
    check_value,
    convert,
    plain_value,
    type_hints,
)

_OPTION_CLASSES = (ModelArguments, TeacherArguments, DataArguments, SegmentationOptions, DistillationOptions)
_FIELDS = {field.name: (kind, field) for kind in _OPTION_CLASSES for field in fields(kind)}
# Options that may be local files or folders.
PATH_OPTIONS = {name for name, (_, field) in _FIELDS.items() if field.metadata["rules"].get("path")}
_DISTILLATION_ONLY = {field.name for kind in (TeacherArguments, DistillationOptions) for field in fields(kind)}


def parse_arguments(recipe: Mapping[str, Any], argv: Sequence[str] = (), *, distils: bool) -> list[Any]:
    """Return the argument dataclasses of a run: see `merge_arguments` and `build_arguments`."""
    return build_arguments(merge_arguments(recipe, argv, distils=distils), distils=distils)


def merge_arguments(recipe: Mapping[str, Any], argv: Sequence[str] = (), *, distils: bool) -> dict[str, Any]:
    """Merge a recipe and a command line, which takes precedence; loss options are named `<loss>.<option>`.

    A distillation always has a `loss`, by which its recipe is recognised.

    ValueError if one of our own options has the wrong type, is out of range, or needs a teacher.
    """
    words = {name: _parse_words(name, values) for name, values in words_by_option(argv).items()}
    if "loss_kwargs" in words and (dotted := [name for name in words if "." in name]):
        raise ValueError(f"Give loss options either as --{dotted[0]} or inside --loss_kwargs, not both.")
    if "loss_kwargs" in words or "loss" in words:
        recipe = drop_other_loss_options(recipe, "" if "loss_kwargs" in words else words["loss"])
    loss = {"loss": DistillationOptions.loss} if distils else {}
    given = _flatten_loss_kwargs({**loss, **recipe, **words})
    if not distils and (foreign := [name for name in given if "." in name or name in _DISTILLATION_ONLY]):
        raise ValueError(f"{foreign[0]!r} is an option of distillation: use `afdcd distill`.")
    given = {name: check_value(*_FIELDS[name], value) if name in _FIELDS else value for name, value in given.items()}
    steps, epochs = given.get("max_steps") or 0, given.get("num_train_epochs")
    if steps > 0 and epochs is not None:
        what = f"max_steps={steps} and num_train_epochs={epochs:g}"
        raise ValueError(f"{what} exclude each other: max_steps=-1 disables a recipe's max_steps.")
    return given


def build_arguments(given: Mapping[str, Any], *, distils: bool) -> list[Any]:
    """Build the dataclasses of model, teacher (if `distils`), data and training; ValueError for unknown names."""
    from ..losses import LOSSES
    from .training_args import DistillationTrainingArguments, SegmentationTrainingArguments

    kinds: list[type] = [ModelArguments, DataArguments, SegmentationTrainingArguments]
    if distils:
        kinds = [ModelArguments, TeacherArguments, DataArguments, DistillationTrainingArguments]
    known = {field.name: kind for kind in kinds for field in fields(kind) if field.init}  # type: ignore[arg-type]
    values: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    for key, value in given.items():
        loss, dot, option = key.partition(".")
        if dot and loss not in {*LOSSES, *_loss_names(given.get("loss"))}:
            raise ValueError(f"{key!r}: unknown loss {loss!r}; known losses: {', '.join(LOSSES)}.")
        if dot:
            values[kinds[-1]].setdefault("loss_kwargs", {}).setdefault(loss, {})[option] = value
        elif key in known:
            values[known[key]][key] = value
        else:
            hint = close_names(key, {"config", *known})
            raise ValueError(f"Unknown argument {key!r}.{hint} --help_all lists all arguments.")
    built: list[Any] = [kind(**own) for kind, own in values.items()]
    next(args for args in built if isinstance(args, DataArguments)).check_stream(*built)
    return built


def training_part(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the options of teacher and loss from a distillation recipe: the student's baseline."""
    return {key: value for key, value in recipe.items() if key not in _DISTILLATION_ONLY and "." not in key}


def drop_other_loss_options(recipe: Mapping[str, Any], losses: Any) -> dict[str, Any]:
    """Drop the options of all losses that are not in `losses`, such as "kd+my_file.py:MyLoss", from a recipe."""
    names = _loss_names(losses)
    return {key: value for key, value in recipe.items() if "." not in key or key.partition(".")[0] in names}


def _loss_names(losses: Any) -> set[str]:
    return {name.strip().rpartition(":")[2] for name in str(losses).split("+")}  # of my_file.py:MyLoss the last part


def public_value(key: str, value: Any) -> Any:
    """Make the value of an option public: reduce a local file or folder to its last name."""
    if key == "loss" and value is not None:  # which may contain my_file.py:MyLoss
        return "+".join(Path(word.strip()).name for word in value.split("+"))
    if isinstance(value, str) and (key in PATH_OPTIONS or Path(value).is_absolute()):  # such as transformers' deepspeed
        return public_name(value)
    return plain_value(value)


def words_by_option(argv: Sequence[str]) -> dict[str, list[str]]:
    """Split `--data_dir D --crop_size=192 256` into option name -> words; a repeated option overrides the earlier."""
    found: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            words = found[name.replace("-", "_")] = [value] if equals else []
        elif words is None:
            raise ValueError(f"{word!r} does not belong to any option. --help lists the options.")
        else:
            words.append(word)
    return found


def read_value(name: str, words: Sequence[str]) -> Any:
    """Parse the words of a command-line option as a recipe would; several words become a list."""
    if not words:
        raise ValueError(f"--{name} needs a value.")
    try:
        values = [parse_yaml(word) for word in words]
    except ValueError as error:
        raise ValueError(f"--{name} {' '.join(words)}: {error}") from error
    return values[0] if len(values) == 1 else values


def _parse_words(name: str, words: list[str]) -> Any:
    if name not in _FIELDS:  # an option of a loss, or of transformers, whose switches need no value
        return read_value(name, words) if words or "." in name else True
    hint = type_hints(_FIELDS[name][0])[name]
    if not words:
        try:
            return convert(True, hint)  # an option without a value is switched on
        except TypeError:
            raise ValueError(f"--{name} needs a value.") from None
    if words == ["null"] and type(None) in get_args(hint):
        return None  # unsets a recipe's value
    if len(words) == 1 and words[0].startswith("[") and allows_list(hint):
        return read_value(name, words)  # written as in a recipe: "[1.0, 2.0]"
    return list(words) if len(words) > 1 or accepts_list(hint) else words[0]


def _flatten_loss_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten `loss_kwargs` to `<loss>.<option>`; options given in that form take precedence."""
    losses = given.get("loss_kwargs") or {}
    if isinstance(losses, str):
        losses = parse_json_object("loss_kwargs", losses)
    if not isinstance(losses, Mapping) or not all(isinstance(own, Mapping) for own in losses.values()):
        raise ValueError(f"loss_kwargs={losses!r} must map each loss to its options, as {{kd: {{weight: 1.0}}}}.")
    flat = {f"{loss}.{option}": value for loss, own in losses.items() for option, value in own.items()}
    return {**flat, **{name: value for name, value in given.items() if name != "loss_kwargs"}}
