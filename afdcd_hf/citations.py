"""BibTeX entries of the papers behind this package, from `references.bib`, for losses and model cards."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def bibtex(key: str) -> str:
    """Return the entry with this key."""
    entries = Path(__file__).with_name("references.bib").read_text("utf-8").strip().split("\n\n")
    return next(entry for entry in entries if entry.split("{", 1)[1].startswith(f"{key},"))


AF_DCD = bibtex("fan2023afdcd")
