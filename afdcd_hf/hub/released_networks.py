"""The six kinds of released networks, in the terms of our configuration."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models.configuration_afdcd import AfDcdConfig


@dataclass(frozen=True)
class ReleasedNetwork:
    """One kind of released network; all have output stride 8.

    Attributes:
        backbone: timm name of the same backbone.
        head: "deeplabv3" or "pspnet".
        auxiliary_head: Whether it has one.
        backbone_kwargs: What timm has to be told to build that very backbone.
    """

    backbone: str
    head: str
    auxiliary_head: bool
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)

    def config(self, classes: tuple[str, ...]) -> AfDcdConfig:
        """The configuration of such a network for these classes, in the order of their ids."""
        from ..models.configuration_afdcd import AfDcdConfig

        return AfDcdConfig(
            backbone=self.backbone,
            backbone_kwargs=dict(self.backbone_kwargs),
            output_stride=8,
            head=self.head,
            auxiliary_head=self.auxiliary_head,
            id2label=dict(enumerate(classes)),
            label2id={name: index for index, name in enumerate(classes)},
        )


_RESNET18 = ("resnet18", {"stem_type": "deep", "stem_width": 64})
_RESNET101 = ("resnet101s", {})
_MOBILENETV2 = ("mobilenetv2_100", {})

RELEASED_NETWORKS: dict[str, ReleasedNetwork] = {
    f"{head}_{name}": ReleasedNetwork(backbone, head, name != "mobilenetv2", kwargs)
    for head in ("deeplabv3", "pspnet")
    for name, (backbone, kwargs) in (
        ("resnet18", _RESNET18),
        ("resnet101", _RESNET101),
        ("mobilenetv2", _MOBILENETV2),
    )
}


def get_released_network(name: str) -> ReleasedNetwork:
    """The kind of released network with this name.

    Raises:
        ValueError: If there is none; the known ones are listed.
    """
    if name not in RELEASED_NETWORKS:
        close = difflib.get_close_matches(name.lower(), RELEASED_NETWORKS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown released network {name!r}.{hint} Known: {', '.join(RELEASED_NETWORKS)}.")
    return RELEASED_NETWORKS[name]
