"""`afdcd verify`: evaluate a published model again under its card's protocol, and compare.

The outcome can be stored in `verified.json`, with scores, weights, machine and versions: a record, not a signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import ModelCard, constants, snapshot_download

from ..cost.machine import library_versions, machine_name
from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.loading import load_split
from ..data.statistics import fingerprint, is_generated
from ..evaluation.results import dataset_context, public_protocol
from ..evaluation.segmenter import evaluate_segmenter
from ..inference.segment import InferenceSettings
from ..messages import HUB_ID
from ..models.loading import load_model, load_processor
from ..structured_files import json_values
from .card_facts import FACTS_NAME, read_facts
from .folder_facts import DATA_OPTIONS, RESULTS_NAME, measured_results, read_results
from .model_card import CARD_NAME
from .push import plain_hub_errors
from .weight_files import check_weights, checksums

TOLERANCE = 0.0005
_ROUNDING = 5.0001e-5  # the metadata has percentages with two decimals
_FILES = ("README.md", "*.json", "*.safetensors")
_SETTINGS = ("scales", "flip", "window", "stride", "precision")
_IRRELEVANT = ("model", "dataset", "split", "list_file", "date", "machine", "versions", "boundary_ratio")


@dataclass(frozen=True)
class Claim:
    """A published score and how it was measured."""

    mean_iou: float  # fraction 0-1, with all known decimals
    source: str  # file that contains it
    protocol: Mapping[str, Any]  # as in `results.json`
    per_category_iou: Mapping[str, float | None] = field(default_factory=dict)  # empty if unknown
    fingerprint: str | None = None  # of the images and labels
    doubts: tuple[str, ...] = ()  # contradictions within the folder


@dataclass(frozen=True)
class Verification:
    """A claimed score and the measured one; scores and the tolerance are fractions 0-1."""

    claim: Claim
    mean_iou: float  # measured now
    tolerance: float  # largest difference that counts as equal
    remarks: tuple[str, ...]  # other differences: data, protocol, files that contradict each other
    classes: Mapping[str, tuple[float, float]]  # those whose IoU differs by more: name -> (claimed, measured)
    protocol: Mapping[str, Any]  # of the measurement, without local paths
    weights: Mapping[str, str]  # SHA-256 by file

    @property
    def difference(self) -> float:
        """Measured minus claimed."""
        return self.mean_iou - self.claim.mean_iou

    @property
    def holds(self) -> bool:
        """Whether the claim is confirmed; False if the folder contradicts itself or the measured score is NaN."""
        return abs(self.difference) <= self.tolerance and not self.claim.doubts


def verify(
    model: str | Path,
    data_dir: str | Path | None = None,
    *,
    tolerance: float = TOLERANCE,
    dataset: str | None = None,
    list_file: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    num_workers: int = 0,
) -> Verification:
    """Evaluate a model under its card's protocol and compare the score with the card's.

    Args:
        model: a folder, or a Hub id, whose files are downloaded.
        data_dir: folder of the benchmark's files; for another dataset, the folder inside it, by default the card's.
        tolerance: largest difference in mean IoU that counts as equal, a fraction; devices and libraries round
            differently.
        dataset, list_file: your paths of the dataset or list of images, if the card has its author's local names.
        revision: branch, tag or commit on the Hub.
        device: such as "cuda"; by default a GPU if there is one.
        num_workers: processes that decode images.

    Raises:
        ValueError: no measured score is claimed, or the protocol cannot be repeated, such as without `list_file`.
        FileNotFoundError: the folder or data files are missing.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"A tolerance is a fraction from 0 to 1, got {tolerance}; 0.0005 is 0.05 % mIoU.")
    folder = _local_folder(model, revision)
    claim = read_claim(folder)
    known, name = claim.protocol, dataset or claim.protocol.get("dataset")
    if not name or not known.get("split"):
        raise ValueError("The card does not say on which dataset and split its score was measured.")
    if known.get("list_file") and list_file is None:
        mine = f"The score was measured on the images of a list named {known['list_file']!r}"
        raise ValueError(f"{mine}; pass yours as list_file (--list_file).")
    own = {"data_dir": data_dir, "list_file": list_file}
    choice = {option: known[option] for option in DATA_OPTIONS if known.get(option) is not None}
    choice |= {"name": name, "split": known["split"], **{option: path for option, path in own.items() if path}}
    images = load_split(**choice)
    weights = checksums(folder, check_weights(folder))
    network = load_model(folder).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name in BENCHMARKS:
        check_classes(network, BENCHMARKS[name].classes, name)
    settings = InferenceSettings(**{name: known[name] for name in _SETTINGS if known.get(name) is not None})
    zero = known.get("absent_classes") == "count as 0"
    evaluated: dict[str, Any] = {"processor": load_processor(folder), "num_workers": num_workers, "settings": settings}
    scores = evaluate_segmenter(network, images, absent_as_zero=zero, **evaluated)
    remarks = tuple(_remarks(claim, name, images, scores["protocol"]))
    found = scores["per_category_iou"]
    pairs = {one: (was, found[one]) for one, was in claim.per_category_iou.items() if was is not None and one in found}
    unlike = {one: (was, now) for one, (was, now) in pairs.items() if abs(now - was) > tolerance}  # False for NaN
    classes = dict(sorted(unlike.items(), key=lambda item: -abs(item[1][1] - item[1][0])))
    chosen = public_protocol({**dataset_context(**choice), "num_images": scores["num_images"]})
    protocol = {**chosen, **scores["protocol"]}
    return Verification(claim, scores["mean_iou"], tolerance, remarks, classes, protocol, weights)


def read_claim(folder: Path) -> Claim:
    """Read the claim in a model's folder.

    The score comes from the card's metadata (`model-index`), which is what the public sees; facts or results
    beside it add the protocol, more decimals, and the IoU of each class. A ValueError if no measured score is
    claimed, or several are.
    """
    has_card, has_facts, has_results = ((folder / name).is_file() for name in (CARD_NAME, FACTS_NAME, RESULTS_NAME))
    facts, known = read_facts(folder) if has_facts else None, None
    if facts is not None and facts.measured is not None and facts.dataset is not None:
        scores, dataset = facts.measured, facts.dataset
        protocol = {"dataset": dataset.name, "split": dataset.split, **scores.protocol}
        known = Claim(scores.mean_iou, FACTS_NAME, protocol, scores.per_category_iou, dataset.fingerprint)
    elif has_results:
        results = read_results(folder / RESULTS_NAME)
        scores = measured_results(results, folder.name)
        known = Claim(scores.mean_iou, RESULTS_NAME, results["protocol"], scores.per_category_iou)
    published = _claim_from_card(folder / CARD_NAME, known.protocol if known else None) if has_card else None
    if published is not None and known is not None:
        if abs(published.mean_iou - known.mean_iou) <= _ROUNDING:
            return known
        doubt = f"{CARD_NAME} says {100 * published.mean_iou:.2f} %, {known.source} {100 * known.mean_iou:.2f} %"
        return replace(known, mean_iou=published.mean_iou, source=CARD_NAME, doubts=(doubt,))
    if (claim := published or known) is None:
        reported = facts.reported if facts else None
        only = f", only a reported one ({100 * reported.mean_iou:.2f} %, {reported.source})" if reported else ""
        raise ValueError(f"{folder} claims no measured mean IoU{only}; measure it with `afdcd evaluate`.")
    return claim


def format_verification(done: Verification) -> str:
    """Format the outcome as a few lines of plain text."""
    claim, points = done.claim, 100 * done.difference
    lines = [
        f"claimed   {100 * claim.mean_iou:.2f} % mIoU on {claim.protocol['dataset']} {claim.protocol['split']} "
        f"({claim.source})",
        f"measured  {100 * done.mean_iou:.2f} % ({points:+.3f}; tolerance {100 * done.tolerance:g})",
    ]
    lines += [f"note: {remark}" for remark in done.remarks]
    if not done.holds:
        lines += [f"  {name:<24}{100 * was:>8.2f} -> {100 * now:.2f}" for name, (was, now) in done.classes.items()]
    return "\n".join([*lines, "The claim holds." if done.holds else "The claim does NOT hold."])


def statement(done: Verification) -> dict[str, Any]:
    """Convert the outcome to a JSON object with date, machine and versions; undefined scores are None."""
    made = {"date": date.today().isoformat(), "machine": machine_name(), "versions": library_versions()}
    return json_values({"holds": done.holds, **asdict(done), **made})


def _local_folder(model: str | Path, revision: str | None) -> Path:
    if Path(model).is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for repositories on the Hub; {model} is a folder.")
        return Path(model)
    if not HUB_ID.fullmatch(str(model)):
        raise FileNotFoundError(f"{model} is neither a local folder nor a Hub id such as afdcd/deeplabv3-r18-voc.")
    with plain_hub_errors(str(model), constants.ENDPOINT):
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(_FILES)))


def _claim_from_card(path: Path, protocol: Mapping[str, Any] | None) -> Claim | None:
    """Read the mean IoU in the card's metadata for the protocol's dataset and split, or the only one."""
    try:
        found = ModelCard.load(path, ignore_metadata_errors=True).data.eval_results or []
        entries = [entry for entry in found if entry.metric_type in ("mean_iou", "miou", "mIoU")]
    except Exception as error:  # huggingface_hub hardly validates the metadata
        raise ValueError(f"{path}: its metadata cannot be read: {error!r}") from error
    if protocol is not None:
        wanted = protocol.get("dataset"), protocol.get("split")
        entries = [entry for entry in entries if (entry.dataset_type, entry.dataset_split) == wanted]
    values = [entry.metric_value for entry in entries]
    if len(values) > 1 or not all(isinstance(value, (int, float)) and 0 <= value <= 100 for value in values):
        raise ValueError(f"{path} claims a mean IoU of {values} %; expected one number from 0 to 100.")
    return next(
        (
            Claim(
                entry.metric_value / 100,
                path.name,
                {"dataset": entry.dataset_type, "split": entry.dataset_split or "val"},
            )
            for entry in entries
        ),
        None,
    )


def _remarks(claim: Claim, name: str, images: Dataset, protocol: Mapping[str, Any]) -> Iterator[str]:
    """Yield other differences from the card: in the data, the image processor, the model or the settings."""
    yield from claim.doubts
    if claim.fingerprint is None:
        yield "the card has no fingerprint of its images, so they may differ from these"
    elif (mine := fingerprint(images, of_pixels=is_generated(name))) != claim.fingerprint:
        yield f"these are not the card's images and labels (fingerprint {mine}, on the card {claim.fingerprint})"
    for key, value in claim.protocol.items():
        now = protocol.get(key, value)
        if key not in _IRRELEVANT and value != (list(now) if isinstance(now, tuple) else now):
            yield f"{key} is {now}, but {value} on the card"
