"""What of a network's folder is published: the network, what is needed to use it, and its card; nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .facts_file import FACTS_NAME

CARD_NAME, RESULTS_NAME, CONFIG_NAME = "README.md", "results.json", "config.json"
WEIGHTS_NAME, INDEX_NAME, PROCESSOR_NAME = (
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
)
RECIPE_NAME = "recipe.yaml"
_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg"}
_MARKDOWN_PICTURE = re.compile(r"!\[[^\]]*\]\(\s*(?:<(?P<quoted>[^>]+)>|(?P<plain>[^\s)]+))")
_HTML_PICTURE = re.compile(r"<img\b[^>]*?\bsrc\s*=\s*[\"'](?P<plain>[^\"']+)", re.IGNORECASE)


@dataclass(frozen=True)
class PushFile:
    """A file to publish.

    Attributes:
        name: its path in the repository.
        content: the file that holds it, or the bytes themselves.
    """

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def read(self) -> bytes:
        """The content."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def files_to_push(folder: Path, *, needs_config: bool = True) -> list[PushFile]:
    """The files of a saved network that are published.

    Weights, configurations, the source they name, card, the pictures it shows, results and facts. Checkpoints,
    optimizers, weights of the loss, logs and settings of the run stay, as does anything unknown.

    Args:
        folder: what `save_pretrained`, a training or `afdcd convert` wrote.
        needs_config: whether `from_pretrained` must be able to load it.

    Raises:
        FileNotFoundError: the folder, its weights, its configuration or source that it names is missing.
    """
    weights = _weights(folder)
    if needs_config and not (folder / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has weights but no {CONFIG_NAME}; save the network with save_pretrained.")
    names = [CONFIG_NAME, *weights, PROCESSOR_NAME, *_source(folder), CARD_NAME, *shown_pictures(folder)]
    names += [RESULTS_NAME, FACTS_NAME, RECIPE_NAME]
    present = [name for name in dict.fromkeys(names) if (folder / name).is_file()]
    return [PushFile(name, folder / name) for name in present]


def left_out(folder: Path, files: list[PushFile]) -> list[str]:
    """What else lies in the folder; folders end in a slash."""
    pushed = {Path(file.name).parts[0] for file in files}
    others = [path for path in sorted(folder.iterdir()) if path.name not in pushed]
    return [f"{path.name}/" if path.is_dir() else path.name for path in others]


def shown_pictures(folder: Path) -> list[str]:
    """The pictures in the folder that its card shows; of other files, and of what lies elsewhere, none."""
    card = folder / CARD_NAME
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")
    found = [*_MARKDOWN_PICTURE.finditer(text), *_HTML_PICTURE.finditer(text)]
    paths = [match.groupdict().get("quoted") or match["plain"] for match in found]
    names = [path.removeprefix("./") for path in paths if Path(path).suffix.lower() in _PICTURES]
    return [name for name in names if _lies_in(folder, name)]


def _lies_in(folder: Path, name: str) -> bool:
    """Also of what a link leads to."""
    path = folder / name
    return not Path(name).is_absolute() and path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _weights(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give the folder of a saved network.")
    if (folder / WEIGHTS_NAME).is_file():
        return [WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}; give the folder of a saved network.")
    parts = sorted(set(read_json(folder / INDEX_NAME).get("weight_map", {}).values()))
    if missing := [name for name in parts if Path(name).name != name or not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder / INDEX_NAME} names {', '.join(missing)}, which the folder lacks.")
    return [INDEX_NAME, *parts]


def _source(folder: Path) -> list[str]:
    """The modules that the configurations name in `auto_map`, and those that these import."""
    from transformers.dynamic_module_utils import get_relative_import_files

    configs = [read_json(folder / name) for name in (CONFIG_NAME, PROCESSOR_NAME) if (folder / name).is_file()]
    modules = sorted({module for config in configs for module in _auto_modules(config)})
    names = []
    for module in modules:
        path = folder / f"{module}.py"
        try:
            names += [path.name, *sorted(Path(file).name for file in get_relative_import_files(path))]
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            raise FileNotFoundError(
                f"{folder} lacks {missing}, without which it does not load where afdcd_hf is not installed; load the "
                "network and its image processor here, and save both again with save_pretrained."
            ) from error
    return names


def _auto_modules(config: dict[str, Any]) -> list[str]:
    """`modeling_x` of `modeling_x.XModel`; what lies in another repository (`user/repo--x.X`) is not in the folder."""
    return [name.split(".")[0] for name in config.get("auto_map", {}).values() if "--" not in name]


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds a JSON object.

    Raises:
        ValueError: it does not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return content
