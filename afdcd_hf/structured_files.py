"""Reading JSON files that someone may have edited, cut short or replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_json(path: str | Path, what: str, kind: type[T] = dict) -> T:
    """Read a JSON file whose outermost value must be of one type.

    Args:
        path: the file.
        what: what it is, for errors, such as "the facts of a model card".
        kind: the type of the outermost value: dict or list.

    Raises:
        OSError: a file that is missing or cannot be read.
        ValueError: content that is no JSON, or of another type.
    """
    path = Path(path)
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} ({what}) is not valid JSON: {error}. Restore the file or write it again.") from error
    if not isinstance(value, kind):
        names = {dict: "an object", list: "an array"}
        raise ValueError(
            f"{path} ({what}) must hold {names.get(kind, kind.__name__)}, but holds {type(value).__name__}."
        )
    return value
