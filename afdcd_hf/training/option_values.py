"""Options as dataclass fields: one place checks the type and range of every value, wherever it comes from."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import Field, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..recipes import parse_json_object

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
_RULES = {
    "at_least": (lambda value, bound: value >= bound, "{} or more"),
    "above": (lambda value, bound: value > bound, "above {}"),
    "at_most": (lambda value, bound: value <= bound, "{} or less"),
    "below": (lambda value, bound: value < bound, "below {}"),
}


def option(default: Any, help: str, **rules: Any) -> Any:
    """A dataclass field that is an option of recipes and command lines.

    Args:
        default: its value where nothing is given; a list is copied.
        help: what it does, for `--help`.
        rules: `at_least`, `above`, `at_most`, `below` for numbers (also those in a list), `length` for lists,
            `path=True` for files and folders, whose `~` is expanded.
    """
    metadata = {"help": help, "rules": rules}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_options(options: Any, rules: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Give every field of a dataclass the type of its annotation, as far as nothing is lost, and check its range.

    Args:
        options: an instance; its fields are set.
        rules: of fields that were not made by `option`.

    Raises:
        ValueError: a value of another type, or out of range; the message says what is expected.
    """
    for one in fields(options):
        value = check_value(type(options), one, getattr(options, one.name), (rules or {}).get(one.name, {}))
        setattr(options, one.name, value)


def check_value(kind: type, one: Field, value: Any, more_rules: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
    """The checked value of one field, as a recipe or the words of a command line have it: see `check_options`."""
    hint, rules = type_hints(kind)[one.name], {**one.metadata.get("rules", {}), **more_rules}
    if isinstance(value, str) and str not in get_args(hint) and dict in {get_origin(m) or m for m in get_args(hint)}:
        value = parse_json_object(one.name, value)
    try:
        typed = as_type(value, hint)
    except TypeError:
        if "rules" not in one.metadata and not isinstance(value, _PLAIN):
            return value  # transformers' own objects, given in Python
        expected = ", ".join([type_name(hint), *_in_words(rules)])
        raise ValueError(f"{one.name}={value!r} must be {expected}.") from None
    _check_rules(one.name, typed, rules)
    return os.path.expanduser(typed) if rules.get("path") and isinstance(typed, str) else typed


def takes_several(hint: Any) -> bool:
    """Whether a command line's single word is a list of one."""
    members = get_args(hint) or (hint,)
    kinds = {get_origin(one) or one for one in members}
    return get_origin(hint) is list or (list in kinds and not kinds & {str, Literal})


def plain_value(value: Any) -> Any:
    """Fit for YAML and JSON: without the enums that transformers makes of words, also inside lists and mappings."""
    if isinstance(value, Mapping):
        return {key: plain_value(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(one) for one in value]
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


@cache
def type_hints(kind: type) -> dict[str, Any]:
    """The annotations of a class and its bases, as types."""
    return get_type_hints(kind)


def as_type(value: Any, hint: Any) -> Any:
    """A value as the annotated type; TypeError where that would change what it means."""
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        for member in members:
            with suppress(TypeError):
                return as_type(value, member)
    elif kind in _SCALARS:
        return _SCALARS[kind](value)
    elif kind is list and isinstance(value, (list, tuple)):
        return [as_type(one, members[0]) for one in value]
    elif kind is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint is Any or (value in members if kind is Literal else isinstance(kind, type) and isinstance(value, kind)):
        return value
    raise TypeError


def type_name(hint: Any) -> str:
    """A type as error messages and help call it."""
    kind, members = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in members if one is not types.NoneType))
    if kind is Literal:
        return " or ".join(map(repr, members))
    if kind is list:
        return f"a list of {type_name(members[0]).split(' ', 1)[-1]}s"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", dict: "a mapping"}
    return names.get(kind, getattr(hint, "__name__", str(hint)))


def _truth(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTH:
        return _TRUTH[value.lower()]
    raise TypeError


def _whole(value: Any) -> int:
    number = _finite(value)
    if number != int(number):
        raise TypeError
    return value if isinstance(value, int) else int(number)


def _finite(value: Any) -> float:
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            if math.isfinite(float(value)):
                return float(value)
    raise TypeError


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, os.PathLike, int)):
        raise TypeError
    return value if isinstance(value, str) else str(value)


_SCALARS: dict[Any, Any] = {bool: _truth, int: _whole, float: _finite, str: _text}


def _check_rules(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    values = value if isinstance(value, list) else [value]
    numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    out_of_range = any(not _RULES[rule][0](one, rules[rule]) for rule in _RULES if rule in rules for one in numbers)
    if out_of_range or (isinstance(value, list) and len(value) != rules.get("length", len(value))):
        raise ValueError(f"{name}={value!r} must be {', '.join(_in_words(rules))}.")


def _in_words(rules: Mapping[str, Any]) -> list[str]:
    number = [f"{rules['length']} values"] if "length" in rules else []
    return number + [_RULES[rule][1].format(rules[rule]) for rule in _RULES if rule in rules]
