"""Decode heads, which turn the backbone's maps into class scores at the resolution of a map.

To add a head, write its `features`, a class that computes the last hidden map, and add it to `HEADS`. Model cards use
its `title`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .configuration_afdcd import AfDcdConfig


class SegmentationHead(nn.Module):
    """`features` of a `kind`, e.g. a value of `HEADS`, then a 1x1 convolution to `(B, num_labels, h, w)` logits."""

    def __init__(self, kind: Any, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        super().__init__()
        self.features = kind(channels, strides, config)
        self.classifier = nn.Conv2d(self.features.width, config.num_labels, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.classifier(self.features(maps))


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Build a convolution without bias that keeps the map's size, batch normalisation and ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_norm_relu(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Build a depthwise 3x3 and a 1x1 convolution, batch normalisation and ReLU; the map keeps its size."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, 1, dilation, dilation, groups=in_channels, bias=False)
    return nn.Sequential(depthwise, conv_norm_relu(in_channels, out_channels, 1))


def _from_stride_4(strides: Sequence[int]) -> list[int]:
    return [index for index, stride in enumerate(strides) if stride >= 4]


def upsample(maps: Tensor, size: Sequence[int], align_corners: bool = True) -> Tensor:
    """Resize maps or logits `(B, C, h, w)` bilinearly to `size` = (H, W)."""
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=align_corners)


class PooledBranch(nn.Module):
    """Average pooling to `bins` x `bins`, 1x1 convolution - BN - ReLU, resized to the map's size."""

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
        if self.bins == 1:  # resizing a single value is a broadcast
            return pooled.expand(-1, -1, *features.shape[-2:])
        return upsample(pooled, features.shape[-2:])


class AtrousPyramid(nn.Module):
    """ASPP: a 1x1 branch, one 3x3 atrous branch per rate and image pooling, concatenated and projected."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], separable: bool = False):
        super().__init__()
        atrous = separable_conv_norm_relu if separable else partial(conv_norm_relu, kernel_size=3)
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, channels, 1)])
        self.branches.extend(atrous(in_channels, channels, dilation=rate) for rate in rates)
        self.branches.append(PooledBranch(in_channels, channels, bins=1))
        self.project = nn.Sequential(conv_norm_relu(channels * len(self.branches), channels, 1), nn.Dropout(0.5))

    def forward(self, features: Tensor) -> Tensor:
        return self.project(torch.cat([branch(features) for branch in self.branches], dim=1))


class PoolingPyramid(nn.Module):
    """PSP: the map concatenated with its averages over 1, 4, 9 and 36 cells, each with C/4 channels."""

    def __init__(self, in_channels: int):
        super().__init__()
        self.branches = nn.ModuleList(PooledBranch(in_channels, in_channels // 4, bins) for bins in (1, 2, 3, 6))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, *(branch(features) for branch in self.branches)], dim=1)


class LastMapFeatures(nn.Sequential):
    """Layers on the backbone's last map."""

    def __init__(self, width: int, *layers: nn.Module):
        super().__init__(*layers)
        self.width = width

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return super().forward(maps[-1])


class DeepLabV3(LastMapFeatures):
    """ASPP - 3x3 convolution (Chen et al., arXiv 1706.05587)."""

    title: ClassVar = "DeepLabV3"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        width = config.head_channels or (256 if channels[-1] >= 2048 else 128)
        pyramid = AtrousPyramid(channels[-1], width, cast("list[int]", config.atrous_rates))
        super().__init__(width, pyramid, conv_norm_relu(width, width, 3), nn.Dropout(0.1))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ (Chen et al., arXiv 1802.02611), equivalent to segmentation-models-pytorch's: separable ASPP, resized
    to the map at stride 4 and fused with a projection of that map to 48 channels."""

    title: ClassVar = "DeepLabV3+"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        super().__init__()
        self.fine = _from_stride_4(strides)[0]
        self.width = width = config.head_channels or (256 if channels[-1] >= 2048 else 128)
        pyramid = AtrousPyramid(channels[-1], width, cast("list[int]", config.atrous_rates), separable=True)
        self.pyramid = nn.Sequential(pyramid, separable_conv_norm_relu(width, width))
        self.skip = conv_norm_relu(channels[self.fine], 48, 1)
        self.fuse = separable_conv_norm_relu(width + 48, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        fine = self.skip(maps[self.fine])
        coarse = upsample(self.pyramid(maps[-1]), fine.shape[-2:])
        return self.fuse(torch.cat([coarse, fine], dim=1))


class PSPNet(LastMapFeatures):
    """Pooling pyramid - 3x3 convolution (Zhao et al., arXiv 1612.01105)."""

    title: ClassVar = "PSPNet"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        width = config.head_channels or (512 if channels[-1] >= 2048 else 128)
        pyramid = PoolingPyramid(channels[-1])
        convolution = conv_norm_relu(channels[-1] + 4 * (channels[-1] // 4), width, 3)
        super().__init__(width, pyramid, convolution, nn.Dropout(0.1))


class FCN(LastMapFeatures):
    """3x3 convolution (Long et al. 2015)."""

    title: ClassVar = "FCN"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig, auxiliary: bool = False):
        width = (None if auxiliary else config.head_channels) or max(1, channels[-1] // 4)
        super().__init__(width, conv_norm_relu(channels[-1], width, 3), nn.Dropout(0.1))


class LRASPP(nn.Module):
    """Lite R-ASPP of MobileNetV3 (Howard et al., arXiv 1905.02244), equivalent to torchvision's: the last map, weighted
    by channel, is resized to the deepest finer map and concatenated with it."""

    title: ClassVar = "LR-ASPP"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        super().__init__()
        finer = [index for index, stride in enumerate(strides) if stride < strides[-1]]
        if not finer:
            raise ValueError(f"head='lraspp' needs a map finer than the last; {config.backbone!r} gives {strides}.")
        self.fine, width = finer[-1], config.head_channels or 128
        self.conv = conv_norm_relu(channels[-1], width, 1)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], width, 1, bias=False), nn.Sigmoid())
        # one classifier on the concatenated maps: the sum of one on each
        self.width = width + channels[self.fine]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        coarse, fine = self.conv(maps[-1]) * self.scale(maps[-1]), maps[self.fine]
        return torch.cat([upsample(coarse, fine.shape[-2:], align_corners=False), fine], dim=1)


class SegFormer(nn.Module):
    """SegFormer's all-MLP decoder (Xie et al., arXiv 2105.15203): maps of stride 4 and above, resized and fused."""

    title: ClassVar = "SegFormer head"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        super().__init__()
        self.used = _from_stride_4(strides)
        self.width = config.head_channels or 256
        self.project = nn.ModuleList(nn.Conv2d(channels[index], self.width, 1) for index in self.used)
        self.fuse = nn.Sequential(conv_norm_relu(self.width * len(self.used), self.width, 1), nn.Dropout(0.1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        projected = [layer(maps[index]) for layer, index in zip(self.project, self.used, strict=True)]
        size = projected[0].shape[-2:]
        resized = [upsample(each, size, align_corners=False) for each in projected]
        return self.fuse(torch.cat(resized[::-1], dim=1))


class FPN(nn.Module):
    """Semantic FPN (Kirillov et al., arXiv 1901.02446), equivalent to segmentation-models-pytorch's: a pyramid, twice
    as wide as the head, on the maps of stride 4 and above, whose levels are upsampled step by step and added."""

    title: ClassVar = "FPN"

    def __init__(self, channels: Sequence[int], strides: Sequence[int], config: AfDcdConfig):
        super().__init__()
        self.used = _from_stride_4(strides)
        self.width = config.head_channels or 128
        self.lateral = nn.ModuleList(nn.Conv2d(channels[index], 2 * self.width, 1) for index in self.used)
        self.levels = nn.ModuleList(self._level(max(1, depth)) for depth in range(len(self.used)))
        self.dropout = nn.Dropout2d(0.2)

    def _level(self, count: int) -> nn.ModuleList:
        layers = nn.ModuleList()
        for before, after in pairwise([2 * self.width, *[self.width] * count]):
            convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers.append(nn.Sequential(convolution, nn.GroupNorm(math.gcd(32, after), after), nn.ReLU()))
        return layers

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        pyramid = [layer(maps[index]) for layer, index in zip(self.lateral, self.used, strict=True)]
        for finer in range(len(pyramid) - 2, -1, -1):
            pyramid[finer] = pyramid[finer] + F.interpolate(pyramid[finer + 1], size=pyramid[finer].shape[-2:])
        finest = []
        for depth, (level, feature_map) in enumerate(zip(self.levels, pyramid, strict=True)):
            for done, layer in enumerate(cast(nn.ModuleList, level), start=1):
                feature_map = upsample(layer(feature_map), pyramid[max(0, depth - done)].shape[-2:])
            finest.append(feature_map)
        return self.dropout(torch.stack(finest).sum(dim=0))


# the values of the configuration's `head`
HEADS: dict[str, Any] = {
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "pspnet": PSPNet,
    "fcn": FCN,
    "lraspp": LRASPP,
    "segformer": SegFormer,
    "fpn": FPN,
}
