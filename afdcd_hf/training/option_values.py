"""Options as dataclass fields: one place checks the type and range of every value, wherever it comes from."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping
from dataclasses import Field, field, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..recipes import parse_json_object

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
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
        ValueError: see `check_value`.
    """
    for one in fields(options):
        value = check_value(type(options), one, getattr(options, one.name), (rules or {}).get(one.name))
        setattr(options, one.name, value)


def check_value(kind: type, one: Field, value: Any, rules: Mapping[str, Any] | None = None) -> Any:
    """The value of one option in the type of its annotation, a path without `~`.

    Args:
        kind: the dataclass.
        one: its field.
        value: as a recipe or the words of a command line have it.
        rules: where the field was not made by `option`.

    Raises:
        ValueError: another type, or out of range; the message says what is expected.
    """
    hint, rules = type_hints(kind)[one.name], {**one.metadata.get("rules", {}), **(rules or {})}
    try:
        typed = as_type(one.name, value, hint)
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
    return get_origin(hint) is list or (str not in members and any(get_origin(one) is list for one in members))


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


def as_type(name: str, value: Any, hint: Any) -> Any:
    """A value as the annotated type; TypeError where that would change what it means."""
    origin, members = get_origin(hint), get_args(hint)
    if hint is Any or value is None and hint is types.NoneType:
        return value
    if origin in (Union, types.UnionType):
        return _as_one_of(name, value, members)
    if origin is Literal and value in members:
        return value
    if (hint is dict or origin is dict) and isinstance(value, (Mapping, str)):
        return parse_json_object(name, value) if isinstance(value, str) else dict(value)
    if origin is list and isinstance(value, (list, tuple)):
        return [as_type(name, one, members[0]) for one in value]
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    raise TypeError


def type_name(hint: Any) -> str:
    """A type as error messages and help call it."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(one) for one in members if one is not types.NoneType))
    if origin is list:
        return f"a list of {type_name(members[0]).split(' ', 1)[-1]}s"
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", dict: "a mapping"}
    return names.get(origin or hint, getattr(hint, "__name__", str(hint)))


def _as_one_of(name: str, value: Any, members: tuple[Any, ...]) -> Any:
    if value is None and types.NoneType in members:
        return None
    problem: Exception = TypeError()
    for member in members:
        try:
            return as_type(name, value, member)
        except (TypeError, ValueError) as error:
            problem = error if isinstance(error, ValueError) else problem  # JSON that cannot be read says more
    raise problem


def _truth(value: Any) -> bool:
    word = value.lower() if isinstance(value, str) else value
    if isinstance(word, bool) or word in _TRUE or word in _FALSE:
        return word is True or word in _TRUE
    raise TypeError


def _whole(value: Any) -> int:
    number = _finite(value)
    if isinstance(value, int):
        return value
    if number != int(number):
        raise TypeError
    return int(number)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise TypeError from None
    if not math.isfinite(number):
        raise TypeError
    return number


def _text(value: Any) -> str:
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError


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
