"""Looks before a push whether the weights are whole, and those of the network alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .push_files import CONFIG_NAME, read_json


def check_weights(folder: Path, names: Sequence[str]) -> None:
    """Refuse damaged weights and, for networks of this package, any that the configuration does not describe.

    Reads the headers only.

    Args:
        folder: the network's folder.
        names: its weight files.

    Raises:
        ValueError: a file is damaged or cut short, tensors are missing, too many or of another shape.
    """
    stored = {name: shape for file in names for name, shape in _shapes(folder / file).items()}
    config = folder / CONFIG_NAME
    if not config.is_file() or read_json(config).get("model_type") != "afdcd":
        return
    wanted = _wanted_shapes(folder)
    missing, surplus = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & stored.keys() if wanted[name] != stored[name])
    if missing or surplus or other:
        parts = {"missing": missing, "not of this network": surplus, "of another shape": other}
        text = "; ".join(f"{what}: {len(found)}, e.g. {found[0]}" for what, found in parts.items() if found)
        raise ValueError(f"the weights in {folder} are not those of its {CONFIG_NAME} ({text}).")


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


def _wanted_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    import torch

    from ..models.configuration_afdcd import AfDcdConfig
    from ..models.modeling_afdcd import AfDcdForSemanticSegmentation

    config = AfDcdConfig.from_pretrained(folder)
    with torch.device("meta"):  # shapes without values
        network = AfDcdForSemanticSegmentation(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
