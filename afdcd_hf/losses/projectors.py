"""Layers that restore the teacher's map from the masked student map; they train beside the student, then go.

Weights and multiplications (10⁹ MAC, dense, one image) at 2048 channels:

| name | layers | weights | of plain | GMAC at 45×45 | GMAC at 64×128 |
|---|---|---|---|---|---|
| plain | 3×3 – 3×3 | 75.5 M | 100 % | 152.9 | 618.5 |
| enhanced | 3×3 – (3×3, 3×3 – 3×3), mean | 151.0 M | 200 % | 305.8 | 1237.0 |
| bottleneck | 1×1 to C/4 – 3×3 – 3×3 – 1×1 to C | 6.8 M | 9.0 % | 13.8 | 55.8 |
| depthwise | (3×3 a channel, 1×1) – (3×3 a channel, 1×1) | 8.4 M | 11.2 % | 17.1 | 69.0 |
| none | | 0 | 0 % | 0 | 0 |

– is a ReLU. The paper has the first two; the others are ours. bottleneck and depthwise see the same 5×5 positions as
plain. With none the aligned map itself is compared: nothing could restore a hidden position, so nothing may be hidden.
Seconds on one CPU core with align from 512 channels, forward and backward, batch 2, 45×45: plain 18.6, bottleneck 2.3,
depthwise 3.5.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

BOTTLENECK_REDUCTION = 4


def conv3x3(channels: int) -> nn.Conv2d:
    """A 3×3 convolution of `(B, channels, h, w)` to the same."""
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1)


def plain_projector(channels: int) -> nn.Sequential:
    """conv3×3 – ReLU – conv3×3 on `(B, channels, h, w)`: 18·channels² weights (75.5 million at 2048)."""
    return nn.Sequential(conv3x3(channels), nn.ReLU(inplace=True), conv3x3(channels))


class EnhancedProjector(nn.Module):
    """Two depths restored separately and averaged; twice the weights of the plain projector.

    x1 = ReLU(conv3×3(x)), x2 = ReLU(conv3×3(x1)); the result is the mean of conv3×3(x1) and conv3×3(x2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(conv3x3(channels), nn.ReLU(inplace=True))
        self.second = nn.Sequential(conv3x3(channels), nn.ReLU(inplace=True))
        self.restore_first = conv3x3(channels)
        self.restore_second = conv3x3(channels)

    def forward(self, feature_map: Tensor) -> Tensor:
        shallow = self.first(feature_map)
        return (self.restore_first(shallow) + self.restore_second(self.second(shallow))) / 2


def bottleneck_projector(channels: int) -> nn.Sequential:
    """1×1 to a quarter of the channels – 3×3 – 3×3 – 1×1 back, ReLU between: 1.6·channels² weights.

    Two 3×3 convolutions, not one: at ζ = 0.75 one in 13 positions has no kept position in the 3×3 around it
    (0.75⁹ = 7.5 %), one in 1,300 none in the 5×5.

    Raises:
        ValueError: `channels` are no multiple of 4.
    """
    if channels % BOTTLENECK_REDUCTION:
        raise ValueError(
            f"projector='bottleneck' works at 1/{BOTTLENECK_REDUCTION} of the teacher's channels, which does not go "
            f"into teacher_channels={channels}; use projector='depthwise' or 'plain'."
        )
    narrow = channels // BOTTLENECK_REDUCTION
    return nn.Sequential(
        nn.Conv2d(channels, narrow, kernel_size=1),
        nn.ReLU(inplace=True),
        conv3x3(narrow),
        nn.ReLU(inplace=True),
        conv3x3(narrow),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, channels, kernel_size=1),
    )


def depthwise_projector(channels: int) -> nn.Sequential:
    """The plain projector with each 3×3 split in one per channel and a 1×1 over channels: 2·channels² weights.

    It starts as the identity, but for the ReLU between: what it hands back to the student is of use from the first
    step, where random layers have to be trained first.
    """
    projector = nn.Sequential(*_separable(channels), nn.ReLU(inplace=True), *_separable(channels))
    for layer in projector:
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight, layer.groups)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return projector


def _separable(channels: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    by_channel = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
    return by_channel, nn.Conv2d(channels, channels, kernel_size=1)


PROJECTORS: dict[str, Callable[[int], nn.Module]] = {
    "plain": plain_projector,
    "enhanced": EnhancedProjector,
    "bottleneck": bottleneck_projector,
    "depthwise": depthwise_projector,
    "none": nn.Identity,
}


def check_restorable(projector: str, mask: str, mask_ratio: float) -> None:
    """Raise ValueError for a mask that hides positions which no projector restores."""
    if projector == "none" and (mask != "random" or mask_ratio > 0):
        hides = f"mask_ratio={mask_ratio}" if mask == "random" else f"mask={mask!r}"
        raise ValueError(
            f"projector='none' restores nothing, but {hides} hides positions: set mask_ratio=0 with mask='random', or "
            "use a projector."
        )


def restore(student_map: Tensor, mask: Tensor, align: nn.Module, projector: nn.Module) -> Tensor:
    """S' = projector(mask ⊙ align(student_map)).

    Args:
        student_map: `(B, Cs, h, w)` floating.
        mask: `(B, 1, h, w)` floating, 1 = kept, 0 = hidden; without gradient.
        align: 1×1 convolution Cs → Ct, or the identity.
        projector: made by one of `PROJECTORS`, for Ct channels.

    Returns:
        `(B, Ct, h, w)`, of the caller's autocast dtype where autocast is on and there is a layer.
    """
    aligned = align(student_map)
    # masked after the alignment: its bias must not show at hidden positions
    return projector(aligned * mask.to(aligned.dtype))
