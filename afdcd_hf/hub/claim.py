"""What a card claims: the number in its metadata, and the protocol that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .facts_file import FACTS_NAME, read_facts
from .folder_facts import RESULTS_NAME, measured_results, read_results
from .model_card import CARD_NAME

_ROUNDING = 5.0001e-5  # metadata has percent with two decimals


@dataclass(frozen=True)
class Claim:
    """A published score and how it was measured."""

    mean_iou: float  # fraction 0-1, as exact as it is known
    source: str  # file that says it
    protocol: Mapping[str, Any]  # as in `results.json`
    per_category_iou: Mapping[str, float | None] = field(default_factory=dict)  # empty where unknown
    fingerprint: str | None = None  # of the images and labels
    doubts: tuple[str, ...] = ()  # where the folder contradicts itself


def read_claim(folder: Path) -> Claim:
    """The claim of a model's folder.

    The number comes from the card's metadata (`model-index`), since that is what the world sees; facts or results
    beside it bring the protocol, more decimals, and the IoU of each class.

    Raises:
        FileNotFoundError: the folder has neither card nor facts nor results.
        ValueError: no measured number is claimed, or several and nothing tells which to take, or a file cannot be read.
    """
    known = _beside_the_card(folder)
    published = _of_card(folder / CARD_NAME, known.protocol if known else None)
    if published is None and known is None:
        raise _nothing_claimed(folder)
    if published is None or known is None:
        return published or known  # type: ignore[return-value]
    if abs(published.mean_iou - known.mean_iou) <= _ROUNDING:
        return known
    doubt = f"{CARD_NAME} says {100 * published.mean_iou:.2f} %, {known.source} {100 * known.mean_iou:.2f} %"
    return replace(known, mean_iou=published.mean_iou, source=CARD_NAME, doubts=(doubt,))


def _beside_the_card(folder: Path) -> Claim | None:
    facts = read_facts(folder) if (folder / FACTS_NAME).is_file() else None
    if facts is not None and facts.measured is not None and facts.dataset is not None:
        scores, dataset = facts.measured, facts.dataset
        protocol = {"dataset": dataset.name, "split": dataset.split, **scores.protocol}
        return Claim(scores.mean_iou, FACTS_NAME, protocol, scores.per_category_iou, dataset.fingerprint)
    if not (folder / RESULTS_NAME).is_file():
        return None
    results = read_results(folder / RESULTS_NAME)
    scores = measured_results(results, folder.name)
    return Claim(scores.mean_iou, RESULTS_NAME, results["protocol"], scores.per_category_iou)


def _of_card(path: Path, protocol: Mapping[str, Any] | None) -> Claim | None:
    """The mean IoU in the card's metadata that belongs to the protocol's data, or the only one."""
    from huggingface_hub import ModelCard

    if not path.is_file():
        return None
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
        entries = [entry for entry in found if entry.metric_type in ("mean_iou", "miou", "mIoU")]
    except Exception as error:  # huggingface_hub checks hardly anything of what is there
        raise ValueError(f"{path}: its metadata cannot be read: {error!r}") from error
    if protocol is not None:
        wanted = protocol.get("dataset"), protocol.get("split")
        entries = [entry for entry in entries if (entry.dataset_type, entry.dataset_split) == wanted]
    if not entries:
        return None
    if len(entries) > 1:
        names = ", ".join(f"{entry.dataset_type} {entry.dataset_split}" for entry in entries)
        raise ValueError(f"{path} claims {len(entries)} numbers ({names}), and no protocol tells which to repeat.")
    (entry,) = entries
    if not isinstance(entry.metric_value, (int, float)) or not 0 <= entry.metric_value <= 100:
        raise ValueError(f"{path} claims a mean IoU of {entry.metric_value!r}; expected a percentage from 0 to 100.")
    protocol = {"dataset": entry.dataset_type, "split": entry.dataset_split or "val"}
    return Claim(entry.metric_value / 100, path.name, protocol)


def _nothing_claimed(folder: Path) -> Exception:
    files = (CARD_NAME, FACTS_NAME, RESULTS_NAME)
    if not any((folder / name).is_file() for name in files):
        return FileNotFoundError(f"{folder} has none of {', '.join(files)}, so there is nothing to verify.")
    reported = read_facts(folder).reported if (folder / FACTS_NAME).is_file() else None
    only = f", only a reported one ({100 * reported.mean_iou:.2f} %, {reported.source})" if reported else ""
    return ValueError(f"{folder} claims no measured mean IoU{only}; measure it with `afdcd evaluate`.")
