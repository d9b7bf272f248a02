"""Are these the weights of that model: whole, of the right shapes and types, and finite?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..structured_files import read_json

CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME = "config.json", "model.safetensors", "model.safetensors.index.json"
PAGE = (b"<!doctype", b"<html")
_SHOWN = 6


def check_weights(folder: Path) -> list[str]:
    """Refuse a folder whose weights are damaged, not finite, or not those that its configuration describes.

    The latter only for models of this package; a folder without a configuration is looked at, too. Returns the names of
    its weight files, the index included.

    Raises:
        FileNotFoundError: there are no weights, or not all parts of them.
        ValueError: a file is damaged, or tensors are missing, unknown, of another shape or type, or not finite.
    """
    names, found = _weight_files(folder), dict[str, Tensor]()
    for name in names:
        found |= read_safetensors(folder / name) if name != INDEX_NAME else {}
    config = folder / CONFIG_NAME
    ours = config.is_file() and read_json(config, "the configuration of a model").get("model_type") == "afdcd"
    check_tensors(found, _expected(folder) if ours else found, f"the weights in {folder}")
    return names


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, hint: str = "") -> None:
    """Hold tensors by name against those of a model; a ValueError lists all that is wrong, each kind with its names.

    `expected` may be on the meta device; `what` is the file in words, `hint` what to do about it.
    """
    both = [(name, tensor, expected[name]) for name, tensor in found.items() if name in expected]
    troubles = {
        "unknown": [f"{name} {_shape(tensor)}" for name, tensor in found.items() if name not in expected],
        "missing": [f"{name} {_shape(tensor)}" for name, tensor in expected.items() if name not in found],
        "misshapen": [f"{name} {_shape(a)} instead of {_shape(b)}" for name, a, b in both if a.shape != b.shape],
        "wrongly typed": [
            f"{name} {a.dtype} instead of {b.dtype}"
            for name, a, b in both
            if a.is_floating_point() != b.is_floating_point()
        ],
        "not finite": [name for name, tensor in found.items() if not tensor.isfinite().all()],
    }
    listed = []
    for kind, names in troubles.items():
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        listed += [f"{len(names)} {kind} tensors ({', '.join(names[:_SHOWN])}{more})."] if names else []
    if listed:
        raise ValueError(" ".join([f"{what}:", *listed, hint]).strip())


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file by name; a ValueError if it is another kind of file, or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        problem, start = f"is damaged, cut short or not a safetensors file ({error})", start_of(path)
        if start.startswith(b"version https://git-lfs"):
            problem = "is a pointer of Git LFS and not the file itself (`git lfs pull` fetches that)"
        elif start.startswith(PAGE):
            problem = "is a web page and not weights"
        raise ValueError(f"{path} {problem}; download it again.") from error


def start_of(path: Path) -> bytes:
    """Where a file begins, in lower case; with `PAGE` it is what a browser shows instead of a download."""
    with open(path, "rb") as file:
        return file.read(64).lstrip().lower()


def _weight_files(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of a saved model.")
    if (folder / WEIGHTS_NAME).is_file():
        return [WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pth", ".pt"})
        found = f" ({pickles[0]} is not read: load the model and save it with save_pretrained)" if pickles else ""
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}{found}; give the folder of a saved model.")
    parts: Any = read_json(folder / INDEX_NAME, "the index of a model's weights").get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise ValueError(f"{folder / INDEX_NAME} has no object of file names as weight_map; save the model again.")
    names = sorted(set(parts.values()))
    if missing := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder / INDEX_NAME} names {', '.join(missing)}, which the folder lacks.")
    return [INDEX_NAME, *names]


def _expected(folder: Path) -> dict[str, Tensor]:
    from ..models.configuration_afdcd import AfDcdConfig
    from ..models.modeling_afdcd import AfDcdForSemanticSegmentation

    try:
        config = AfDcdConfig.from_pretrained(folder)
        if wrong := [label for label in config.id2label.values() if not isinstance(label, str)]:
            raise ValueError(f"id2label has the label {wrong[0]!r}, which is not text")
        with torch.device("meta"):  # shapes without values
            return AfDcdForSemanticSegmentation(config).state_dict()
    except Exception as error:  # whatever values somebody wrote there
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / CONFIG_NAME} does not describe a model of this package: {reason}") from error


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
