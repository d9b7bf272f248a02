"""Forward passes of the released networks as plain functions of the released tensors, without modules.

Written from the description in method.md, not from our networks, as a reference for converted networks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
# MobileNetV2's blocks 1..17 at output stride 8: stride and dilation of the depthwise convolution. Stages that lose
# their stride use dilation instead, and their first block uses the previous stage's.
STRIDES = {2: 2, 4: 2}
DILATIONS = {**dict.fromkeys(range(8, 15), 2), **dict.fromkeys(range(15, 18), 4)}


class Released:
    """A released network in evaluation mode: `Released(tensors, "pspnet_resnet18")(pixel_values)`."""

    def __init__(self, tensors, network):
        self.tensors = tensors
        self.head, self.backbone = network.split("_")

    def __call__(self, pixel_values):
        """Return the map before the classifier, logits, auxiliary logits and the backbone's last map, by name."""
        with torch.no_grad():
            third, last = self.mobilenet(pixel_values) if self.backbone == "mobilenetv2" else self.resnet(pixel_values)
            feature = self.deeplabv3(last) if self.head == "deeplabv3" else self.pspnet(last)
            classifier = "head.block.4" if self.head == "deeplabv3" else "head.classifier"
            outputs = {"backbone": last, "feature": feature, "logits": self.conv(feature, classifier)}
            if "auxlayer.block.4.weight" in self.tensors:
                hidden = self.conv_norm_relu(third, "auxlayer.block.0", "auxlayer.block.1")
                outputs["aux"] = self.conv(hidden, "auxlayer.block.4")
            return outputs

    def conv(self, x, name, stride=1, dilation=1, groups=1):
        weight, bias = self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, dilation * (weight.shape[-1] // 2), dilation, groups)

    def norm(self, x, name):
        values = [self.tensors[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *values)

    def conv_norm_relu(self, x, conv, norm, **options):
        return F.relu(self.norm(self.conv(x, conv, **options), norm))

    def resnet(self, x):
        for number, stride in ((1, 2), (2, 1), (3, 1)):
            x = self.conv_norm_relu(x, f"pretrained.conv{number}", f"pretrained.bn{number}", stride=stride)
        maps = [F.max_pool2d(x, 3, 2, 1)]
        for layer, count in enumerate(BLOCKS[self.backbone], start=1):
            x = maps[-1]
            for block in range(count):
                x = self.residual(x, layer, block)
            maps.append(x)
        return maps[-2:]

    def residual(self, x, layer, block):
        name = f"pretrained.layer{layer}.{block}"
        stride = 2 if layer == 2 and block == 0 else 1
        dilation = {3: 2, 4: 4}.get(layer, 1)
        first = max(1, dilation // 2) if block == 0 else dilation
        if self.backbone == "resnet18":
            y = self.conv_norm_relu(x, f"{name}.conv1", f"{name}.bn1", stride=stride, dilation=first)
            y = self.norm(self.conv(y, f"{name}.conv2", dilation=dilation), f"{name}.bn2")
        else:
            y = self.conv_norm_relu(x, f"{name}.conv1", f"{name}.bn1")
            y = self.conv_norm_relu(y, f"{name}.conv2", f"{name}.bn2", stride=stride, dilation=first)
            y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
        if f"{name}.downsample.0.weight" in self.tensors:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride=stride), f"{name}.downsample.1")
        return F.relu(x + y)

    def mobilenet(self, x):
        prefix = "pretrained.net.features"
        x = F.relu6(self.norm(self.conv(x, f"{prefix}.0.0", stride=2), f"{prefix}.0.1"))
        for block in range(1, 18):
            y, layer = x, 0
            if block > 1:
                y, layer = F.relu6(self.norm(self.conv(y, f"{prefix}.{block}.conv.0"), f"{prefix}.{block}.conv.1")), 3
            stride, dilation = STRIDES.get(block, 1), DILATIONS.get(block, 1)
            y = self.conv(y, f"{prefix}.{block}.conv.{layer}", stride, dilation, groups=y.shape[1])
            y = F.relu6(self.norm(y, f"{prefix}.{block}.conv.{layer + 1}"))
            y = self.norm(self.conv(y, f"{prefix}.{block}.conv.{layer + 3}"), f"{prefix}.{block}.conv.{layer + 4}")
            x = x + y if x.shape == y.shape else y
        return None, x

    def deeplabv3(self, x):
        branches = [self.conv_norm_relu(x, "head.aspp.b0.0", "head.aspp.b0.1")]
        for number, rate in ((1, 12), (2, 24), (3, 36)):
            name = f"head.aspp.b{number}.block"
            branches.append(self.conv_norm_relu(x, f"{name}.0", f"{name}.1", dilation=rate))
        pooled = self.conv_norm_relu(x.mean((2, 3), keepdim=True), "head.aspp.b4.gap.1", "head.aspp.b4.gap.2")
        branches.append(pooled.expand(-1, -1, *x.shape[2:]))
        y = self.conv_norm_relu(torch.cat(branches, 1), "head.aspp.project.0", "head.aspp.project.1")
        return self.conv_norm_relu(y, "head.block.0", "head.block.1")

    def pspnet(self, x):
        branches = [x]
        for number, bins in ((1, 1), (2, 2), (3, 3), (4, 6)):
            name = f"head.psp.conv{number}"
            pooled = self.conv_norm_relu(F.adaptive_avg_pool2d(x, bins), f"{name}.0", f"{name}.1")
            branches.append(F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=True))
        return self.conv_norm_relu(torch.cat(branches, 1), "head.block.0", "head.block.1")
