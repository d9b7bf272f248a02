"""Card, facts and results as they are published: with the repository's name where the folder's path stood."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..redaction import without_tokens
from .card_facts import CardFacts
from .facts_file import FACTS_NAME, facts_json, read_facts
from .folder_facts import RESULTS_NAME, public_protocol, read_results, with_repo_id
from .model_card import CARD_NAME, render_card
from .push_files import PushFile

_TEXTS = {".json", ".md", ".yaml", ".py"}


def as_published(folder: Path, files: Sequence[PushFile], repo_id: str) -> tuple[list[PushFile], list[str]]:
    """Put the repository's name into card, facts and results. The files in the folder stay as they are.

    A card is rendered again where it is the one of the facts beside it; any other is published as it is. Scores of a
    dataset on the Hub are added as `.eval_results/*.yaml`.
    Returns the files to upload and what the user should know; a text with an access token is a ValueError.
    """
    contents = {file.name: file.content for file in files}
    notes = []
    card = contents[CARD_NAME].read_text(encoding="utf-8", errors="replace") if CARD_NAME in contents else None
    if RESULTS_NAME in contents:
        results = read_results(folder / RESULTS_NAME)
        results["protocol"] = public_protocol(results["protocol"], repo_id)
        contents[RESULTS_NAME] = (json.dumps(results, indent=2) + "\n").encode("utf-8")
    if FACTS_NAME in contents:
        facts = read_facts(folder)
        public = with_repo_id(facts, repo_id)
        contents |= {FACTS_NAME: facts_json(public), **_eval_results(public)}
        if card == render_card(facts):
            card = render_card(public)
            contents[CARD_NAME] = card.encode("utf-8")
    if card is None:
        notes.append(f"there is no {CARD_NAME}: `afdcd card {folder}` renders one")
    elif repo_id not in card:
        notes.append(f"{CARD_NAME} does not name {repo_id} and is pushed as it is")
    found = [PushFile(name, content) for name, content in contents.items()]
    return found, notes + _private_texts(folder, found)


def _eval_results(facts: CardFacts) -> dict[str, bytes]:
    """The Hub's own format of scores, for a dataset that is there, and a whole split of it."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    dataset, measured = facts.dataset, facts.measured
    if dataset is None or dataset.hub_id is None or measured is None or not measured.covers_split:
        return {}
    entry = EvalResultEntry(
        dataset_id=dataset.hub_id,
        task_id="semantic-segmentation",
        value=round(100 * measured.mean_iou, 2),
        date=measured.date,
        source_url=f"https://huggingface.co/{facts.repo_id}",
        source_name="Model card",
        notes=f"mIoU in percent, split {dataset.split}; the protocol is in {RESULTS_NAME}",
    )
    name = f".eval_results/{dataset.hub_id.replace('/', '_')}.yaml"
    return {name: yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False).encode("utf-8")}


def _private_texts(folder: Path, files: Sequence[PushFile]) -> list[str]:
    """Warnings of texts that name folders of this machine; one with an access token is refused."""
    roots = {str(path) for path in (Path.home(), Path.cwd(), folder.resolve().parent) if len(path.parts) > 1}
    pattern = re.compile("(?:" + "|".join(map(re.escape, sorted(roots, reverse=True))) + r")/[^\s\"'`<>)|]*")
    warnings = []
    for file in files:
        text = file.read().decode("utf-8", "replace") if Path(file.name).suffix in _TEXTS else ""
        if without_tokens(text) != text:
            raise ValueError(f"{folder / file.name} holds what looks like an access token; remove it before pushing.")
        if match := pattern.search(text):
            warnings.append(f"{file.name} names a path of this machine, {match[0]}")
    return warnings
