"""Layers that restore the teacher's map from the masked student map, and are discarded after training.

At 2048 channels (GMAC: 10⁹ multiplications for one map of 45×45):

| name | layers | weights | of plain | GMAC |
|---|---|---|---|---|
| plain | 3×3 – 3×3 | 75.5 M | 100 % | 152.9 |
| enhanced | 3×3 – (3×3, 3×3 – 3×3), mean | 151.0 M | 200 % | 305.8 |
| bottleneck | 1×1 to C/4 – 3×3 – 3×3 – 1×1 to C | 6.8 M | 9.0 % | 13.8 |
| depthwise | (3×3 a channel, 1×1) – (3×3 a channel, 1×1) | 8.4 M | 11.2 % | 17.1 |
| none | | 0 | 0 % | 0 |

A dash is a ReLU. The first two are the paper's; the others are ours. bottleneck and depthwise have the 5×5 receptive
field of plain. none compares the aligned map itself, so nothing may be hidden: nothing could restore it. On a CPU, the
first convolution of plain and enhanced runs on the kept positions alone. Seconds of CPU time there (one core, align
from 512 channels, forward and backward, batch 2, 45×45, ζ = 0.75): plain 10.8 (17.5 on all positions), depthwise 1.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F


def _conv(channels: int, size: int = 3, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=size, padding=size // 2, groups=groups)


def mask_aligned(align: Any, feature_map: Tensor, mask: Tensor) -> Tensor:
    """Compute mask ⊙ align(map), `(B, C', h, w)`, for a map `(B, C, h, w)`; `align` is a 1×1 convolution or identity.

    The mask comes second, so that the bias does not show at hidden positions. `convolve_kept` says what is skipped.
    """
    if not isinstance(align, nn.Conv2d) or not _skips_hidden(align, feature_map, mask):
        aligned = align(feature_map)
        return aligned * mask.to(aligned.dtype)
    kept, rows = _kept(feature_map, mask)
    aligned = F.linear(rows, align.weight.flatten(1), align.bias)
    return _as_map(aligned.new_zeros(mask.numel(), align.out_channels).index_copy(0, kept, aligned), mask)


def convolve_kept(convolution: Any, feature_map: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a 3×3 convolution to a map `(B, C, h, w)` that is 0 wherever `mask` `(B, 1, h, w)`, if given, is 0.

    On a CPU, in float32 or float64, only kept positions are multiplied if they are at most half of all (a quarter at
    ζ = 0.75). Hidden positions then get no gradient, which the mask would make 0 anyway. A GPU would have to wait for
    the number of kept positions, and half precision would round each of the nine products.
    """
    if mask is None or not _skips_hidden(convolution, feature_map, mask):
        return convolution(feature_map)
    (kept, rows), (height, width) = _kept(feature_map, mask), mask.shape[2:]
    y, x = kept // width % height, kept % width
    summed = rows.new_zeros(mask.numel() + 1, convolution.out_channels)  # the last row collects what leaves the map
    for offset, weight in enumerate(convolution.weight.permute(2, 3, 0, 1).flatten(0, 1)):
        down, right = 1 - offset // 3, 1 - offset % 3  # the shift of a position's product with this weight
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        summed.index_add_(0, torch.where(inside, kept + down * width + right, mask.numel()), rows @ weight.T)
    summed = summed[:-1]
    return _as_map(summed if convolution.bias is None else summed + convolution.bias, mask)


def _skips_hidden(layer: nn.Conv2d, feature_map: Tensor, mask: Tensor) -> bool:
    exact = feature_map.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    eager_cpu = feature_map.device.type == "cpu" and not torch.compiler.is_compiling()
    return exact and eager_cpu and not isinstance(layer.weight, DTensor) and mask.mean().item() <= 0.5


def _kept(feature_map: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flat indices `(P,)` of the kept positions (b, y, x), and their rows `(P, C)`."""
    kept = mask.flatten().nonzero()[:, 0]
    return kept, feature_map.permute(0, 2, 3, 1).flatten(0, 2)[kept]


def _as_map(rows: Tensor, mask: Tensor) -> Tensor:
    batch, _, height, width = mask.shape
    return rows.view(batch, height, width, rows.shape[1]).permute(0, 3, 1, 2)


class PlainProjector(nn.Sequential):
    """conv3×3 – ReLU – conv3×3 on `(B, channels, h, w)` that is 0 wherever `mask` is (see `convolve_kept`)."""

    def __init__(self, channels: int) -> None:
        super().__init__(_conv(channels), nn.ReLU(inplace=True), _conv(channels))

    def forward(self, feature_map: Tensor, mask: Tensor | None = None) -> Tensor:
        first, activation, last = self
        return last(activation(convolve_kept(first, feature_map, mask)))


class EnhancedProjector(nn.Module):
    """The mean of conv3×3(x1) and conv3×3(x2): x1 = ReLU(conv3×3(x)), x2 = ReLU(conv3×3(x1)), x as for plain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(_conv(channels), nn.ReLU(inplace=True))
        self.second = nn.Sequential(_conv(channels), nn.ReLU(inplace=True))
        self.restore_first = _conv(channels)
        self.restore_second = _conv(channels)

    def forward(self, feature_map: Tensor, mask: Tensor | None = None) -> Tensor:
        first, activation = self.first
        shallow = activation(convolve_kept(first, feature_map, mask))
        return (self.restore_first(shallow) + self.restore_second(self.second(shallow))) / 2


def bottleneck_projector(channels: int) -> nn.Sequential:
    """Build 1×1 to a quarter of the channels – 3×3 – 3×3 – 1×1 back; ValueError unless they are a multiple of 4."""
    # two 3×3: at ζ = 0.75, 1 position in 13 has no kept one in the 3×3 around it, but 1 in 1,300 in the 5×5
    if channels % 4:
        raise ValueError(
            "projector='bottleneck' works at 1/4 of the teacher's channels, but "
            f"teacher_channels={channels} is not a multiple of 4; use projector='depthwise' or 'plain'."
        )
    narrow = channels // 4
    convolutions = nn.Conv2d(channels, narrow, 1), _conv(narrow), _conv(narrow), nn.Conv2d(narrow, channels, 1)
    layers = [layer for convolution in convolutions for layer in (convolution, nn.ReLU(inplace=True))]
    return nn.Sequential(*layers[:-1])


def depthwise_projector(channels: int) -> nn.Sequential:
    """Build the plain projector with each 3×3 split into a depthwise 3×3 and a 1×1.

    It starts as the identity apart from the ReLU in between, so that gradients help the student from the first step.
    A map without a final ReLU (EfficientNet, MobileNetV2) loses its negative half there; on EfficientNet's, the choice
    "none" was better (docs/comparing.md).
    """
    layers = [_conv(channels, size, groups) for size, groups in ((3, channels), (1, 1)) * 2]
    for layer in layers:
        nn.init.dirac_(layer.weight, layer.groups)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers[:2], nn.ReLU(inplace=True), *layers[2:])


PROJECTORS: dict[str, Callable[[int], nn.Module]] = {
    "plain": PlainProjector,
    "enhanced": EnhancedProjector,
    "bottleneck": bottleneck_projector,
    "depthwise": depthwise_projector,
    "none": nn.Identity,
}
