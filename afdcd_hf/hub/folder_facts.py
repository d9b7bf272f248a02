"""The card of a model's folder: what configuration, weights and results tell, and what only its owner knows."""

from __future__ import annotations

import dataclasses
import filecmp
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
from ..evaluation.results import evaluate_command
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

RESULTS_NAME = "results.json"
CURVES_NAME = "training_curves.png"
_PICTURES = {
    CURVES_NAME: "Loss terms and mean IoU during training.",
    "results_confusion.png": "Where pixels of each class went in the evaluation.",
}


def update_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    pictures: Sequence[tuple[str | Path, str]] = (),
    dataset: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Render the card of a saved model from its `card_facts.json` with some changes, which are kept there too.

    A folder without such a file gets one, from what its configuration, weights and `results.json` tell.

    Args:
        folder: a folder for `from_pretrained`.
        results: a `results.json` whose scores replace those of the card.
        pictures: images and their captions; files from elsewhere are copied into the folder, unless (a FileExistsError)
            another image has the name there.
        dataset: fields of `DatasetFacts` to change, such as `pretty_name` and `hub_id`.
        changes: fields of `CardFacts` to change, a ValueError where one is not valid. `tags` and `notes` are added to
            those there are; rows of `latency` replace those of the same size, batch, device and setting.

    Returns:
        The card written; the rest is as of `write_card`.
    """
    folder = Path(folder)
    facts = folder_facts(folder)
    if (repo_id := changes.pop("repo_id", None)) is not None:
        check_repo_id(repo_id)
        facts = with_repo_id(facts, repo_id)
    facts = facts if results is None else with_results(facts, results)
    if dataset:
        if facts.dataset is None:
            raise ValueError("The card names no dataset yet, so its title or id means nothing; pass results, too.")
        changes["dataset"] = replace(facts.dataset, **dataset)
    for name in ("tags", "notes"):
        changes[name] = list(dict.fromkeys([*getattr(facts, name), *changes.get(name, ())]))
    same = ("height", "width", "batch_size", "device", "setting")
    changes["latency"] = _joined(same, facts.latency, changes.get("latency", ()))
    if changes.get("license", "other") != "other":  # its name and link belonged to the licence before
        changes = {"license_name": None, "license_link": None, **changes}
    places = {_place(folder, Path(path)): (path, caption) for path, caption in pictures}
    added = [Picture(place.as_posix(), caption) for place, (_, caption) in places.items()]
    facts = replace(facts, pictures=_joined(["path"], facts.pictures, added), **changes)
    for place, (path, _) in places.items():
        if not (folder / place).exists():
            shutil.copyfile(path, folder / place)
    card = write_card(folder, facts)  # checks what there is to check before it writes
    write_facts(folder, facts)
    return card


def measure_latency(
    folder: str | Path, sizes: Sequence[tuple[int, int]] | None = None, *, device: str | None, precision: str
) -> list[LatencyRow]:
    """Measure the model's speed as `afdcd profile` does; by default at the sizes at which the card counts MACs."""
    rows = profile_model(folder, sizes or SIZES, settings=ProfileSettings(precision=precision), device=device)
    names = [field.name for field in dataclasses.fields(LatencyRow)]
    return [LatencyRow(**{name: getattr(row, name) for name in names}) for row in rows]


def folder_facts(folder: str | Path) -> CardFacts:
    """What is known of a saved model: `card_facts.json`, else what configuration, weights and `results.json` tell."""
    folder = Path(folder)
    if not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} is not a folder of a saved model: it has no {CONFIG_NAME}.")
    if (folder / FACTS_NAME).is_file():
        return read_facts(folder)
    check_weights(folder)
    known = network_facts(load_model(str(folder)))
    facts = CardFacts(model_name=folder.resolve().name, pictures=known_pictures(folder), **known)
    return with_results(facts, folder / RESULTS_NAME) if (folder / RESULTS_NAME).is_file() else facts


def known_pictures(folder: Path) -> list[Picture]:
    """The images that a training leaves in its folder, as far as they are there."""
    return [Picture(name, caption) for name, caption in _PICTURES.items() if (folder / name).is_file()]


def network_facts(model: nn.Module) -> dict[str, Any]:
    """Architecture, parameters and MACs, as arguments of `CardFacts`."""
    costs = [CostRow(*size, macs) for size, macs in zip(SIZES, count_macs_at(model, SIZES), strict=True)]
    return {"architecture": describe(model.config), "num_parameters": count_parameters(model), "costs": costs}


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a `results.json`: at least `mean_iou` and a `protocol` of dataset and split, or a ValueError."""
    results: dict[str, Any] = read_json(path, "the results of an evaluation")
    known = results["protocol"] if isinstance(results.get("protocol"), dict) else {}
    missing = [name for name in ("dataset", "split") if not isinstance(known.get(name), str)]
    missing += ["mean_iou"] * ("mean_iou" not in results)
    try:
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}.")
        measured_results(results, "")
    except (ValueError, TypeError) as error:  # TypeError: values of the protocol that no command can be made of
        raise ValueError(f"{path} is not a results.json of `afdcd evaluate`: {error}") from error
    return results


def with_results(facts: CardFacts, path: str | Path) -> CardFacts:
    """The facts with the scores of a `results.json`, which replace older ones; errors as of `read_results`."""
    results, before = read_results(path), facts.dataset
    measured = measured_results(results, facts.repo_id or facts.model_name)
    name, split = (results["protocol"][key] for key in ("dataset", "split"))
    if before is None or (before.name, before.split) != (public_name(name), split):
        before = dataset_facts(name, split=split, num_images=measured.num_images)
    return replace(facts, measured=measured, dataset=before)


def measured_results(results: Mapping[str, Any], model_name: str) -> MeasuredResults:
    """The card's view of what is in a `results.json`, with the model's name or Hub id where that may hold a path."""
    protocol = public_protocol(results["protocol"], model_name)
    protocol.pop("versions", None)
    environment = {name: protocol.pop(name, None) for name in ("date", "machine")}
    names = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "num_images")
    scores = {name: results[name] for name in names if name in results}
    return MeasuredResults(**scores, protocol=protocol, command=_command(protocol), **environment)


def public_protocol(protocol: Mapping[str, Any], model_name: str) -> dict[str, Any]:
    """The protocol of an evaluation without paths of this machine."""
    paths = {name: public_name(protocol[name]) for name in ("dataset", "list_file") if protocol.get(name)}
    return {**protocol, "model": model_name, **paths}


def with_repo_id(facts: CardFacts, repo_id: str) -> CardFacts:
    """The facts under the repository's name, in the title and the commands, too."""
    facts = replace(facts, repo_id=repo_id, model_name=repo_id.split("/")[-1])
    if facts.measured is None or "model" not in facts.measured.protocol:
        return facts
    protocol = {**facts.measured.protocol, "model": repo_id}
    return replace(facts, measured=replace(facts.measured, protocol=protocol, command=_command(protocol)))


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that is not `user/name` as the Hub allows it."""
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is not the name of a repository; write USER/NAME.")
    validate_repo_id(repo_id)


def dataset_facts(name: str, **known: Any) -> DatasetFacts:
    """What the table of benchmarks says of a dataset, and what else is `known`; of a folder, its name alone."""
    benchmark = BENCHMARKS.get(name)
    is_public = benchmark is not None or not Path(name).exists()
    known = {"hub_id": name if is_public and HUB_ID.fullmatch(name) else None, **known}
    listed: dict[str, Any] = {"pretty_name": benchmark.title, "license": benchmark.licence} if benchmark else {}
    return DatasetFacts(name=public_name(name), is_public=is_public, **listed, **known)


def public_name(name_or_path: str | Path) -> str:
    """A Hub id or a benchmark's name as it is, of a folder or file its last part: paths are nobody's business."""
    text = str(name_or_path)
    if Path(text).exists() or not (HUB_ID.fullmatch(text) or "/" not in text):
        return Path(text).resolve().name
    return text


def describe(config: Any) -> str:
    """The model in words."""
    if config.model_type != "afdcd":
        return type(config).__name__.removesuffix("Config")
    options = ", ".join(f"{name} {value}" for name, value in config.backbone_kwargs.items())
    backbone = f"{config.backbone} ({options})" if options else config.backbone
    return f"{HEADS[config.head].title} on {backbone}, output stride {config.output_stride}"


def _command(protocol: Mapping[str, Any]) -> str | None:
    needed = ("model", "dataset", "split", "scales", "flip", "precision", "absent_classes")
    return evaluate_command(protocol) if all(name in protocol for name in needed) else None


def _joined(keys: Sequence[str], before: Iterable, added: Iterable) -> list:
    """Both in order; of entries that agree in the fields `keys`, the later one in the place of the earlier one."""
    return list({tuple(getattr(one, key) for key in keys): one for one in (*before, *added)}.values())


def _place(folder: Path, path: Path) -> Path:
    """Where in the folder an image lies, or will; looked at before anything is copied."""
    if not path.is_file():
        raise FileNotFoundError(f"The picture {path} does not exist.")
    inside = path.resolve().is_relative_to(folder.resolve())
    place = path.resolve().relative_to(folder.resolve()) if inside else Path(path.name)
    if (folder / place).exists() and not filecmp.cmp(path, folder / place, shallow=False):
        raise FileExistsError(f"{folder / place} is another picture of the same name; rename {path}.")
    return place
