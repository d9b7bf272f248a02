"""The same page as the folder of a Space, which runs on the Hugging Face Hub once it is pushed."""

from __future__ import annotations

import json
import platform
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import SpaceCardData
from transformers import AutoConfig

from ..atomic_io import atomic_write
from ..hub.folder_facts import RESULTS_NAME, public_results
from .segmenters import LONGEST_SIDE, example_images

_PACKAGE = Path(__file__).parents[1]
_TEMPLATES = Path(__file__).with_name("space_files")
_TESTED_GRADIO = "6.31.0"
_MODELS = "models/"  # folder of the Space for local models
# Files in a model's folder that inference reads; checkpoints and optimizer states are not copied.
_MODEL_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors", "model*.index.json")
_NEEDED = ("config.json", "preprocessor_config.json", "model*.safetensors")


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

    Models given by Hub id are loaded from the Hub when the Space starts. Of a local model folder, the files that
    inference needs are copied into the Space.

    Args:
        models, examples, longest_side: as in `build_app`, whose errors are raised too.
        folder: folder to write, which is returned.
        title: of the Space on the Hub.
        overwrite: write into a folder that is not empty; files of the same name are replaced, others are kept.

    Raises:
        FileExistsError: the folder is a file, or is not empty and `overwrite` is off.
        FileNotFoundError: a model's folder lacks a file that inference needs.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (folder.is_file() or (any(folder.iterdir()) and not overwrite)):
        raise FileExistsError(f"{folder} is not empty: give another folder, or --overwrite to write into it.")
    if not models or longest_side < 1:
        raise ValueError(f"A Space needs a model, and longest_side={longest_side} must be 1 or more.")
    places = {name: _place(name, model) for name, model in models.items()}
    local = {name: Path(models[name]).expanduser() for name, place in places.items() if place.startswith(_MODELS)}
    scored = {name: folder / RESULTS_NAME for name, folder in local.items() if (folder / RESULTS_NAME).is_file()}
    texts = {f"{places[name]}/{RESULTS_NAME}": public_results(path, name) for name, path in scored.items()}
    images = example_images(examples)
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=ignored, copy_function=_copy, dirs_exist_ok=True)
    for name, model in local.items():
        for path in (path for pattern in _MODEL_FILES for path in model.glob(pattern)):
            _copy(path, folder / places[name] / path.name)
    for number, path in enumerate(images, 1):  # numbered, to keep their order and make names unique
        _copy(path, folder / "examples" / f"{number:02}-{path.name}")
    listed = "".join(f"    {json.dumps(name)}: {json.dumps(place)},\n" for name, place in places.items())
    app = _template("app.py").replace("MODELS: dict[str, str] = {}", f"MODELS = {{\n{listed}}}")
    texts |= {
        "README.md": _readme(places, title),
        "requirements.txt": _template("requirements.txt"),
        "app.py": re.sub(r"^LONGEST_SIDE = \d+", f"LONGEST_SIDE = {longest_side}", app, flags=re.MULTILINE),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder


def _place(title: str, model: str | Path) -> str:
    """Return where the Space finds a model: in its own folder if the model is local, otherwise its Hub id."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        try:
            AutoConfig.from_pretrained(str(model), trust_remote_code=False)
        except OSError as error:
            what = "neither a local folder nor a readable model on the Hub"
            raise OSError(f"{model} is {what}: {error}") from error
        return str(model)
    if missing := [pattern for pattern in _NEEDED if not any(folder.glob(pattern))]:
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {' and no '.join(missing)}.")
    name = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-.") or "model"
    # the path distinguishes folders with similar titles
    return f"{_MODELS}{name}-{zlib.crc32(str(folder.resolve()).encode()):08x}"


def _copy(source: str | Path, target: str | Path) -> None:
    with atomic_write(Path(target)) as part:
        shutil.copyfile(source, part)


def _readme(places: Mapping[str, str], title: str) -> str:
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = _TESTED_GRADIO
    hub_ids = [place for place in places.values() if not place.startswith(_MODELS)]
    settings = SpaceCardData(
        title=title, sdk="gradio", sdk_version=gradio, app_file="app.py", license="apache-2.0", models=hub_ids or None,
        python_version=".".join(platform.python_version_tuple()[:2]), tags=["afdcd", "semantic-segmentation"],
    )  # fmt: skip
    where = {place: f"[{place}](https://huggingface.co/{place})" for place in hub_ids}
    lines = [f"- {name}: {where.get(place, f'`{place}` of this Space')}" for name, place in places.items()]
    text = _template("README.md").replace("{models}", "\n".join(lines)).replace("{gradio}", gradio)
    return f"---\n{settings.to_yaml()}\n---\n\n{text}"


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
