"""Weight files: read without running code in them, and checked against the model that they are for."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..models.configuration_afdcd import AfDcdConfig
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from ..structured_files import read_json

CONFIG_NAME, WEIGHTS_NAME, INDEX_NAME = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHOWN = 6
# Keys under which training scripts store the weights, beside optimizer and counters; prefixes that wrappers add.
_NESTED = ("state_dict", "model_state_dict", "model", "student", "net")
_WRAPPERS = ("module.", "_orig_mod.")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a checkpoint's tensors under the network's own names, on the CPU.

    Accepts plain state dicts, ones nested under `state_dict` or a similar key, names with the prefix of DDP (`module.`)
    or `torch.compile`, and safetensors. Only tensors, numbers and containers are unpickled, never code: a ValueError
    says that a file is damaged, not a checkpoint, or more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {str(path)!r}; give a .pth or .safetensors file.")
    content = _load_file(path)
    while isinstance(content, dict) and not all(isinstance(value, Tensor) for value in content.values()):
        nested = [name for name in _NESTED if isinstance(content.get(name), dict) and content[name]]
        if len(nested) != 1:
            strangers = [name for name, value in content.items() if not isinstance(value, Tensor)][:3]
            found = f"several state dicts ({', '.join(nested)})" if nested else f"{strangers}, which are not tensors"
            raise ValueError(f"{path} holds {found}; save one state dict alone, or under {', '.join(_NESTED)}.")
        content = content[nested[0]]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds {type(content).__name__} {str(content)[:20]}, not a state dict.")
    if unusual := [name for name, value in content.items() if value.layout != torch.strided or value.is_complex()]:
        raise ValueError(f"{path}: {len(unusual)} tensors are sparse or complex, e.g. {unusual[0]}; save plain ones.")
    tensors = {str(name): tensor for name, tensor in content.items()}
    for prefix in _WRAPPERS * 2:  # they may be nested either way
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def check_weights(folder: Path) -> list[str]:
    """Refuse a folder whose weights are missing, damaged, not finite, or do not match its configuration.

    The match is checked only for models of this package, and the configuration may be missing. Returns the names of
    the weight files, including the index.
    """
    names, found = _weight_files(folder), dict[str, Tensor]()
    for name in names:
        found |= _load_file(folder / name) if name != INDEX_NAME else {}
    config = folder / CONFIG_NAME
    ours = config.is_file() and read_json(config, "the configuration of a model").get("model_type") == "afdcd"
    check_tensors(found, _expected(folder) if ours else found, f"the weights in {folder}")
    return names


def checksums(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each of these weight files."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, hint: str = "") -> None:
    """Compare tensors with a model's by name; a ValueError lists all mismatches by kind, with the names.

    `expected` may be on the meta device; `what` describes the file, `hint` says what to do.
    """
    both = [(name, tensor, expected[name]) for name, tensor in found.items() if name in expected]
    troubles = {
        "unknown": [f"{name} {_shape(tensor)}" for name, tensor in found.items() if name not in expected],
        "missing": [f"{name} {_shape(tensor)}" for name, tensor in expected.items() if name not in found],
        "misshapen": [f"{name} {_shape(a)} instead of {_shape(b)}" for name, a, b in both if a.shape != b.shape],
        "wrongly typed": [
            f"{name} {a.dtype} instead of {b.dtype}"
            for name, a, b in both
            if a.dtype.is_floating_point != b.dtype.is_floating_point
        ],
        "not finite": [name for name, tensor in found.items() if not tensor.isfinite().all()],
    }
    listed = []
    for kind, names in troubles.items():
        more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        listed += [f"{len(names)} {kind} tensors ({', '.join(names[:_SHOWN])}{more})."] if names else []
    if listed:
        raise ValueError(" ".join([f"{what}:", *listed, hint]).strip())


def meta_model(config: AfDcdConfig) -> AfDcdForSemanticSegmentation:
    """Build a configuration's model on the meta device, with names and shapes but no values."""
    with torch.device("meta"):
        return AfDcdForSemanticSegmentation(config).eval()


def _load_file(path: Path) -> Any:
    """Load a file's content; a ValueError if it is another kind of file, damaged, or more than data."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        if found := re.search(r"GLOBAL (\S+) ", str(error)):
            what = f"{path} holds {found[1]}, which is more than data, and is not unpickled"
            raise ValueError(f"{what}. If you trust it, load it yourself and save only its state dict.") from error
        with path.open("rb") as file:  # recognises common results of failed downloads
            start = file.read(64).lstrip().lower()
        problem = "is damaged, truncated or not a weight file; download it again."
        if start.startswith(b"version https://git-lfs"):
            problem = "is a Git LFS pointer, not the file itself; fetch that with `git lfs pull`."
        elif start.startswith((b"<!doctype", b"<html")):
            problem = "is a web page, not weights; Google Drive, for one, asks for confirmation before large downloads."
        raise ValueError(f"{path} {problem}") from error


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS_NAME).is_file():
        return [WEIGHTS_NAME]
    if not (folder / INDEX_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS_NAME}; give the folder of a model saved by save_pretrained.")
    parts: Any = read_json(folder / INDEX_NAME, "the index of a model's weights").get("weight_map", {})
    names = sorted(set(parts.values()))
    if missing := [name for name in names if Path(name).name != name or not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder / INDEX_NAME} names {', '.join(missing)}, which the folder lacks.")
    return [INDEX_NAME, *names]


def _expected(folder: Path) -> dict[str, Tensor]:
    try:
        config = AfDcdConfig.from_pretrained(folder)
        if not all(isinstance(label, str) for label in config.id2label.values()):
            raise ValueError("a label of id2label is not a string")
        return meta_model(config).state_dict()
    except Exception as error:  # the file may contain any values
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / CONFIG_NAME} does not describe a model of this package: {reason}") from error


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
