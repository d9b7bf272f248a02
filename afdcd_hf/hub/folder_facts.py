"""The card of a model's folder: facts from configuration, weights and results, and those that its owner adds."""

from __future__ import annotations

import dataclasses
import filecmp
import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.utils import validate_repo_id
from torch import nn

from ..cost import ProfileSettings, count_macs_at, count_parameters, profile_model
from ..cost.profiling import SIZES
from ..data.benchmarks import BENCHMARKS
from ..evaluation.results import evaluate_command, is_local, public_protocol
from ..messages import public_name
from ..models.heads import HEADS
from ..models.loading import load_model
from ..structured_files import read_json
from .card_facts import (
    FACTS_NAME,
    HUB_ID,
    CardFacts,
    CostRow,
    DatasetFacts,
    LatencyRow,
    MeasuredResults,
    Picture,
    read_facts,
    write_facts,
)
from .model_card import write_card
from .weight_files import CONFIG_NAME, check_weights

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"
CURVES_NAME = "training_curves.png"
DATA_OPTIONS = (
    "data_dir", "max_samples", "image_column", "label_column", "label_map", "labels_as", "config", "revision",
)  # fmt: skip
_PICTURES = {
    CURVES_NAME: "Loss terms and mean IoU during training.",
    "results_confusion.png": "Confusion matrix of the evaluation.",
}
# Facts that the owner of a model states (`afdcd card`), in addition to its scores and the titles of its dataset.
_OWNERS = (
    "model_name", "repo_id", "base_model", "teacher", "reported", "latency", "tags", "license", "license_name",
    "license_link", "notes", "pictures",
)  # fmt: skip
_OWNERS_OF_DATASET = ("pretty_name", "hub_id")


def update_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    pictures: Sequence[tuple[str | Path, str]] = (),
    dataset: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Change facts in a saved model's `card_facts.json` and render its card again.

    If the folder has no such file, it is created from its configuration, weights and `results.json`.

    Args:
        folder: a folder for `from_pretrained`.
        results: a `results.json` whose scores replace those of the card.
        pictures: images and their captions. Files from elsewhere are copied into the folder; if it has another image
            of the same name, a FileExistsError is raised.
        dataset: fields of `DatasetFacts` to change, such as `pretty_name` and `hub_id`.
        changes: fields of `CardFacts` to change; invalid values raise a ValueError. `tags` and `notes` are added to
            the existing ones; rows of `latency` replace those of the same size, batch size, device and setting.

    Returns:
        The path of the card; see `write_card`, also for errors.
    """
    folder = Path(folder)
    if (repo_id := changes.pop("repo_id", None)) is not None:
        check_repo_id(repo_id)
    facts = with_current_name(folder_facts(folder), folder, repo_id)
    if results is not None:
        measured = read_results(results)["protocol"].get("model")
        if measured and public_name(measured) not in (folder.resolve().name, facts.repo_id):
            logger.warning("%s has the scores of the model %s: is that the one in %s?", results, measured, folder)
        facts = with_results(facts, results, folder)
    if dataset:
        if facts.dataset is None:
            raise ValueError("The card has no dataset whose title or id could be changed; pass results, too.")
        changes["dataset"] = replace(facts.dataset, **dataset)
    for name in ("tags", "notes"):
        changes[name] = list(dict.fromkeys([*getattr(facts, name), *changes.get(name, ())]))
    same = ("height", "width", "batch_size", "device", "setting")
    changes["latency"] = _merged(same, facts.latency, changes.get("latency", ()))
    if changes.get("license", "other") != "other":  # the previous licence's name and link no longer apply
        changes = {"license_name": None, "license_link": None, **changes}
    places = {_target_path(folder, Path(path)): (path, caption) for path, caption in pictures}
    added = [Picture(place.as_posix(), caption) for place, (_, caption) in places.items()]
    facts = replace(facts, pictures=_merged(["path"], facts.pictures, added), **changes)
    for place, (path, _) in places.items():
        if not (folder / place).exists():
            shutil.copyfile(path, folder / place)
    card = write_card(folder, facts)  # does all checks before it writes
    write_facts(folder, facts)
    return card


def with_owners_facts(facts: CardFacts, before: CardFacts) -> CardFacts:
    """Carry over from the card of a run `before` it was resumed what its owner has stated with `update_card`."""
    kept = {name: value for name in _OWNERS if (value := getattr(before, name))}
    if facts.dataset is not None and before.dataset is not None and facts.dataset.name == before.dataset.name:
        titles = {name: value for name in _OWNERS_OF_DATASET if (value := getattr(before.dataset, name))}
        kept["dataset"] = replace(facts.dataset, **titles)
    return replace(facts, **kept)


def measure_latency(
    folder: str | Path, sizes: Sequence[tuple[int, int]] | None = None, *, device: str | None, precision: str
) -> list[LatencyRow]:
    """Measure the model's speed as `afdcd profile` does, by default at the sizes for which the card gives MACs."""
    rows = profile_model(folder, sizes or SIZES, settings=ProfileSettings(precision=precision), device=device)
    names = [field.name for field in dataclasses.fields(LatencyRow)]
    return [LatencyRow(**{name: getattr(row, name) for name in names}) for row in rows]


def folder_facts(folder: str | Path) -> CardFacts:
    """Read a saved model's `card_facts.json`, or derive facts from its configuration, weights and `results.json`."""
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} is not the folder of a saved model: it has no {CONFIG_NAME}.")
    if (folder / FACTS_NAME).is_file():
        return read_facts(folder)
    check_weights(folder)
    known = network_facts(load_model(str(folder)))
    facts = CardFacts(model_name=folder.resolve().name, pictures=known_pictures(folder), **known)
    return with_results(facts, folder / RESULTS_NAME, folder) if (folder / RESULTS_NAME).is_file() else facts


def known_pictures(folder: Path, before: Sequence[Picture] = ()) -> list[Picture]:
    """List the images in the folder that were on the card `before`, and those that a training writes."""
    written = [Picture(name, caption) for name, caption in _PICTURES.items()]
    return [picture for picture in _merged(["path"], before, written) if (folder / picture.path).is_file()]


def network_facts(model: nn.Module) -> dict[str, Any]:
    """Describe a model's architecture, parameters and MACs, as arguments of `CardFacts`."""
    costs = [CostRow(*size, macs) for size, macs in zip(SIZES, count_macs_at(model, SIZES), strict=True)]
    return {"architecture": describe(model.config), "num_parameters": count_parameters(model), "costs": costs}


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a `results.json`; a ValueError unless it has `mean_iou` and a `protocol` with dataset and split."""
    results: dict[str, Any] = read_json(path, "the results of an evaluation")
    known = results["protocol"] if isinstance(results.get("protocol"), dict) else {}
    missing = [name for name in ("dataset", "split") if not isinstance(known.get(name), str)]
    missing += ["mean_iou"] * ("mean_iou" not in results)
    try:
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}.")
        measured_results(results, "")
    except (ValueError, TypeError) as error:  # TypeError: protocol values that cannot form a command
        raise ValueError(f"{path} is not a results.json of `afdcd evaluate`: {error}") from error
    return results


def with_results(facts: CardFacts, path: str | Path, folder: Path) -> CardFacts:
    """Replace the scores in the folder's facts with those of a `results.json`; errors as in `read_results`."""
    measured = measured_results(read_results(path), facts.repo_id or folder.resolve().name)
    now, before, dataset = measured.protocol, facts.measured.protocol if facts.measured else {}, facts.dataset
    is_public = not now.get("local_dataset")
    if dataset is None or (dataset.name, dataset.is_public) != (now["dataset"], is_public):
        dataset = dataset_facts(now["dataset"], is_public)
    elif (dataset.split, dataset.num_images) != (now["split"], measured.num_images) or any(
        before.get(name) != now.get(name) for name in ("list_file", *DATA_OPTIONS)
    ):
        dataset = replace(dataset, fingerprint=None)  # of other images or labels
    dataset = replace(dataset, split=now["split"], num_images=measured.num_images)
    return replace(facts, measured=measured, dataset=dataset)


def measured_results(results: Mapping[str, Any], model_name: str) -> MeasuredResults:
    """Convert the content of a `results.json` for the card, with the model's name or Hub id in place of its path."""
    protocol = {**public_protocol(results["protocol"]), "model": model_name}
    protocol.pop("versions", None)
    environment = {name: protocol.pop(name, None) for name in ("date", "machine")}
    names = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "num_images")
    scores = {name: results[name] for name in names if name in results}
    return MeasuredResults(**scores, protocol=protocol, command=_command(protocol), **environment)


def public_results(path: str | Path, model_name: str) -> str:
    """Return a `results.json` to publish: without local paths, whichever version wrote it; see `read_results`."""
    results = read_results(path)
    protocol = {**public_protocol(results["protocol"]), "model": model_name}
    return json.dumps({**results, "protocol": protocol}, indent=2) + "\n"


def with_current_name(facts: CardFacts, folder: Path, repo_id: str | None = None) -> CardFacts:
    """Copy the folder's facts with its repository's or own name now, also in commands and in a title nobody chose."""
    own, repo_id = folder.resolve().name, repo_id or facts.repo_id
    name, protocol = repo_id or own, dict(facts.measured.protocol if facts.measured else {})
    # the folder's name now, the repository's before, and the folder's before it was renamed
    unset = (own, *(str(known or "").split("/")[-1] for known in (facts.repo_id, protocol.get("model"))))
    title = name.split("/")[-1] if facts.model_name in unset else facts.model_name
    facts = replace(facts, repo_id=repo_id, model_name=title)
    if facts.measured is None or "model" not in protocol:
        return facts
    protocol["model"] = name
    return replace(facts, measured=replace(facts.measured, protocol=protocol, command=_command(protocol)))


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless the name is a `user/name` that the Hub allows."""
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is not a repository name; write USER/NAME.")
    validate_repo_id(repo_id)


def dataset_facts(name: str, is_public: bool | None = None, **known: Any) -> DatasetFacts:
    """Facts of a dataset from the table of benchmarks and from `known`; of a local folder only its name is given."""
    is_public = not is_local(name) if is_public is None else is_public
    benchmark = BENCHMARKS.get(name) if is_public else None
    known = {"hub_id": name if is_public and HUB_ID.fullmatch(name) else None, **known}
    listed: dict[str, Any] = {"pretty_name": benchmark.title, "license": benchmark.licence} if benchmark else {}
    return DatasetFacts(name=public_name(name), is_public=is_public, **listed, **known)


def describe(config: Any) -> str:
    """Describe the model's architecture in words."""
    if config.model_type != "afdcd":
        return type(config).__name__.removesuffix("Config")
    options = ", ".join(f"{name} {value}" for name, value in config.backbone_kwargs.items())
    backbone = f"{config.backbone} ({options})" if options else config.backbone
    return f"{HEADS[config.head].title} on {backbone}, output stride {config.output_stride}"


def _command(protocol: Mapping[str, Any]) -> str | None:
    needed = ("model", "dataset", "split", "scales", "flip", "precision", "absent_classes")
    not_options = ("config", "revision")
    complete = all(name in protocol for name in needed) and not any(protocol.get(name) for name in not_options)
    return evaluate_command(protocol) if complete else None


def _merged(keys: Sequence[str], before: Iterable, added: Iterable) -> list:
    """Concatenate both; an entry replaces an earlier one with the same values in the fields `keys`, in its place."""
    return list({tuple(getattr(one, key) for key in keys): one for one in (*before, *added)}.values())


def _target_path(folder: Path, path: Path) -> Path:
    """Find an image's path in the folder, existing or to be copied to; checked before anything is copied."""
    if not path.is_file():
        raise FileNotFoundError(f"The image {path} does not exist.")
    inside = path.resolve().is_relative_to(folder.resolve())
    place = path.resolve().relative_to(folder.resolve()) if inside else Path(path.name)
    if (folder / place).exists() and not filecmp.cmp(path, folder / place, shallow=False):
        raise FileExistsError(f"{folder / place} is a different image of the same name; rename {path}.")
    return place
