"""ImageNet weights of the released backbones -> a file under timm's names, as `pretrained_backbone` takes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from ...atomic_io import written_whole
from ...suggestions import close_names
from ..released_networks import RELEASED_NETWORKS
from .checkpoints import fitting_values
from .names import released_backbone_name
from .reading import read_tensors

logger = logging.getLogger(__name__)

_PREFIXES = ("pretrained.net.", "pretrained.", "net.")
_BACKBONES = {name.split("_")[1]: kind for name, kind in RELEASED_NETWORKS.items()}


def convert_backbone(checkpoint: str | Path, network: str, output: str | Path, *, overwrite: bool = False) -> Path:
    """Turn a released backbone into a `.safetensors` file of the timm model.

    Args:
        checkpoint: file with the backbone alone, its names with or without `pretrained.` in front; its ImageNet
            classifier may be in it (then it is in the new file, too) or not. Otherwise as for `convert_checkpoint`.
        network: kind of network whose backbone it is ("deeplabv3_resnet18"), or the backbone alone ("resnet18").
        output: `.safetensors` file to write.
        overwrite: replace the file.

    Returns:
        The file: what recipes call `pretrained_backbone`.

    Raises:
        ValueError: an unknown network, a file that cannot be read as data, or tensors that do not fit.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError: there is such an output file already.
    """
    output, name = Path(output), network.split("_")[1] if network in RELEASED_NETWORKS else network
    if name not in _BACKBONES:
        known = [*_BACKBONES, *RELEASED_NETWORKS]
        raise ValueError(
            f"Unknown network {network!r}.{close_names(network.lower(), known)} Known: {', '.join(known)}."
        )
    if output.suffix != ".safetensors" or output.is_dir():
        raise ValueError(f"A backbone becomes one file: give --output something.safetensors, not {str(output)!r}.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; give another name, or --overwrite to replace it.")
    tensors = read_tensors(checkpoint)
    prefix = next((one for one in _PREFIXES if all(name.startswith(one) for name in tensors)), "")
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    values = _timm_values(tensors, name, f"{Path(checkpoint).name} as backbone {name}")
    with written_whole(output) as part:
        save_file(values, part, metadata={"format": "pt"})
    logger.info("%d tensors are in %s, as pretrained_backbone", len(values), output)
    return output


def _timm_values(tensors: Mapping[str, Tensor], name: str, what: str) -> dict[str, Tensor]:
    """The tensors under timm's names; all of them, or all but the ImageNet classifier."""
    classifier = ("features.18.", "classifier.") if name == "mobilenetv2" else ("fc.",)
    weight = tensors.get("classifier.1.weight" if name == "mobilenetv2" else "fc.weight")
    num_classes = 1000 if weight is None or weight.ndim != 2 else len(weight)
    with torch.device("meta"):
        model = timm.create_model(
            _BACKBONES[name].backbone, num_classes=num_classes, **_BACKBONES[name].backbone_kwargs
        )
    renamed = {released_backbone_name(one, name): one for one in model.state_dict()}
    if not any(one.startswith(classifier) for one in tensors):
        renamed = {released: one for released, one in renamed.items() if not released.startswith(classifier)}
    whole = any(one.startswith(("head.", "auxlayer.")) for one in tensors)
    hint = "It is a whole network: leave --backbone_only out." if whole else ""
    return fitting_values(tensors, renamed, model.state_dict(), what, hint)
