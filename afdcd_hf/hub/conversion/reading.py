"""Reading a checkpoint without running anything that it may contain."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights_check import PAGE, read_safetensors, start_of

# Where training scripts put the weights beside optimizer and counters, and what wrappers put before every name.
_NESTED = ("state_dict", "model_state_dict", "model", "student", "net")
_WRAPPERS = ("module.", "_orig_mod.")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the network's own names, on the CPU.

    Reads plain state dicts, ones nested under `state_dict` and its like, names with the prefix of DDP (`module.`) or
    `torch.compile`, and safetensors. Only tensors, numbers and containers are unpickled, never code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint, is damaged, holds more than data, or has no plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No checkpoint at {str(path)!r}; give a .pth or .safetensors file.")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path)
    while isinstance(content, dict) and not all(isinstance(value, Tensor) for value in content.values()):
        nested = [name for name in _NESTED if isinstance(content.get(name), dict) and content[name]]
        if len(nested) > 1:
            raise ValueError(f"{path} holds several state dicts ({', '.join(nested)}); save the one you mean alone.")
        if not nested:
            strangers = [name for name, value in content.items() if not isinstance(value, Tensor)][:3]
            raise ValueError(
                f"{path} is not a state dict: {strangers} are not tensors, and none is under {', '.join(_NESTED)}."
            )
        content = content[nested[0]]
    if not isinstance(content, dict) or not content:
        found = "an empty dictionary" if content == {} else f"a {type(content).__name__}"
        raise ValueError(f"{path} holds {found}, not a state dict.")
    if unusual := [name for name, value in content.items() if value.layout != torch.strided or value.is_complex()]:
        raise ValueError(f"{path}: {len(unusual)} tensors are sparse or complex, e.g. {unusual[0]}; save dense ones.")
    tensors = {str(name): tensor for name, tensor in content.items()}
    for prefix in _WRAPPERS * 2:  # either may be around the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def read_class_names(path: str | Path) -> list[str]:
    """Class names from a text file, one a line in the order of their ids; empty lines do not count.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not text in UTF-8, or has no names.
    """
    names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path} has no names; write one a line.")
    return names


def _unpickled(path: Path) -> Any:
    if start_of(path).startswith(PAGE):
        raise ValueError(f"{path} is a web page, not a checkpoint: Google Drive asks back before large downloads.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, OSError) as error:
        if found := re.search(r"GLOBAL (\S+) ", str(error)):
            raise ValueError(
                f"{path} holds {found[1]}, which is more than data, and is not unpickled. Where you trust the file, "
                "load it in a process of your own and save its state dict alone."
            ) from error
        raise ValueError(f"{path} is not a checkpoint of PyTorch, or is damaged; download it again.") from error
