"""What of a model's folder is published: the model, what is needed to use it, and its card; nothing else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..structured_files import read_json
from .facts_file import FACTS_NAME
from .folder_facts import RESULTS_NAME
from .model_card import CARD_NAME
from .weights_check import CONFIG_NAME, check_weights

PROCESSOR_NAME, RECIPE_NAME = "preprocessor_config.json", "recipe.yaml"
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


def files_to_push(folder: Path, *, needs_config: bool = True) -> list[PushFile]:
    """The files of a saved model that are published; arguments and errors as of `push.plan_push`.

    Weights, configurations, the source they name, card, the images it shows, results, facts and recipe. Checkpoints,
    optimizers, weights of the loss, logs and settings of the run are not, nor is anything unknown.
    """
    weights = check_weights(folder)
    if needs_config and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has weights but no {CONFIG_NAME}; save the model with save_pretrained.")
    names = [CONFIG_NAME, *weights, PROCESSOR_NAME, *_source(folder), CARD_NAME, *shown_pictures(folder)]
    names += [RESULTS_NAME, FACTS_NAME, RECIPE_NAME]
    present = [name for name in dict.fromkeys(names) if (folder / name).is_file()]
    if outside := [name for name in present if not _lies_in(folder, name)]:
        raise ValueError(
            f"{folder / outside[0]} is a link to {(folder / outside[0]).resolve()}, and a push follows no link out of "
            "the folder; put the file itself there, or remove the link."
        )
    return [PushFile(name, folder / name) for name in present]


def shown_pictures(folder: Path) -> list[str]:
    """The images in the folder that its card shows; of other files, and of what lies elsewhere, none."""
    card = folder / CARD_NAME
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")
    paths = [next(filter(None, match.groups())) for match in _SHOWN_PICTURE.finditer(text)]
    names = [path.removeprefix("./") for path in paths if Path(path).suffix.lower() in _PICTURES]
    return [name for name in names if not Path(name).is_absolute() and _lies_in(folder, name)]


def _lies_in(folder: Path, name: str) -> bool:
    """Whether it is a file in the folder also where a link leads: into the folder, or the cache of the Hub."""
    from huggingface_hub import constants

    path, allowed = (folder / name).resolve(), (folder.resolve(), Path(constants.HF_HUB_CACHE).resolve())
    return path.is_file() and any(path.is_relative_to(root) for root in allowed)


def _source(folder: Path) -> list[str]:
    """The modules that the configurations name in `auto_map`, and those that these import."""
    from transformers.dynamic_module_utils import get_relative_import_files

    modules = {module for name in (CONFIG_NAME, PROCESSOR_NAME) for module in _auto_modules(folder / name)}
    names = []
    for module in sorted(modules):
        path = folder / f"{module}.py"
        try:
            names += [path.name, *sorted(Path(file).name for file in get_relative_import_files(path))]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} lacks {Path(error.filename).name}, without which it does not load where afdcd_hf is not "
                "installed; load the model and its image processor here, and save both again with save_pretrained."
            ) from error
    return names


def _auto_modules(path: Path) -> list[str]:
    """`modeling_x` of `modeling_x.XModel`; what lies in another repository (`user/repo--x.X`) is not in the folder."""
    named: Any = read_json(path, "a configuration").get("auto_map", {}) if path.is_file() else {}
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"auto_map in {path} is not an object of class names; save the model again.")
    return [name.split(".")[0] for name in named.values() if "--" not in name]
