"""Card, facts and results as they are published: with the repository's name where the folder's path stood."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .card_facts import CardFacts
from .facts_file import FACTS_NAME, read_facts, write_facts
from .model_card import MARKER, render_card
from .push_files import CARD_NAME, RESULTS_NAME, PushFile, read_json

_TEXTS = {".json", ".md", ".yaml"}


def as_published(folder: Path, files: Sequence[PushFile], repo_id: str) -> tuple[list[PushFile], list[str]]:
    """Put the repository's name into card, facts and results. The files in the folder stay as they are.

    A card is rendered again where it is the one of the facts beside it; any other is published as it is.

    Args:
        folder: the network's folder.
        files: what is to be published.
        repo_id: where.

    Returns:
        The files to upload, and what the user should know.
    """
    from .folder_facts import with_repo_id

    names = {file.name for file in files}
    changed, notes = {}, []
    if RESULTS_NAME in names:
        changed[RESULTS_NAME] = _results(folder / RESULTS_NAME, repo_id)
    if FACTS_NAME in names:
        facts = read_facts(folder)
        published = with_repo_id(facts, repo_id)
        changed[FACTS_NAME] = _facts_file(published)
        if _card_text(folder) == render_card(facts):
            changed[CARD_NAME] = render_card(published).encode("utf-8")
    if CARD_NAME not in names:
        notes.append(f"there is no {CARD_NAME}: `afdcd card {folder}` renders one")
    elif CARD_NAME not in changed and repo_id not in _card_text(folder):
        notes.append(f"{CARD_NAME} does not name {repo_id} and is pushed as it is")
    files = [PushFile(file.name, changed.get(file.name, file.content)) for file in files]
    return files, notes + _local_paths(folder, files)


def is_generated(card: str) -> bool:
    """Whether a card was rendered by this package, and not edited by hand since."""
    return MARKER in card.splitlines()


def _card_text(folder: Path) -> str:
    path = folder / CARD_NAME
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _results(path: Path, repo_id: str) -> bytes:
    from .folder_facts import public_name

    results = read_json(path)
    protocol = results.get("protocol")
    if isinstance(protocol, dict):
        paths = [name for name in ("dataset", "list_file") if protocol.get(name)]
        protocol |= {"model": repo_id, **{name: public_name(protocol[name]) for name in paths}}
    return (json.dumps(results, indent=2) + "\n").encode("utf-8")


def _facts_file(facts: CardFacts) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_facts(folder, facts).read_bytes()


def _local_paths(folder: Path, files: Sequence[PushFile]) -> list[str]:
    """Warnings of texts that name folders of this machine."""
    roots = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 1}
    pattern = re.compile("(?:" + "|".join(map(re.escape, sorted(roots, reverse=True))) + r")/[^\s\"'`<>)|]*")
    texts = {file.name: file.read().decode("utf-8", "replace") for file in files if Path(file.name).suffix in _TEXTS}
    found = {name: match[0] for name, text in texts.items() if (match := pattern.search(text))}
    return [f"{name} names a path of this machine, {path}" for name, path in found.items()]
