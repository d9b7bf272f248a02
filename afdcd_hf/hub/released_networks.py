"""The kinds of released networks: their configurations, and the names of our tensors in their files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..messages import chosen
from ..models.configuration_afdcd import AfDcdConfig


@dataclass(frozen=True)
class ReleasedNetwork:
    """One kind of released network; all have output stride 8."""

    backbone: str  # timm's name for the same backbone
    head: str  # "deeplabv3" or "pspnet"
    auxiliary_head: bool  # whether it usually has one
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)  # timm's options for exactly this backbone

    def config(
        self, classes: Sequence[str], *, head_channels: int | None = None, auxiliary_head: bool | None = None
    ) -> AfDcdConfig:
        """Build the configuration for classes in the order of their ids; None: this kind's default."""
        return AfDcdConfig(
            backbone=self.backbone,
            backbone_kwargs=dict(self.backbone_kwargs),
            output_stride=8,
            head=self.head,
            head_channels=head_channels,
            auxiliary_head=self.auxiliary_head if auxiliary_head is None else auxiliary_head,
            id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)},
        )


RELEASED_NETWORKS: dict[str, ReleasedNetwork] = {
    f"{head}_{name}": ReleasedNetwork(backbone, head, name != "mobilenetv2", options)
    for head in ("deeplabv3", "pspnet")
    for name, backbone, options in (
        ("resnet18", "resnet18", {"stem_type": "deep", "stem_width": 64}),
        ("resnet50", "resnet50s", {}),
        ("resnet101", "resnet101s", {}),
        ("mobilenetv2", "mobilenetv2_100", {}),
    )
}


def get_released_network(name: str) -> ReleasedNetwork:
    """Look up a kind of released network by name; a ValueError lists the known ones."""
    return chosen(RELEASED_NETWORKS, name, "released network")


# Modules of our models -> modules of the released ones; the first pattern that matches the whole name applies.
_RESNET = {
    r"conv1\.0": "conv1", r"conv1\.1": "bn1", r"conv1\.3": "conv2", r"conv1\.4": "bn2", r"conv1\.6": "conv3",
    r"bn1": "bn3", r"(layer\d\.\d+\..+)": r"\1", r"fc": "fc",
}  # fmt: skip
_AUXILIARY = {
    r"auxiliary_head\.features\.0\.(\d)": r"auxlayer.block.\1",
    r"auxiliary_head\.classifier": "auxlayer.block.4",
}
_HEADS = {
    "deeplabv3": {
        r"head\.features\.0\.branches\.0\.(\d)": r"head.aspp.b0.\1",
        r"head\.features\.0\.branches\.4\.conv\.0": "head.aspp.b4.gap.1",
        r"head\.features\.0\.branches\.4\.conv\.1": "head.aspp.b4.gap.2",
        r"head\.features\.0\.branches\.(\d)\.(\d)": r"head.aspp.b\1.block.\2",
        r"head\.features\.0\.project\.0\.(\d)": r"head.aspp.project.\1",
        r"head\.features\.1\.(\d)": r"head.block.\1",
        r"head\.classifier": "head.block.4",
        **_AUXILIARY,
    },
    "pspnet": {
        **{rf"head\.features\.0\.branches\.{i}\.conv\.(\d)": rf"head.psp.conv{i + 1}.\1" for i in range(4)},
        r"head\.features\.1\.(\d)": r"head.block.\1",
        r"head\.classifier": "head.classifier",
        **_AUXILIARY,
    },
}
# Blocks in each of timm's stages of MobileNetV2; the released files number them consecutively.
_MOBILENETV2_BLOCKS = (1, 2, 3, 4, 3, 3, 1)
_MOBILENETV2_FIRST = {"conv_dw": 0, "bn1": 1, "conv_pw": 3, "bn2": 4}  # the first block has no expansion layer
_MOBILENETV2_OTHER = {"conv_pw": 0, "bn1": 1, "conv_dw": 3, "bn2": 4, "conv_pwl": 6, "bn3": 7}
_MOBILENETV2 = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.18.0",  # from here on: the ImageNet classifier only
    "bn2": "features.18.1",
    "classifier": "classifier.1",
    **{
        rf"blocks\.{stage}\.{block}\.{layer}": f"features.{1 + sum(_MOBILENETV2_BLOCKS[:stage]) + block}.conv.{number}"
        for stage, count in enumerate(_MOBILENETV2_BLOCKS)
        for block in range(count)
        for layer, number in (_MOBILENETV2_OTHER if stage else _MOBILENETV2_FIRST).items()
    },
}


def released_names(ours: Iterable[str], network: str) -> dict[str, str]:
    """Map names in a released file to names in our model, given the names of our `state_dict()`."""
    head, backbone = network.split("_")
    # The released MobileNetV2 has one more wrapper around its layers.
    prefix, names = "pretrained.net." if backbone == "mobilenetv2" else "pretrained.", {}
    for name in ours:
        if name.startswith("backbone.net."):
            names[prefix + released_backbone_name(name.removeprefix("backbone.net."), backbone)] = name
        else:
            names[_renamed(name, _HEADS[head])] = name
    return names


def released_backbone_name(ours: str, backbone: str) -> str:
    """Translate the name of a timm backbone's tensor, classifier included, to the released name without prefix."""
    return _renamed(ours, _MOBILENETV2 if backbone == "mobilenetv2" else _RESNET)


def _renamed(name: str, patterns: Mapping[str, str]) -> str:
    module, _, tensor = name.rpartition(".")
    for pattern, replacement in patterns.items():
        if match := re.fullmatch(pattern, module):
            return f"{match.expand(replacement)}.{tensor}"
    raise ValueError(f"The released networks have no equivalent of the module {module!r}.")
