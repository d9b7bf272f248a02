"""`card_facts.json`: the facts of a card as a file beside it, so that the card can be rendered again."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..atomic_io import written_whole
from .card_facts import CardFacts

FACTS_NAME = "card_facts.json"
_FORMAT = 1


def write_facts(folder: str | Path, facts: CardFacts) -> Path:
    """Writes the facts as `card_facts.json`, replacing those of an earlier run.

    Args:
        folder: The network's folder.
        facts: What is known of the network. Tuples inside free-form values (settings, protocol) become lists, and NaN
            becomes None, which means the same to a card; all else comes back as it was.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If a fact is no value that JSON has.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; save the network first and pass the folder it is in.")
    content = {"format": _FORMAT, **_plain(facts, "facts")}
    with written_whole(folder / FACTS_NAME) as part:
        part.write_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))
    return folder / FACTS_NAME


def read_facts(folder: str | Path) -> CardFacts:
    """Reads the facts that `write_facts` wrote.

    Args:
        folder: The network's folder, or the file itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, holds facts that this version does not know, or facts that are wrong.
    """
    path = Path(folder)
    path = path / FACTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a training writes {FACTS_NAME} beside its results.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise ValueError(f"{path} is no file of facts of format {_FORMAT}; it comes from another version or program.")
    try:
        return _restored(content, CardFacts, "facts")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _plain(value: Any, where: str) -> Any:
    """The value in what JSON has."""
    if dataclasses.is_dataclass(value):
        return {
            item.name: _plain(getattr(value, item.name), f"{where}.{item.name}") for item in dataclasses.fields(value)
        }
    if hasattr(value, "_asdict"):
        return _plain(value._asdict(), where)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"{where} is {value!r} ({type(value).__name__}); pass numbers, text, lists and mappings only.")


def _restored(value: Any, kind: Any, where: str) -> Any:
    """The value as `kind`, an annotation of the facts, says."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = [one for one in inner if one is not types.NoneType]
        return None if value is None else _restored(value, kind, where)
    if origin is list:
        return [_restored(item, inner[0], where) for item in value]
    if origin is tuple:
        return tuple(value)
    if dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return _restored_fields(value, kind, where)
    return value


def _restored_fields(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r}, where the fields of {kind.__name__} are expected.")
    types_of = get_type_hints(kind)
    if unknown := [name for name in value if name not in types_of]:
        raise ValueError(f"{where} has {unknown}, which this version does not know; known: {', '.join(types_of)}.")
    return kind(**{name: _restored(item, types_of[name], f"{where}.{name}") for name, item in value.items()})
