"""What of a model's folder is published, and how: the model, what is needed to use it, and its card; nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..redaction import without_tokens
from ..structured_files import read_json
from .card_facts import FACTS_NAME, CardFacts, facts_json, read_facts
from .folder_facts import RESULTS_NAME, public_protocol, read_results, with_repo_id
from .model_card import CARD_NAME, render_card
from .statement import VERIFIED_NAME
from .weights_check import CONFIG_NAME, check_weights

PROCESSOR_NAME, RECIPE_NAME = "preprocessor_config.json", "recipe.yaml"
_TEXTS = {".json", ".md", ".yaml", ".py"}
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg"}
_SHOWN_PICTURE = re.compile(
    r"!\[[^\]]*\]\(\s*(?:<(?P<quoted>[^>]+)>|(?P<plain>[^\s)]+))|<img\b[^>]*?\bsrc\s*=\s*[\"'](?P<html>[^\"']+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class PushFile:
    """A file to publish."""

    name: str  # its path in the repository
    content: Path | bytes  # the file that holds it, or the bytes themselves

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """The content."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def files_to_push(folder: Path, repo_id: str, *, needs_config: bool = True) -> tuple[list[PushFile], list[str]]:
    """The files of a saved model as they are published, and what the user should know; as of `push.plan_push`.

    Weights, configurations, the source they name, card, the images it shows, results, facts, recipe and statement.
    Checkpoints, optimizers, weights of the loss, logs and settings of the run are not, nor is anything unknown. Card,
    facts and results get the repository's name; the files in the folder stay as they are. A card is rendered again
    where it is the one of the facts beside it; any other is published as it is. Scores of a dataset on the Hub are
    added as `.eval_results/*.yaml`.
    """
    weights = check_weights(folder)
    if needs_config and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has weights but no {CONFIG_NAME}; save the model with save_pretrained.")
    card = (folder / CARD_NAME).read_text("utf-8", "replace") if (folder / CARD_NAME).is_file() else ""
    names = [CONFIG_NAME, *weights, PROCESSOR_NAME, *_source(folder), CARD_NAME, *shown_pictures(folder, card)]
    names += [RESULTS_NAME, FACTS_NAME, RECIPE_NAME, VERIFIED_NAME]
    contents: dict[str, Path | bytes] = {name: folder / name for name in names if (folder / name).is_file()}
    if outside := [folder / name for name in contents if not _lies_in(folder, name)]:
        raise ValueError(
            f"{outside[0]} is a link to {outside[0].resolve()}, and a push follows no link out of the folder; put the "
            "file itself there, or remove the link."
        )
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
    notes = []
    if CARD_NAME not in contents:
        notes.append(f"there is no {CARD_NAME}: `afdcd card {folder}` renders one")
    elif repo_id not in card:
        notes.append(f"{CARD_NAME} does not name {repo_id} and is pushed as it is")
    files = [PushFile(name, content) for name, content in contents.items()]
    return files, notes + _private_texts(folder, files)


def shown_pictures(folder: Path, card: str) -> list[str]:
    """The images in the folder that its card shows; of other files, and of what lies elsewhere, none."""
    paths = [next(filter(None, match.groups())) for match in _SHOWN_PICTURE.finditer(card)]
    names = [path.removeprefix("./") for path in paths if Path(path).suffix.lower() in _PICTURES]
    return [name for name in names if not Path(name).is_absolute() and _lies_in(folder, name)]


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


def _private_texts(folder: Path, files: list[PushFile]) -> list[str]:
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


def _lies_in(folder: Path, name: str) -> bool:
    """Whether it is a file in the folder also where a link leads: into the folder, or the cache of the Hub."""
    from huggingface_hub import constants

    path, allowed = (folder / name).resolve(), (folder.resolve(), Path(constants.HF_HUB_CACHE).resolve())
    return path.is_file() and any(path.is_relative_to(root) for root in allowed)


def _source(folder: Path) -> list[str]:
    """The modules that the configurations name in `auto_map`, and those that these import."""
    from transformers.dynamic_module_utils import get_relative_import_files

    names = []
    for config in (folder / CONFIG_NAME, folder / PROCESSOR_NAME):
        named: Any = read_json(config, "a configuration").get("auto_map", {}) if config.is_file() else {}
        if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
            raise ValueError(f"auto_map in {config} is not an object of class names; save the model again.")
        # `modeling_x` of `modeling_x.XModel`; what lies in another repository (`user/repo--x.X`) is not in the folder.
        names += [name.split(".")[0] + ".py" for name in named.values() if "--" not in name]
    try:
        imported = [Path(file).name for name in sorted(names) for file in get_relative_import_files(folder / name)]
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder} lacks {Path(error.filename).name}, without which it does not load where afdcd_hf is not "
            "installed; load the model and its image processor here, and save both again with save_pretrained."
        ) from error
    return list(dict.fromkeys([*names, *imported]))
