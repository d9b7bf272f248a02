"""The facts of a card as far as a model's folder, or the model itself, can tell them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..cost import count_macs_at, count_parameters
from ..data.benchmarks import BENCHMARKS
from ..evaluation.results import evaluate_command
from ..structured_files import read_json
from .card_facts import FACTS_NAME, HUB_ID, CardFacts, CostRow, DatasetFacts, MeasuredResults, Picture, read_facts
from .weights_check import check_weights

RESULTS_NAME = "results.json"
COST_SIZES = ((512, 512), (512, 1024), (1024, 2048))
CURVES_NAME = "training_curves.png"
_PICTURES = {
    CURVES_NAME: "Loss terms and mean IoU during training.",
    "results_confusion.png": "Where pixels of each class went in the evaluation.",
}


def folder_facts(folder: str | Path) -> CardFacts:
    """What is known of a saved model: `card_facts.json`, else what configuration, weights and `results.json` tell."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a folder of a saved model: it has no config.json.")
    if (folder / FACTS_NAME).is_file():
        return read_facts(folder)
    from ..models.loading import load_model

    check_weights(folder)
    known = network_facts(load_model(str(folder)))
    facts = CardFacts(model_name=folder.resolve().name, pictures=known_pictures(folder), **known)
    return with_results(facts, folder / RESULTS_NAME) if (folder / RESULTS_NAME).is_file() else facts


def known_pictures(folder: Path) -> list[Picture]:
    """The images that a training leaves in its folder, as far as they are there."""
    return [Picture(name, caption) for name, caption in _PICTURES.items() if (folder / name).is_file()]


def network_facts(model: nn.Module) -> dict[str, Any]:
    """Architecture, parameters and MACs, as arguments of `CardFacts`."""
    costs = [CostRow(*size, macs) for size, macs in zip(COST_SIZES, count_macs_at(model, COST_SIZES), strict=True)]
    return {"architecture": describe(model.config), "num_parameters": count_parameters(model), "costs": costs}


def read_results(path: str | Path) -> dict[str, Any]:
    """The content of a `results.json`: at least `mean_iou` and a `protocol` of dataset and split, or a ValueError."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; `afdcd evaluate --output` writes such a file.")
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
    from huggingface_hub.utils import validate_repo_id

    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r} is not the name of a repository; write USER/NAME.")
    validate_repo_id(repo_id)


def dataset_facts(name: str, **known: Any) -> DatasetFacts:
    """What the table of benchmarks says of a dataset, and what else is `known`; of a folder, its name alone."""
    benchmark = BENCHMARKS.get(name)
    is_public = benchmark is not None or not Path(name).exists()
    known = {"hub_id": name if is_public and HUB_ID.fullmatch(name) else None, **known}
    licence = benchmark.licence if benchmark else None
    return DatasetFacts(name=public_name(name), license=licence, is_public=is_public, **known)


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
    from ..models.heads import HEADS

    options = ", ".join(f"{name} {value}" for name, value in config.backbone_kwargs.items())
    backbone = f"{config.backbone} ({options})" if options else config.backbone
    return f"{HEADS[config.head].title} on {backbone}, output stride {config.output_stride}"


def _command(protocol: Mapping[str, Any]) -> str | None:
    needed = ("model", "dataset", "split", "scales", "flip", "precision", "absent_classes")
    return evaluate_command(protocol) if all(name in protocol for name in needed) else None
