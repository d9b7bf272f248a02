"""What a card claims: the number in its metadata, and the protocol that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .card_facts import CardFacts
from .facts_file import FACTS_NAME, read_facts
from .folder_facts import RESULTS_NAME

CARD_NAME = "README.md"
_ROUNDING = 5.0001e-5  # metadata has percent with two decimals


@dataclass(frozen=True)
class Claim:
    """A published score and how it was measured.

    Attributes:
        mean_iou: Fraction 0-1, as exact as it is known.
        source: File that says it.
        protocol: How it was measured, as in `results.json`.
        per_category_iou: Class name to IoU, empty where unknown.
        fingerprint: Of the images and labels; None where unknown.
        doubts: Where the folder contradicts itself.
    """

    mean_iou: float
    source: str
    protocol: Mapping[str, Any]
    per_category_iou: Mapping[str, float | None]
    fingerprint: str | None = None
    doubts: tuple[str, ...] = ()


def read_claim(folder: Path) -> Claim:
    """The claim of a model's folder.

    The number comes from the card's metadata (`model-index`), since that is what the world sees; facts or results
    beside it bring the protocol, more decimals, and the IoU of each class.

    Raises:
        FileNotFoundError: If the folder has neither card nor facts nor results.
        ValueError: If no measured number is claimed, if several are and nothing tells which to take, or if a file
            cannot be read.
    """
    facts = read_facts(folder) if (folder / FACTS_NAME).is_file() else None
    known = _of_facts(facts) or _of_results(folder / RESULTS_NAME)
    card = folder / CARD_NAME
    published = _of_card(card, known.protocol if known else None) if card.is_file() else None
    if published is None and known is None:
        raise _nothing_claimed(folder, facts)
    if published is None:
        return known
    if known is None:
        return published
    difference = abs(published.mean_iou - known.mean_iou)
    if difference <= _ROUNDING:
        return known
    doubt = f"{CARD_NAME} says {100 * published.mean_iou:.2f} %, {known.source} {100 * known.mean_iou:.2f} %"
    return Claim(published.mean_iou, CARD_NAME, known.protocol, known.per_category_iou, known.fingerprint, (doubt,))


def _of_facts(facts: CardFacts | None) -> Claim | None:
    if facts is None or facts.measured is None:
        return None
    measured, dataset = facts.measured, facts.dataset
    protocol = {"dataset": dataset.name, "split": dataset.split, **measured.protocol}
    return Claim(measured.mean_iou, FACTS_NAME, protocol, measured.per_category_iou, dataset.fingerprint)


def _of_results(path: Path) -> Claim | None:
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return Claim(results["mean_iou"], path.name, results["protocol"], results["per_category_iou"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no results.json of `afdcd evaluate`: {error!r}") from error


def _of_card(path: Path, protocol: Mapping[str, Any] | None) -> Claim | None:
    """The mean IoU in the card's metadata that belongs to the protocol's data, or the only one."""
    from huggingface_hub import ModelCard

    try:
        entries = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: its metadata cannot be read: {error}") from error
    entries = [entry for entry in entries if entry.metric_type in ("mean_iou", "miou", "mIoU")]
    if protocol is not None:
        wanted = protocol.get("dataset"), protocol.get("split")
        entries = [entry for entry in entries if (entry.dataset_type, entry.dataset_split) == wanted]
    if not entries:
        return None
    if len(entries) > 1:
        found = ", ".join(f"{entry.dataset_type} {entry.dataset_split}" for entry in entries)
        raise ValueError(f"{path} claims {len(entries)} numbers ({found}), and no protocol tells which to repeat.")
    entry = entries[0]
    fraction = _fraction(entry.metric_value, path)
    return Claim(fraction, path.name, {"dataset": entry.dataset_type, "split": entry.dataset_split or "val"}, {})


def _fraction(value: Any, path: Path) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise ValueError(f"{path} claims a mean IoU of {value!r}; a percentage from 0 to 100 is expected.")
    return value / 100


def _nothing_claimed(folder: Path, facts: CardFacts | None) -> Exception:
    if facts is not None and facts.reported is not None:
        number = f"{100 * facts.reported.mean_iou:.2f} %"
        return ValueError(
            f"{folder} claims no measured number, only a reported one ({number}, {facts.reported.source}); measure it "
            "with `afdcd evaluate`."
        )
    files = (CARD_NAME, FACTS_NAME, RESULTS_NAME)
    if any((folder / name).is_file() for name in files):
        return ValueError(f"{folder} claims no measured mean IoU, so there is nothing to verify.")
    return FileNotFoundError(f"{folder} has none of {', '.join(files)}, so there is nothing to verify.")
