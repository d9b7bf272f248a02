"""The same page as a folder that is a Space: pushed to the Hugging Face Hub, it runs there as it is."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from huggingface_hub import SpaceCardData
from transformers import AutoConfig

from ..atomic_io import written_whole
from .examples import example_pictures
from .uploads import LONGEST_SIDE

_PACKAGE = Path(__file__).parents[1]
_TEMPLATES = Path(__file__).with_name("space_files")
_TESTED_GRADIO = "6.31.0"
_LEFT_OUT = {"__pycache__"}
# What inference reads of a model's folder; checkpoints and optimizer states stay at home.
_MODEL_FILES = ("config.json", "preprocessor_config.json", "results.json", "model*.safetensors", "model*.index.json")
_NEEDED = ("config.json", "preprocessor_config.json", "model*.safetensors")


@dataclass(frozen=True)
class SpaceModels:
    """Where the Space finds its networks.

    Attributes:
        places: Title -> Hub id, or folder in the Space.
        copied: Folder on this machine -> folder in the Space.
        hub_ids: Those that are loaded from the Hub.
    """

    places: dict[str, str]
    copied: dict[Path, str]
    hub_ids: list[str]


def write_space(
    models: Mapping[str, str | Path],
    folder: str | Path,
    examples: Sequence[str | Path] = (),
    *,
    title: str = "Semantic segmentation, side by side",
    longest_side: int = LONGEST_SIDE,
    overwrite: bool = False,
) -> Path:
    """Write a Space: `app.py`, `README.md` with its settings, `requirements.txt`, examples, and this package's source.

    Networks named by Hub id are loaded from there when the Space starts. A folder of this machine is copied into the
    Space, as far as inference needs it.

    Args:
        models: Title -> folder or Hub id.
        folder: Folder to write.
        examples: Pictures to offer; generated street scenes if there is none.
        title: Of the Space on the Hub.
        longest_side: Larger pictures are shrunk to this many pixels.
        overwrite: Write into a folder that is not empty: files of the same names are replaced, others stay.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder is not empty, unless `overwrite` is set, or is a file.
        FileNotFoundError: If a model's folder lacks a file that inference needs, or an example does not exist.
        ValueError: If there is no model, `longest_side` is below 1, or an example is no picture.
        OSError: If a model is neither a folder nor found on the Hub.
    """
    folder = Path(folder).expanduser()
    _check_folder(folder, overwrite)
    if not models or longest_side < 1:
        raise ValueError(
            "A Space needs at least one model." if not models else f"longest_side={longest_side}: below 1."
        )
    places = _places(models)
    pictures = example_pictures(examples)
    for source, target in _files(places, pictures):
        with written_whole(folder / target) as part:
            shutil.copyfile(source, part)
    texts = {
        "README.md": _readme(places, title),
        "requirements.txt": _template("requirements.txt"),
        "app.py": _app(places, longest_side),
    }
    for name, text in texts.items():
        with written_whole(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a Space needs a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty: give another folder, or --overwrite to write into it.")


def _places(models: Mapping[str, str | Path]) -> SpaceModels:
    places, copied, hub_ids = {}, {}, []
    for title, model in models.items():
        own = Path(model).expanduser()
        if own.is_dir():
            _check_model(own)
            copied[own] = copied.get(own) or _free_name(title, set(copied.values()))
            places[title] = copied[own]
        else:
            _check_on_hub(str(model))
            places[title] = str(model)
            hub_ids.append(str(model))
    return SpaceModels(places, copied, hub_ids)


def _check_on_hub(model: str) -> None:
    try:
        AutoConfig.from_pretrained(model, trust_remote_code=False)
    except OSError as error:
        raise OSError(f"{model} is no folder, and no model of the Hub that can be looked at: {error}") from error


def _check_model(folder: Path) -> None:
    missing = [pattern for pattern in _NEEDED if not any(folder.glob(pattern))]
    if missing:
        raise FileNotFoundError(f"{folder} is no saved model: it has no {' and no '.join(missing)}.")


def _free_name(title: str, taken: set[str]) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-.") or "model"
    candidates = (f"models/{name}{suffix}" for suffix in ("", *(f"-{number}" for number in range(2, len(taken) + 3))))
    return next(candidate for candidate in candidates if candidate not in taken)


def _files(models: SpaceModels, pictures: Sequence[Path]) -> Iterator[tuple[Path, PurePosixPath]]:
    """Every file to copy, and where it goes in the Space."""
    for path in sorted(_PACKAGE.rglob("*")):
        inside = path.relative_to(_PACKAGE)
        if path.is_file() and _LEFT_OUT.isdisjoint(inside.parts) and not path.name.startswith("."):
            yield path, PurePosixPath(_PACKAGE.name, inside)
    for own, target in models.copied.items():
        for path in sorted({path for pattern in _MODEL_FILES for path in own.glob(pattern)}):
            yield path, PurePosixPath(target, path.name)
    for number, path in enumerate(pictures, 1):  # numbered: their order is kept, and no two have the same name
        yield path, PurePosixPath("examples", f"{number:02}-{path.name}")


def _app(models: SpaceModels, longest_side: int) -> str:
    lines = "".join(f"    {json.dumps(title)}: {json.dumps(place)},\n" for title, place in models.places.items())
    text = _template("app.py").replace("MODELS = {}", f"MODELS = {{\n{lines}}}")
    return re.sub(r"^LONGEST_SIDE = \d+", f"LONGEST_SIDE = {longest_side}", text, flags=re.MULTILINE)


def _readme(models: SpaceModels, title: str) -> str:
    gradio = _gradio_version()
    settings = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=gradio,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        license="apache-2.0",
        models=models.hub_ids or None,
        tags=["afdcd", "semantic-segmentation"],
    )
    lines = [f"- {title}: {_described(place, models)}" for title, place in models.places.items()]
    text = _template("README.md").replace("{models}", "\n".join(lines)).replace("{gradio}", gradio)
    return f"---\n{settings.to_yaml()}\n---\n\n{text}"


def _described(place: str, models: SpaceModels) -> str:
    return f"[{place}](https://huggingface.co/{place})" if place in models.hub_ids else f"`{place}` of this Space"


def _gradio_version() -> str:
    """What the page was looked at with here; where there is no Gradio, what it was tested with."""
    try:
        return version("gradio")
    except PackageNotFoundError:
        return _TESTED_GRADIO


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
