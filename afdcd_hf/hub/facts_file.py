"""`card_facts.json`: the facts of a card as a file beside it, so that the card can be rendered again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..atomic_io import written_whole
from ..structured_files import read_json
from .card_facts import CardFacts, restored

FACTS_NAME = "card_facts.json"
_FORMAT = 1
_NO_LONGER_KNOWN = ("energy_joules",)  # of `training`; files of older versions have it


def write_facts(folder: str | Path, facts: CardFacts) -> Path:
    """Write the facts as `card_facts.json`, whole or not at all, and return its path."""
    path = Path(folder) / FACTS_NAME
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; save the model first and pass the folder it is in.")
    with written_whole(path) as part:
        part.write_bytes(facts_json(facts))
    return path


def facts_json(facts: CardFacts) -> bytes:
    """The content of that file."""
    content = {"format": _FORMAT, **dataclasses.asdict(facts)}
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def read_facts(folder: str | Path) -> CardFacts:
    """Read the facts in a model's folder, or in the file itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or holds facts that are unknown, of another type or out of range.
    """
    path = Path(folder)
    path = path / FACTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a training writes {FACTS_NAME} beside its results.")
    content: dict[str, Any] = read_json(path, "the facts of a model card")
    if content.pop("format", None) != _FORMAT:
        raise ValueError(f"{path} is not a file of facts of format {_FORMAT}; another version or program wrote it.")
    if isinstance(training := content.get("training"), dict):
        content["training"] = {name: value for name, value in training.items() if name not in _NO_LONGER_KNOWN}
    return restored(content, CardFacts, str(path))
