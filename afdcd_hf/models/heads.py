"""Decode heads: maps of the backbone in, class scores at the map's resolution out.

Every head is `features` (everything up to the last hidden map) followed by `classifier`, so that the head's last map
can be hooked as `head.features`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias that keeps the map's size, batch normalisation, ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


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
    """ASPP: 1x1, one 3x3 atrous branch per rate and image pooling, concatenated and projected (arXiv 1706.05587)."""

    def __init__(self, in_channels: int, channels: int, rates: list[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                conv_norm_relu(in_channels, channels, 1),
                *(conv_norm_relu(in_channels, channels, 3, dilation=rate) for rate in rates),
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
    """`features` then `classifier`; `forward` maps `(B, C, h, w)` to `(B, num_labels, h, w)` logits."""

    def __init__(self, features: nn.Sequential, channels: int, num_labels: int):
        super().__init__()
        self.features = features
        self.classifier = nn.Conv2d(channels, num_labels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.features(features))


class DeepLabV3Head(SegmentationHead):
    """ASPP - 3x3 convolution - classifier."""

    def __init__(self, in_channels: int, num_labels: int, channels: int | None, rates: list[int]):
        channels = channels or (256 if in_channels >= 2048 else 128)
        features = nn.Sequential(
            AtrousPyramid(in_channels, channels, rates), conv_norm_relu(channels, channels, 3), nn.Dropout(0.1)
        )
        super().__init__(features, channels, num_labels)


class PSPHead(SegmentationHead):
    """Pooling pyramid - 3x3 convolution - classifier."""

    def __init__(self, in_channels: int, num_labels: int, channels: int | None):
        channels = channels or (512 if in_channels >= 2048 else 128)
        pyramid = PoolingPyramid(in_channels)
        features = nn.Sequential(pyramid, conv_norm_relu(pyramid.out_channels, channels, 3), nn.Dropout(0.1))
        super().__init__(features, channels, num_labels)


class FCNHead(SegmentationHead):
    """3x3 convolution - classifier: the auxiliary head, and the plainest main one."""

    def __init__(self, in_channels: int, num_labels: int, channels: int | None = None):
        channels = channels or max(1, in_channels // 4)
        super().__init__(nn.Sequential(conv_norm_relu(in_channels, channels, 3), nn.Dropout(0.1)), channels, num_labels)


def build_head(
    kind: str, in_channels: int, num_labels: int, channels: int | None, rates: list[int]
) -> SegmentationHead:
    """Build the head named in the configuration for a map of `in_channels` channels."""
    if kind == "deeplabv3":
        return DeepLabV3Head(in_channels, num_labels, channels, rates)
    return {"pspnet": PSPHead, "fcn": FCNHead}[kind](in_channels, num_labels, channels)
