"""`afdcd verify`: evaluates a published model again, under its card's protocol, and compares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.fingerprint import fingerprint, is_generated
from ..data.loading import load_split
from ..evaluation.segmenter import evaluate_segmenter
from ..inference.segment import InferenceSettings
from ..models.loading import load_model, load_processor
from .card_facts import HUB_ID
from .claim import Claim, read_claim
from .hub_errors import plain_hub_errors
from .weights_check import check_weights

if TYPE_CHECKING:
    from datasets import Dataset

TOLERANCE = 0.0005
_FILES = ("README.md", "*.json", "*.safetensors")
_DATA_OPTIONS = ("max_samples", "image_column", "label_column", "label_map", "labels_as")
_SETTINGS = ("scales", "flip", "window", "stride", "precision")
_OF_NO_ACCOUNT = ("model", "dataset", "split", "list_file", "date", "machine", "versions", "boundary_ratio")


@dataclass(frozen=True)
class Verification:
    """A claimed score beside the one that came out; scores and the tolerance are fractions 0-1."""

    claim: Claim
    mean_iou: float  # what was measured now
    tolerance: float  # largest difference that counts as the same
    remarks: tuple[str, ...]  # what else differs: data, protocol, files that contradict each other
    classes: Mapping[str, tuple[float, float]]  # whose IoU differs by more: name to (claimed, measured)

    @property
    def difference(self) -> float:
        """Measured minus claimed."""
        return self.mean_iou - self.claim.mean_iou

    @property
    def holds(self) -> bool:
        """Whether the claim is confirmed. It is not where the folder contradicts itself, or no score came out."""
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
    """Evaluate a model as its card says, and hold the result against the card's number.

    Args:
        model: folder, or id on the Hub, whose files are downloaded.
        data_dir: folder of the benchmark's files.
        tolerance: largest difference of mean IoU that counts as the same, a fraction: devices and libraries round
            differently.
        dataset, list_file: where the dataset or the list of images lies, if the card names its author's.
        revision: branch, tag or commit on the Hub.
        device: such as "cuda"; by default a GPU where there is one.
        num_workers: processes that decode images.

    Raises:
        ValueError: nothing measured is claimed, the tolerance is out of range, or the protocol cannot be repeated.
        FileNotFoundError: the folder or files of the data are missing.
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"A tolerance is a fraction from 0 to 1, got {tolerance}; 0.0005 is 0.05 % mIoU.")
    folder = _local_folder(model, revision)
    claim = read_claim(folder)
    known, choice = (
        claim.protocol,
        _choice(claim.protocol, {"dataset": dataset, "data_dir": data_dir, "list_file": list_file}),
    )
    images = load_split(**choice)
    check_weights(folder)
    network = load_model(str(folder)).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processor = load_processor(folder)
    if choice["name"] in BENCHMARKS:
        check_classes(network, BENCHMARKS[choice["name"]].classes, choice["name"])
    scores = evaluate_segmenter(
        network,
        images,
        processor=processor,
        num_workers=num_workers,
        absent_as_zero=known.get("absent_classes") == "count as 0",
        settings=InferenceSettings(**{name: known[name] for name in _SETTINGS if known.get(name) is not None}),
    )
    remarks = tuple(_remarks(claim, choice["name"], images, scores["protocol"]))
    classes = _differing(claim.per_category_iou, scores["per_category_iou"], tolerance)
    return Verification(claim, scores["mean_iou"], tolerance, remarks, classes)


def format_verification(done: Verification) -> str:
    """The outcome in a few lines of plain text."""
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


def _local_folder(model: str | Path, revision: str | None) -> Path:
    if Path(model).is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for repositories on the Hub; {model} is a folder.")
        return Path(model)
    if not HUB_ID.fullmatch(str(model)):
        raise FileNotFoundError(f"{model} is neither a local folder nor a Hub id such as afdcd/deeplabv3-r18-voc.")
    from huggingface_hub import constants, snapshot_download

    with plain_hub_errors(str(model), constants.ENDPOINT):
        return Path(snapshot_download(str(model), revision=revision, allow_patterns=list(_FILES)))


def _choice(protocol: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What `load_split` takes: as the card says, and where the data is `given` here."""
    name = given["dataset"] or protocol.get("dataset")
    if not name or not protocol.get("split"):
        raise ValueError("The card does not say on which dataset and split its number was measured.")
    if protocol.get("list_file") and given["list_file"] is None:
        mine = f"The number was measured on the images of a list named {protocol['list_file']!r}"
        raise ValueError(f"{mine}; pass yours as list_file (--list_file).")
    options = {option: protocol.get(option) for option in _DATA_OPTIONS}
    options |= {"data_dir": given["data_dir"], "list_file": given["list_file"]}
    known = {key: value for key, value in options.items() if value is not None}
    return {"name": name, "split": protocol["split"], **known}


def _remarks(claim: Claim, name: str, images: Dataset, protocol: Mapping[str, Any]) -> Iterator[str]:
    """What else is unlike the card: the data, or of the protocol its processor, model and settings."""
    yield from claim.doubts
    if claim.fingerprint is None:
        yield "the card has no fingerprint of its images, so that they may be others than these"
    elif (mine := fingerprint(images, of_pixels=is_generated(name))) != claim.fingerprint:
        yield f"these are not the images and labels of the card (fingerprint {mine}, there {claim.fingerprint})"
    for key, value in claim.protocol.items():
        now = protocol.get(key, value)
        if key not in _OF_NO_ACCOUNT and value != (list(now) if isinstance(now, tuple) else now):
            yield f"the card says {key} {value}, here it is {now}"


def _differing(
    claimed: Mapping[str, float | None], measured: Mapping[str, float], tolerance: float
) -> dict[str, tuple[float, float]]:
    pairs = {name: (was, measured[name]) for name, was in claimed.items() if was is not None and name in measured}
    unlike = {
        name: (was, now) for name, (was, now) in pairs.items() if abs(now - was) > tolerance
    }  # not where now is NaN
    return dict(sorted(unlike.items(), key=lambda item: -abs(item[1][1] - item[1][0])))
