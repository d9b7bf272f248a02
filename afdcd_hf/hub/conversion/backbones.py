"""ImageNet weights of the released backbones -> a file under timm's names, as `pretrained_backbone` takes it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...atomic_io import written_whole
from ..released_networks import RELEASED_NETWORKS, ReleasedNetwork
from .accounting import check_tensors
from .names import released_backbone_name
from .reading import read_tensors

logger = logging.getLogger(__name__)

_PREFIXES = ("pretrained.net.", "pretrained.", "net.")
_CLASSIFIER = {"resnet18": "fc.", "resnet101": "fc.", "mobilenetv2": ("features.18.", "classifier.")}


def convert_backbone(checkpoint: str | Path, network: str, output: str | Path, *, overwrite: bool = False) -> Path:
    """Turn a released backbone into a `.safetensors` file of the timm model.

    Args:
        checkpoint: File with the backbone alone, its names with or without `pretrained.` in front; its ImageNet
            classifier may be in it (then it is in the new file, too) or not. Otherwise as for `convert_checkpoint`.
        network: Kind of network whose backbone it is ("deeplabv3_resnet18"), or the backbone alone ("resnet18").
        output: `.safetensors` file to write.
        overwrite: Replace the file.

    Returns:
        The file: what recipes call `pretrained_backbone`.

    Raises:
        ValueError: An unknown network, a file that cannot be read as data, or tensors that do not fit.
        FileNotFoundError: There is no such checkpoint.
        FileExistsError: There is such an output file already.
    """
    output = Path(output)
    name, kind = _backbone(network)
    _check_output(output, overwrite)
    tensors = _without_prefix(read_tensors(checkpoint))
    ours = _timm_network(kind, _num_classes(tensors, name)).state_dict()
    renamed = {released_backbone_name(one, name): one for one in ours}
    expected = {released: ours[one].shape for released, one in renamed.items()}
    if not any(one.startswith(_CLASSIFIER[name]) for one in tensors):
        expected = {one: shape for one, shape in expected.items() if not one.startswith(_CLASSIFIER[name])}
    check_tensors(tensors, expected, f"{Path(checkpoint).name} as backbone {name}", _advice(tensors))
    # Copies: tensors of a file may be views of one another, which safetensors does not write.
    values = {
        renamed[one]: tensor.to(ours[renamed[one]].dtype, copy=True).contiguous() for one, tensor in tensors.items()
    }
    with written_whole(output) as part:
        save_file(values, part, metadata={"format": "pt"})
    logger.info("%d tensors are in %s, as pretrained_backbone for timm's %s", len(values), output, kind.backbone)
    return output


def _backbone(network: str) -> tuple[str, ReleasedNetwork]:
    """Name of the backbone within the released networks, and one of the networks that have it."""
    kinds = {name.split("_")[1]: kind for name, kind in RELEASED_NETWORKS.items()}
    name = network.split("_")[1] if network in RELEASED_NETWORKS else network
    if name not in kinds:
        known = [*kinds, *RELEASED_NETWORKS]
        close = difflib.get_close_matches(network.lower(), known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown network {network!r}.{hint} Known: {', '.join(known)}.")
    return name, kinds[name]


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors" or output.is_dir():
        raise ValueError(f"A backbone becomes one file: give --output something.safetensors, not {str(output)!r}.")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; give another name, or --overwrite to replace it.")


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def _num_classes(tensors: Mapping[str, Tensor], name: str) -> int:
    classifier = tensors.get("classifier.1.weight" if name == "mobilenetv2" else "fc.weight")
    return 1000 if classifier is None or classifier.ndim != 2 else len(classifier)


def _timm_network(kind: ReleasedNetwork, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(kind.backbone, num_classes=num_classes, **kind.backbone_kwargs)


def _advice(tensors: Mapping[str, Tensor]) -> str:
    if any(name.startswith(("head.", "auxlayer.")) for name in tensors):
        return "It is a whole network: leave --backbone-only out."
    return ""
