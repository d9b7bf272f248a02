"""Reading a checkpoint without running anything that it may contain."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

# Where training scripts put the weights beside optimizer and counters, and what wrappers put before every name.
_NESTED = ("state_dict", "model_state_dict", "model", "student", "net")
_WRAPPERS = ("module.", "_orig_mod.")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the network's own names, on the CPU.

    Reads plain state dicts, ones nested under `state_dict` and its like, names with the prefix of DDP (`module.`) or
    `torch.compile`, and safetensors. Only tensors, numbers and containers are unpickled, never code.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no checkpoint, is damaged, holds more than data, or has no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {str(path)!r}; give a .pth or .safetensors file.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; download it again.")
    content = _safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    return _without_wrappers(_state_dict(content, path))


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a text file, one a line in the order of their ids; empty lines do not count.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text, or has no names.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file of class names at {str(path)!r}; give a text file with one name a line.")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if not names:
        raise ValueError(f"{path} has no names; write one a line.")
    return names


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); download it again.") from error


def _unpickled(path: Path) -> Any:
    with open(path, "rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype", b"<html")):
            raise ValueError(f"{path} is a web page, not a checkpoint: Google Drive asks back before large downloads.")
        file.seek(0)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path} {_why_not_unpickled(str(error))}") from error
        except (RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} is no checkpoint of PyTorch, or damaged ({reason}); download it again."
            ) from error


def _why_not_unpickled(message: str) -> str:
    if found := re.search(r"GLOBAL (\S+) ", message):
        return (
            f"holds {found[1]}, which is more than data, and is not unpickled. Where you trust the file, load it in a "
            "process of your own and save its state dict alone."
        )
    return "is no checkpoint of PyTorch, or damaged; download it again."


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, or the only one that lies under a known name."""
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds {_described(content)}, not a state dict.")
    if all(isinstance(value, Tensor) for value in content.values()):
        return dict(content)
    nested = [name for name in _NESTED if isinstance(content.get(name), dict) and content[name]]
    if len(nested) == 1:
        return _state_dict(content[nested[0]], path)
    keys = ", ".join(map(repr, list(content)[:8]))
    if nested:
        raise ValueError(f"{path} holds several state dicts ({', '.join(nested)}); save the one you mean by itself.")
    strangers = [name for name, value in content.items() if not isinstance(value, Tensor)][:3]
    raise ValueError(
        f"{path} is no state dict: {strangers} are no tensors, and there is none under {', '.join(_NESTED)}. "
        f"Its keys begin with {keys}."
    )


def _without_wrappers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same without prefixes that every name carries."""
    for prefix in _WRAPPERS * 2:  # either may be around the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _described(content: Any) -> str:
    return "an empty dictionary" if content == {} else f"a {type(content).__name__}"
