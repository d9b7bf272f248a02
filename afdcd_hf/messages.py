"""Helpers for messages: suggestions for mistyped names, one-line errors, no access tokens and no local paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

# Hugging Face's tokens start with hf_ or api_org_; the length keeps names such as hf_model readable.
_TOKEN = re.compile(r"\b(hf_|api_org_)[A-Za-z0-9]{10,}")


def close_names(name: str, known: Iterable[str]) -> str:
    """Return the closest known names to end an error message: ` Close: backbone, backbone_kwargs.`, or ""."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" Close: {', '.join(close)}." if close else ""


def chosen(table: Mapping[str, T], name: str, what: str) -> T:
    """Return a table's entry; for an unknown name, raise a ValueError with close names and all known ones."""
    if name not in table:
        raise ValueError(f"Unknown {what} {name!r}.{close_names(name.lower(), table)} Known: {', '.join(table)}.")
    return table[name]


def without_tokens(text: str) -> str:
    """Replace everything in the text that looks like an access token by its prefix and `***`."""
    return _TOKEN.sub(r"\1***", text)


def public_name(name_or_path: str | Path) -> str:
    """Return Hub ids and benchmark names unchanged, and only the last part of local paths, which are private."""
    text = str(name_or_path)
    if Path(text).exists() or not (HUB_ID.fullmatch(text) or "/" not in text):
        return Path(text).resolve().name
    return text


def plain_message(error: Exception) -> str:
    """Return an error's message in one line, without the traceback that a torch data worker wraps around it."""
    text = str(error)
    if text.startswith("Caught "):
        found = re.findall(rf"^(?:[\w.<>]+\.)?{re.escape(type(error).__name__)}: ", text, flags=re.MULTILINE)
        text = text.rsplit(f"\n{found[-1]}", 1)[-1] if found else text
    text = " ".join(text.split()) or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."
