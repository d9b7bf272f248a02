"""The same page as a folder that is a Space: pushed to the Hugging Face Hub, it runs there as it is."""

from __future__ import annotations

import json
import platform
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from huggingface_hub import SpaceCardData
from transformers import AutoConfig

from ..atomic_io import written_whole
from .segmenters import LONGEST_SIDE, example_images

_PACKAGE = Path(__file__).parents[1]
_TEMPLATES = Path(__file__).with_name("space_files")
_TESTED_GRADIO = "6.31.0"
_MODELS = "models"  # folder of the Space for models of this machine
# What inference reads of a model's folder; checkpoints and optimizer states stay at home.
_MODEL_FILES = ("config.json", "preprocessor_config.json", "results.json", "model*.safetensors", "model*.index.json")
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

    Models named by Hub id are loaded from there when the Space starts. A folder of this machine is copied into the
    Space, as far as inference needs it.

    Args:
        models: Title -> folder or Hub id.
        folder: Folder to write.
        examples: images to offer; generated street scenes if there is none.
        title: Of the Space on the Hub.
        longest_side: larger images are shrunk to this many pixels.
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
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; a Space needs a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty: give another folder, or --overwrite to write into it.")
    if not models or longest_side < 1:
        raise ValueError(
            "A Space needs at least one model." if not models else f"longest_side={longest_side}: below 1."
        )
    places = {title: _place(title, model) for title, model in models.items()}
    images = example_images(examples)
    for source, target in _files(models, places, images):
        with written_whole(folder / target) as part:
            shutil.copyfile(source, part)
    listed = "".join(f"    {json.dumps(title)}: {json.dumps(place)},\n" for title, place in places.items())
    app = _template("app.py").replace("MODELS: dict[str, str] = {}", f"MODELS = {{\n{listed}}}")
    texts = {
        "README.md": _readme(places, title),
        "requirements.txt": _template("requirements.txt"),
        "app.py": re.sub(r"^LONGEST_SIDE = \d+", f"LONGEST_SIDE = {longest_side}", app, flags=re.MULTILINE),
    }
    for name, text in texts.items():
        with written_whole(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    return folder


def _place(title: str, model: str | Path) -> str:
    """Where the Space finds a model: a folder of its own for one of this machine, else its Hub id."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        try:
            AutoConfig.from_pretrained(str(model), trust_remote_code=False)
        except OSError as error:
            raise OSError(
                f"{model} is neither a local folder nor a model of the Hub that can be read: {error}"
            ) from error
        return str(model)
    missing = [pattern for pattern in _NEEDED if not any(folder.glob(pattern))]
    if missing:
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {' and no '.join(missing)}.")
    name = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-.") or "model"
    # the path tells two folders with like titles apart
    return f"{_MODELS}/{name}-{zlib.crc32(str(folder.resolve()).encode()):08x}"


def _files(
    models: Mapping[str, str | Path], places: Mapping[str, str], images: Sequence[Path]
) -> Iterator[tuple[Path, PurePosixPath]]:
    """Every file to copy, and where it goes in the Space."""
    for path in sorted(_PACKAGE.rglob("*")):
        inside = path.relative_to(_PACKAGE)
        if path.is_file() and "__pycache__" not in inside.parts and not path.name.startswith("."):
            yield path, PurePosixPath(_PACKAGE.name, inside)
    for title, place in places.items():
        if place.startswith(f"{_MODELS}/"):
            folder = Path(models[title]).expanduser()
            for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
                yield path, PurePosixPath(place, path.name)
    for number, path in enumerate(images, 1):  # numbered: their order is kept, and no two have the same name
        yield path, PurePosixPath("examples", f"{number:02}-{path.name}")


def _readme(places: Mapping[str, str], title: str) -> str:
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = _TESTED_GRADIO
    hub_ids = [place for place in places.values() if not place.startswith(f"{_MODELS}/")]
    settings = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=gradio,
        python_version=".".join(platform.python_version_tuple()[:2]),
        app_file="app.py",
        license="apache-2.0",
        models=hub_ids or None,
        tags=["afdcd", "semantic-segmentation"],
    )
    where = {place: f"[{place}](https://huggingface.co/{place})" for place in hub_ids}
    lines = [f"- {title}: {where.get(place, f'`{place}` of this Space')}" for title, place in places.items()]
    text = _template("README.md").replace("{models}", "\n".join(lines)).replace("{gradio}", gradio)
    return f"---\n{settings.to_yaml()}\n---\n\n{text}"


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")
