"""From a recipe and a command line to the arguments of a run. Nothing heavy is imported before they are built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..messages import close_names
from ..recipes import parse_json_object
from ..structured_files import parse_yaml
from .options import (
    DataArguments,
    DistillationOptions,
    ModelArguments,
    SegmentationOptions,
    TeacherArguments,
    as_type,
    check_value,
    takes_several,
    type_hints,
)

_OURS = (ModelArguments, TeacherArguments, DataArguments, SegmentationOptions, DistillationOptions)
_FIELDS = {one.name: (kind, one) for kind in _OURS for one in fields(kind)}
# May be files or folders of this machine.
PATH_OPTIONS = {name for name, (_, one) in _FIELDS.items() if one.metadata["rules"].get("path")}
_OF_DISTILLATION = {one.name for kind in (TeacherArguments, DistillationOptions) for one in fields(kind)}


def parse_arguments(recipe: Mapping[str, Any], argv: Sequence[str] = (), *, distils: bool) -> list[Any]:
    """The argument dataclasses of a run: see `merge_arguments` and `build_arguments`."""
    return build_arguments(merge_arguments(recipe, argv, distils=distils), distils=distils)


def merge_arguments(recipe: Mapping[str, Any], argv: Sequence[str] = (), *, distils: bool) -> dict[str, Any]:
    """What a recipe and a command line, which wins, ask for; options of losses as `<loss>.<option>`.

    ValueError for one of our own options of another type or out of range, or that needs a teacher.
    """
    words = {name: _from_words(name, values) for name, values in words_by_option(argv).items()}
    if "loss_kwargs" in words and (dotted := [name for name in words if "." in name]):
        raise ValueError(f"Give --{dotted[0]} either alone or inside --loss_kwargs, not both.")
    if "loss_kwargs" in words or "loss" in words:
        recipe = with_options_of(recipe, "" if "loss_kwargs" in words else words["loss"])
    given = _with_flat_losses({**recipe, **words})
    if not distils and (foreign := [name for name in given if "." in name or name in _OF_DISTILLATION]):
        raise ValueError(f"{foreign[0]!r} belongs to a distillation: use `afdcd distill`.")
    return {name: check_value(*_FIELDS[name], value) if name in _FIELDS else value for name, value in given.items()}


def build_arguments(given: Mapping[str, Any], *, distils: bool) -> list[Any]:
    """The dataclasses of model, teacher (if `distils`), data and training; ValueError for unknown names."""
    from ..losses import LOSSES
    from .training_args import DistillationTrainingArguments, SegmentationTrainingArguments

    kinds: list[type] = [ModelArguments, DataArguments, SegmentationTrainingArguments]
    if distils:
        kinds = [ModelArguments, TeacherArguments, DataArguments, DistillationTrainingArguments]
    known = {one.name: kind for kind in kinds for one in fields(kind) if one.init}  # type: ignore[arg-type]
    values: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    for key, value in given.items():
        loss, dot, option = key.partition(".")
        if dot and loss not in LOSSES and loss not in str(given.get("loss")):  # there is also my_file.py:MyLoss
            raise ValueError(f"{key!r}: unknown loss {loss!r}; known losses: {', '.join(LOSSES)}.")
        if dot:
            values[kinds[-1]].setdefault("loss_kwargs", {}).setdefault(loss, {})[option] = value
        elif key in known:
            values[known[key]][key] = value
        else:
            hint = close_names(key, {"config", *known})
            raise ValueError(f"Unknown argument {key!r}.{hint} --help_all lists all arguments.")
    built: list[Any] = [kind(**own) for kind, own in values.items()]
    next(one for one in built if isinstance(one, DataArguments)).check_stream(*built)
    return built


def training_part(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A distillation recipe without what only a distillation needs: the student's baseline."""
    return {key: value for key, value in recipe.items() if key not in _OF_DISTILLATION and "." not in key}


def with_options_of(recipe: Mapping[str, Any], losses: Any) -> dict[str, Any]:
    """A recipe without the options of losses that are not among `losses`, such as "kd+my_file.py:MyLoss"."""
    names = {name.strip().rpartition(":")[2] for name in str(losses).split("+")}
    return {key: value for key, value in recipe.items() if "." not in key or key.partition(".")[0] in names}


def words_by_option(argv: Sequence[str]) -> dict[str, list[str]]:
    """`--data_dir D --crop_size=192 256` as option name -> words; of an option given twice, the last words."""
    found: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in argv:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            words = found[name.replace("-", "_")] = [value] if equals else []
        elif words is None:
            raise ValueError(f"{word!r} does not belong to an option. --help lists them.")
        else:
            words.append(word)
    return found


def read_value(name: str, words: Sequence[str]) -> Any:
    """The words of a command-line option, at least one, as a recipe would have them; several as a list."""
    if not words:
        raise ValueError(f"--{name} needs a value.")
    try:
        values = [parse_yaml(word) for word in words]
    except ValueError as error:
        raise ValueError(f"--{name} {' '.join(words)}: {error}") from error
    return values[0] if len(values) == 1 else values


def _from_words(name: str, words: list[str]) -> Any:
    if name not in _FIELDS:  # of a loss, or of transformers, whose switches may stand alone
        return read_value(name, words) if words or "." in name else True
    hint = type_hints(_FIELDS[name][0])[name]
    if not words:
        try:
            return as_type(True, hint)  # an option alone switches it on
        except TypeError:
            raise ValueError(f"--{name} needs a value.") from None
    return list(words) if len(words) > 1 or takes_several(hint) else words[0]


def _with_flat_losses(given: Mapping[str, Any]) -> dict[str, Any]:
    """`loss_kwargs` as `<loss>.<option>`; those that stand by themselves win."""
    losses = given.get("loss_kwargs") or {}
    if isinstance(losses, str):
        losses = parse_json_object("loss_kwargs", losses)
    if not isinstance(losses, Mapping) or not all(isinstance(own, Mapping) for own in losses.values()):
        raise ValueError(f"loss_kwargs={losses!r} must give each loss its options, as {{kd: {{weight: 1.0}}}}.")
    flat = {f"{loss}.{option}": value for loss, own in losses.items() for option, value in own.items()}
    return {**flat, **{name: value for name, value in given.items() if name != "loss_kwargs"}}
