"""Decode heads: maps of the backbone in, class scores at the map's resolution out.

Every head is `features` (everything up to the last hidden map) followed by `classifier`, so that the head's last map
can be hooked as `head.features`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .configuration_afdcd import AfDcdConfig


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the map's size, batch normalisation, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_norm_relu(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """3x3 convolution of each channel, 1x1 convolution, batch normalisation, ReLU; the map keeps its size."""
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
    )
    return nn.Sequential(depthwise, conv_norm_relu(in_channels, out_channels, 1))


class PooledBranch(nn.Module):
    """Average pooling to `bins` x `bins`, 1x1 convolution - BN - ReLU, stretched back to the map's size."""

    def __init__(self, in_channels: int, out_channels: int, bins: int):
        super().__init__()
        self.bins = bins
        self.conv = conv_norm_relu(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:  # (B, C, h, w) -> (B, out, h, w)
        if self.bins == 1 and features.shape[0] == 1 and self.conv[1].training:
            raise ValueError(
                "Training got a batch of one image, but this head normalises a pooled 1x1 map over the batch. Use at "
                "least 2 images per device (and drop the last, smaller batch), or put batch norm in eval mode."
            )
        pooled = self.conv(F.adaptive_avg_pool2d(features, self.bins))
        if self.bins == 1:  # stretching a single value is a broadcast
            return pooled.expand(-1, -1, *features.shape[-2:])
        return F.interpolate(pooled, size=features.shape[-2:], mode="bilinear", align_corners=True)


class AtrousPyramid(nn.Module):
    """ASPP: 1x1, one 3x3 atrous branch per rate and image pooling, concatenated and projected (arXiv 1706.05587).

    With `separable`, the atrous convolutions are depthwise and pointwise ones (arXiv 1802.02611).
    """

    def __init__(self, in_channels: int, channels: int, rates: list[int], separable: bool = False):
        super().__init__()
        atrous = separable_conv_norm_relu if separable else partial(conv_norm_relu, kernel_size=3)
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1),
                *(atrous(in_channels, channels, dilation=rate) for rate in rates),
                PooledBranch(in_channels, channels, bins=1),
            ]
        )
        self.project = nn.Sequential(conv_norm_relu(channels * len(self.branches), channels, 1), nn.Dropout(0.5))

    def forward(self, features: Tensor) -> Tensor:
        return self.project(torch.cat([branch(features) for branch in self.branches], dim=1))


class PoolingPyramid(nn.Module):
    """PSP: the map beside its averages over 1, 4, 9 and 36 cells, each with C/4 channels (arXiv 1612.01105)."""

    def __init__(self, in_channels: int, bins: tuple[int, ...] = (1, 2, 3, 6)):
        super().__init__()
        self.branches = nn.ModuleList(PooledBranch(in_channels, in_channels // len(bins), count) for count in bins)
        self.out_channels = in_channels + len(bins) * (in_channels // len(bins))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, *(branch(features) for branch in self.branches)], dim=1)


class SegmentationHead(nn.Module):
    """`features`, then a 1x1 convolution `classifier`: the backbone's maps in, `(B, num_labels, h, w)` logits out.

    A new kind is a subclass here and a line in `HEADS`, whose type names it too. Its constructor takes the channels and
    strides of the backbone's maps, shallow to deep, and the configuration.

    Attributes:
        title: what model cards call it.
        reads_all_maps: whether `features` takes the list of maps, and not the last one alone.
    """

    title: ClassVar[str]
    reads_all_maps: ClassVar[bool] = False

    def __init__(self, features: nn.Module, channels: int, num_labels: int):
        super().__init__()
        self.features = features
        self.classifier = nn.Conv2d(channels, num_labels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.features(maps if self.reads_all_maps else maps[-1]))


class DeepLabV3Head(SegmentationHead):
    """ASPP - 3x3 convolution - classifier (Chen et al., arXiv 1706.05587)."""

    title = "DeepLabV3"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        width = config.head_channels or (256 if channels[-1] >= 2048 else 128)
        pyramid = AtrousPyramid(channels[-1], width, cast("list[int]", config.atrous_rates))
        features = nn.Sequential(pyramid, conv_norm_relu(width, width, 3), nn.Dropout(0.1))
        super().__init__(features, width, config.num_labels)


class EncoderDecoderFeatures(nn.Module):
    """Separable ASPP, stretched to the map at stride 4 and fused with 48 channels of it (arXiv 1802.02611)."""

    def __init__(self, fine: int, channels: Sequence[int], width: int, rates: list[int]):
        super().__init__()
        self.fine = fine
        pyramid = AtrousPyramid(channels[-1], width, rates, separable=True)
        self.pyramid = nn.Sequential(pyramid, separable_conv_norm_relu(width, width))
        self.skip = conv_norm_relu(channels[fine], 48, 1)
        self.fuse = separable_conv_norm_relu(width + 48, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fine = self.skip(maps[self.fine])
        coarse = _stretched(self.pyramid(maps[-1]), fine, align_corners=True)
        return self.fuse(torch.cat([coarse, fine], dim=1))


class DeepLabV3PlusHead(SegmentationHead):
    """DeepLabV3+ (Chen et al., arXiv 1802.02611), computing what segmentation-models-pytorch's does.

    Logits have the size of the map at stride 4: thin things such as poles survive, which at stride 16 they do not.
    """

    title = "DeepLabV3+"
    reads_all_maps = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        fine = _from_stride_4(strides)[0]
        width = config.head_channels or (256 if channels[-1] >= 2048 else 128)
        features = EncoderDecoderFeatures(fine, channels, width, cast("list[int]", config.atrous_rates))
        super().__init__(features, width, config.num_labels)


class PSPHead(SegmentationHead):
    """Pooling pyramid - 3x3 convolution - classifier (Zhao et al., arXiv 1612.01105)."""

    title = "PSPNet"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        width = config.head_channels or (512 if channels[-1] >= 2048 else 128)
        pyramid = PoolingPyramid(channels[-1])
        features = nn.Sequential(pyramid, conv_norm_relu(pyramid.out_channels, width, 3), nn.Dropout(0.1))
        super().__init__(features, width, config.num_labels)


class FCNHead(SegmentationHead):
    """3x3 convolution - classifier (Long et al. 2015); always a quarter of the input wide as the auxiliary head."""

    title = "FCN"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig, auxiliary: bool = False):
        width = (None if auxiliary else config.head_channels) or max(1, channels[-1] // 4)
        features = nn.Sequential(conv_norm_relu(channels[-1], width, 3), nn.Dropout(0.1))
        super().__init__(features, width, config.num_labels)


class LiteFeatures(nn.Module):
    """The last map, weighted by channel and stretched to a finer one, beside that one (arXiv 1905.02244)."""

    def __init__(self, fine: int, channels: Sequence[int], width: int):
        super().__init__()
        self.fine = fine
        self.conv = conv_norm_relu(channels[-1], width, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], width, 1, bias=False), nn.Sigmoid())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        coarse, fine = self.conv(maps[-1]) * self.scale(maps[-1]), maps[self.fine]
        return torch.cat([_stretched(coarse, fine), fine], dim=1)


class LRASPPHead(SegmentationHead):
    """Lite R-ASPP of MobileNetV3 (Howard et al., arXiv 1905.02244), computing what torchvision's does.

    Logits have the size of the deepest map that is finer than the last one: 1/8 at output stride 16.
    """

    title = "LR-ASPP"
    reads_all_maps = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        finer = [index for index, stride in enumerate(strides) if stride < strides[-1]]
        if not finer:
            raise ValueError(f"head='lraspp' needs a map finer than the last; {config.backbone!r} gives {strides}.")
        width = config.head_channels or 128
        # one classifier on both maps side by side: the sum of one on each
        features = LiteFeatures(finer[-1], channels, width)
        super().__init__(features, width + channels[finer[-1]], config.num_labels)


class AllMLPFeatures(nn.Module):
    """All maps of stride 4 and more: 1x1 convolution each, stretched to the first, fused (arXiv 2105.15203)."""

    def __init__(self, used: Sequence[int], channels: Sequence[int], width: int):
        super().__init__()
        self.used = list(used)
        self.project = nn.ModuleList(nn.Conv2d(channels[index], width, 1) for index in used)
        self.fuse = nn.Sequential(conv_norm_relu(width * len(used), width, 1), nn.Dropout(0.1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        projected = [layer(maps[index]) for layer, index in zip(self.project, self.used, strict=True)]
        stretched = [_stretched(each, projected[0]) for each in projected]
        return self.fuse(torch.cat(stretched[::-1], dim=1))


class SegFormerHead(SegmentationHead):
    """The all-MLP decoder of SegFormer (Xie et al., arXiv 2105.15203); logits have the size of the map at stride 4."""

    title = "SegFormer head"
    reads_all_maps = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        width = config.head_channels or 256
        super().__init__(AllMLPFeatures(_from_stride_4(strides), channels, width), width, config.num_labels)


class FPNFeatures(nn.Module):
    """Feature pyramid on the maps of stride 4 and more, all levels added at the finest (arXiv 1901.02446).

    Every convolution of a level is followed by a stretch to the next finer map, so that any sizes fit.
    """

    def __init__(self, used: Sequence[int], channels: Sequence[int], width: int):
        super().__init__()
        self.used = list(used)
        self.lateral = nn.ModuleList(nn.Conv2d(channels[index], 2 * width, 1) for index in used)
        self.levels = nn.ModuleList(self._level(max(1, depth), width) for depth in range(len(used)))
        self.dropout = nn.Dropout2d(0.2)

    @staticmethod
    def _level(count: int, width: int) -> nn.ModuleList:
        sizes = [2 * width, *[width] * count]
        return nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.GroupNorm(math.gcd(32, after), after), nn.ReLU()
            )
            for before, after in pairwise(sizes)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pyramid = [layer(maps[index]) for layer, index in zip(self.lateral, self.used, strict=True)]
        for finer in range(len(pyramid) - 2, -1, -1):
            pyramid[finer] = pyramid[finer] + F.interpolate(pyramid[finer + 1], size=pyramid[finer].shape[-2:])
        finest = []
        for depth, (level, feature_map) in enumerate(zip(self.levels, pyramid, strict=True)):
            for done, layer in enumerate(level, start=1):
                feature_map = _stretched(layer(feature_map), pyramid[max(0, depth - done)], align_corners=True)
            finest.append(feature_map)
        return self.dropout(torch.stack(finest).sum(dim=0))


class FPNHead(SegmentationHead):
    """Semantic FPN (Kirillov et al., arXiv 1901.02446), computing what segmentation-models-pytorch's does.

    Logits have the size of the map at stride 4; the pyramid is twice as wide as the head.
    """

    title = "FPN"
    reads_all_maps = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        width = config.head_channels or 128
        super().__init__(FPNFeatures(_from_stride_4(strides), channels, width), width, config.num_labels)


def _from_stride_4(strides: Sequence[int]) -> list[int]:
    return [index for index, stride in enumerate(strides) if stride >= 4]


def _stretched(feature_map: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    if feature_map.shape[-2:] == like.shape[-2:]:
        return feature_map
    return F.interpolate(feature_map, size=like.shape[-2:], mode="bilinear", align_corners=align_corners)


# what `head` of the configuration may be
HEADS: dict[str, type[DeepLabV3Head | DeepLabV3PlusHead | PSPHead | FCNHead | LRASPPHead | SegFormerHead | FPNHead]] = {
    "deeplabv3": DeepLabV3Head,
    "deeplabv3plus": DeepLabV3PlusHead,
    "pspnet": PSPHead,
    "fcn": FCNHead,
    "lraspp": LRASPPHead,
    "segformer": SegFormerHead,
    "fpn": FPNHead,
}
