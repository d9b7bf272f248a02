"""The kinds of released networks, in the terms of our configuration; all have output stride 8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..models.configuration_afdcd import AfDcdConfig
from ..suggestions import close_names


@dataclass(frozen=True)
class ReleasedNetwork:
    """One kind of released network."""

    backbone: str  # timm's name of the same backbone
    head: str  # "deeplabv3" or "pspnet"
    auxiliary_head: bool  # whether it usually has one
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)  # with which timm builds that very backbone

    def config(
        self, classes: Sequence[str], *, head_channels: int | None = None, auxiliary_head: bool | None = None
    ) -> AfDcdConfig:
        """The configuration of such a network for classes in the order of their ids; None: as it usually is."""
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
    """The kind of released network with this name; a ValueError lists the known ones if there is none."""
    if name not in RELEASED_NETWORKS:
        known = f"Known: {', '.join(RELEASED_NETWORKS)}."
        raise ValueError(f"Unknown released network {name!r}.{close_names(name.lower(), RELEASED_NETWORKS)} {known}")
    return RELEASED_NETWORKS[name]
