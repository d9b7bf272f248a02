"""The models: inputs and outputs, heads, losses, configuration (the released ones: tests/hub/test_conversion.py)."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from formula_weights import images
from huggingface_hub.errors import StrictDataclassError
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from tiny import segmenter
from torch import nn
from torchvision.models.segmentation.lraspp import LRASPPHead
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from afdcd_hf import AfDcdConfig
from afdcd_hf.losses.task import TaskLoss
from afdcd_hf.models.heads import HEADS, SegmentationHead
from afdcd_hf.models.modeling_afdcd import segmentation_cross_entropy, upsample_logits


def labels_for(pixel_values):
    size = (len(pixel_values), *pixel_values.shape[-2:])
    return torch.randint(4, size, generator=torch.Generator().manual_seed(1))


# Inputs and outputs


# LR-ASPP's logits have the size of the next finer map; SegFormer's, FPN's and DeepLabV3+'s that of the map at stride 4
@pytest.mark.parametrize(
    ("head", "output_stride", "stride"),
    [("deeplabv3", 8, 8), ("pspnet", 8, 8), ("fcn", 8, 8), ("fcn", 16, 16), ("fcn", 32, 32), ("lraspp", 16, 8),
     ("lraspp", 8, 4), ("segformer", 32, 4), ("deeplabv3plus", 16, 4), ("fpn", 32, 4), ("fpn", 8, 4)],
)  # fmt: skip
@pytest.mark.parametrize("size", [(33, 47), (64, 96), (8, 8)])
def test_logits_have_the_heads_stride_rounded_up_for_any_size(head, output_stride, stride, size):
    model = segmenter(head=head, output_stride=output_stride, auxiliary_head=True)
    if size == (8, 8):
        model.eval()
    pixel_values = images(2, 3, *size)
    outputs = model(pixel_values, labels=labels_for(pixel_values))
    assert outputs.logits.shape == (2, 4, -(-size[0] // stride), -(-size[1] // stride))
    assert outputs.aux_logits.shape[-2] == -(-size[0] // min(output_stride, 16))
    assert outputs.loss.ndim == 0 and outputs.loss.isfinite()


def test_auxiliary_logits_and_hidden_states_appear_only_on_request():
    model, pixel_values = segmenter(auxiliary_head=True), images(2, 3, 32, 32)
    assert model(pixel_values).aux_logits is not None and segmenter()(pixel_values).aux_logits is None
    model.eval()
    outputs = model(pixel_values)
    assert outputs.aux_logits is None and outputs.hidden_states is None
    assert model(pixel_values, labels=labels_for(pixel_values)).aux_logits is not None
    maps = model(pixel_values, output_hidden_states=True).hidden_states
    assert all(map(torch.equal, maps, model.backbone(pixel_values)))
    assert [one.shape[1] for one in maps] == model.backbone.channels
    assert [32 // one.shape[-1] for one in maps] == model.backbone.strides


def test_outputs_can_be_a_tuple_and_attentions_and_other_shapes_are_rejected():
    model, pixel_values = segmenter(auxiliary_head=True).eval(), images(1, 3, 32, 32)
    options = {"labels": labels_for(pixel_values), "output_hidden_states": True, "output_attentions": False}
    outputs, as_tuple = model(pixel_values, **options), model(pixel_values, **options, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 4
    assert all(map(torch.equal, as_tuple[:3], outputs.to_tuple()[:3]))
    with pytest.raises(ValueError, match="return no attentions; leave it out"):
        model(pixel_values, output_attentions=True)
    for shape in [(3, 16, 16), (1, 4, 16, 16), (1, 16, 16, 3)]:
        with pytest.raises(ValueError, match=re.escape(f"must be (B, 3, H, W), got {shape}")):
            model(torch.zeros(shape))


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet", "fcn"])
def test_training_on_one_image_is_rejected_if_batch_norm_would_see_one_value(head):
    model, pixel_values = segmenter(head=head), images(1, 3, 32, 32)
    if head == "fcn":
        assert model(pixel_values, labels=labels_for(pixel_values)).loss.isfinite()
    else:
        with pytest.raises(ValueError, match="a batch of one image.*at least 2 images"):
            model(pixel_values)
    assert model.eval()(pixel_values).logits.isfinite().all()


# Heads compared with other libraries


def head(name, channels, strides, output_stride):
    config = AfDcdConfig(head=name, head_channels=32, num_labels=5, output_stride=output_stride)
    return SegmentationHead(HEADS[name], channels, strides, config).eval()


def randomised(module):
    torch.manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.9)
    return module.eval()


def maps_of(channels, strides):
    return [images(2, c, 128 // s, 192 // s) for c, s in zip(channels, strides, strict=True)]


def assert_computes_the_same(ours, maps, theirs, their_input, parts, further_weights=0):
    """Compare outputs after copying the weights of `parts`, pairs of their modules and ours, in order."""
    for source, target in parts:
        target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(maps), theirs(their_input))
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in (ours, theirs)]
    assert sizes[1] - sizes[0] == further_weights


def test_lraspp_equals_torchvisions():
    channels, strides = [16, 24, 40, 96], [4, 8, 16, 16]  # the last two at one stride, as if a stage were dilated
    theirs, ours = randomised(LRASPPHead(24, 96, 5, 32)), head("lraspp", channels, strides, 16)
    high, low = theirs.high_classifier, theirs.low_classifier
    ours.classifier.load_state_dict({"weight": torch.cat([high.weight, low.weight], 1), "bias": high.bias + low.bias})
    parts = [(theirs.cbr, ours.features.conv), (theirs.scale, ours.features.scale)]
    maps = maps_of(channels, strides)
    assert_computes_the_same(ours, maps, theirs, {"low": maps[1], "high": maps[-1]}, parts, further_weights=5)  # a bias


def test_the_segformer_head_equals_transformers():
    channels, strides = [64, 8, 16, 24, 32], [2, 4, 8, 16, 32]  # a ResNet's first map, at stride 2, is not used
    config = SegformerConfig(hidden_sizes=channels[1:], decoder_hidden_size=32, num_labels=5)
    theirs = randomised(SegformerForSemanticSegmentation(config).decode_head)
    ours = head("segformer", channels, strides, 32)
    projections = [module for module in theirs.modules() if isinstance(module, nn.Linear)]
    for mlp, projection in zip(projections, ours.features.project, strict=True):
        projection.load_state_dict({"weight": mlp.weight[:, :, None, None], "bias": mlp.bias})
    parts = [(nn.Sequential(theirs.linear_fuse, theirs.batch_norm), ours.features.fuse)]
    maps = maps_of(channels, strides)
    assert_computes_the_same(ours, maps, theirs, maps[1:], [*parts, (theirs.classifier, ours.classifier)])


def test_deeplabv3plus_equals_segmentation_models_pytorchs():
    channels, strides = [16, 24, 40, 96], [2, 4, 8, 16]
    options = {"output_stride": 16, "aspp_separable": True, "aspp_dropout": 0.5}
    theirs = randomised(DeepLabV3PlusDecoder([3, *channels], 4, 32, [6, 12, 18], **options))
    ours, maps = head("deeplabv3plus", channels, strides, 16).features, maps_of(channels, strides)
    parts = [(theirs.aspp, ours.pyramid), (theirs.block1, ours.skip), (theirs.block2, ours.fuse)]
    # theirs counts the image itself as the first map
    assert_computes_the_same(ours, maps, theirs, [images(2, 3, 128, 192), *maps], parts)


def test_fpn_equals_segmentation_models_pytorchs():
    channels, strides = [64, 8, 16, 24, 32], [2, 4, 8, 16, 32]
    theirs = randomised(FPNDecoder([3, *channels], pyramid_channels=64, segmentation_channels=32))
    ours, maps = head("fpn", channels, strides, 32).features, maps_of(channels, strides)
    laterals = nn.ModuleList([theirs.p2.skip_conv, theirs.p3.skip_conv, theirs.p4.skip_conv, theirs.p5])
    parts = [(laterals, ours.lateral), (theirs.seg_blocks[::-1], ours.levels)]
    assert_computes_the_same(ours, maps, theirs, maps, parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "lraspp"}, "head='lraspp' needs a map finer than the last; 'resnet18' gives"),
        ({"auxiliary_head": True}, "auxiliary_head needs a second map, but backbone 'resnet18' gives only one"),
    ],
)
def test_a_head_that_needs_more_than_a_single_map_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        segmenter(output_stride=32, backbone_kwargs={"out_indices": [4]}, **options)


# Loss and gradients


def test_the_task_loss_equals_the_golden_one(golden):
    loss = segmentation_cross_entropy(golden["task.logits"], golden["task.labels"], ignore_index=-1)
    assert float(loss) == pytest.approx(float(golden["task.loss"]), rel=1e-6)


def test_the_task_loss_is_a_mean_over_counted_pixels_by_hand():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # class scores of pixel 0: (2, 0), of 1: (0, 1)
    first, second = np.log1p(np.exp(-2)), np.log1p(np.exp(1))
    for labels, expected in (([0, 0], (first + second) / 2), ([0, 255], first)):
        loss = segmentation_cross_entropy(logits, torch.tensor([[labels]]))
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_upsampling_keeps_corners_only_with_align_corners():
    row = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    assert upsample_logits(row, (1, 5)).flatten().tolist() == [0, 1, 2, 3, 4]
    assert upsample_logits(row, (1, 4), align_corners=False).flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(("weight", "ignored"), [(0.0, 255), (0.4, 3), (2.0, 255)])
def test_the_loss_is_main_plus_weighted_auxiliary_cross_entropy(weight, ignored):
    options = {"auxiliary_loss_weight": weight, "semantic_loss_ignore_index": ignored}
    model, pixel_values = segmenter(auxiliary_head=True, **options).eval(), images(2, 3, 32, 48)
    labels = labels_for(pixel_values)
    labels[:, :5] = ignored
    outputs = model(pixel_values, labels=labels)
    stretched = (
        F.interpolate(logits, (32, 48), mode="bilinear", align_corners=True)
        for logits in (outputs.logits, outputs.aux_logits)
    )
    main, auxiliary = (F.cross_entropy(logits, labels, ignore_index=ignored) for logits in stretched)
    torch.testing.assert_close(outputs.loss, main + weight * auxiliary)


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_reaches_every_parameter_unless_every_pixel_is_ignored(head):
    model, pixel_values = segmenter(head=head, auxiliary_head=True), images(2, 3, 64, 64)
    for module in model.modules():  # timm starts residual branches at zero, where their first layers get no gradient
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    model(pixel_values, labels=labels_for(pixel_values)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all() or not grad.any()]
    model.zero_grad()
    loss = model(pixel_values, labels=torch.full((2, 64, 64), 255)).loss
    loss.backward()
    assert loss.item() == 0
    assert all(torch.count_nonzero(parameter.grad) == 0 for parameter in model.parameters())  # NaN counts as nonzero


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_task_loss_is_float32_under_autocast(dtype):
    model, pixel_values = segmenter(auxiliary_head=True), images(2, 3, 32, 32)
    labels = labels_for(pixel_values)
    with torch.autocast("cpu", dtype):
        outputs = model(pixel_values, labels=labels)
        terms = TaskLoss()(outputs, labels)
    assert outputs.logits.dtype == outputs.aux_logits.dtype == dtype
    exact = TaskLoss()(SimpleNamespace(logits=outputs.logits.float(), aux_logits=outputs.aux_logits.float()), labels)
    assert len(terms) == 2 and all(torch.equal(terms[name], exact[name]) for name in exact)
    torch.testing.assert_close(outputs.loss, sum(exact.values()))
    sum(terms.values()).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_heads_start_with_pytorchs_default_weights(head):
    model = segmenter(head=head, auxiliary_head=True)
    for part in (model.head, model.auxiliary_head):
        for conv in (module for module in part.modules() if isinstance(module, nn.Conv2d)):
            fan_in = conv.weight[0].numel()
            # uniform(-1/sqrt(fan in), 1/sqrt(fan in)); Kaiming's fan out would exceed it by far
            assert conv.weight.abs().max() <= 1 / fan_in**0.5
            assert conv.weight.std().item() == pytest.approx(1 / (3 * fan_in) ** 0.5, rel=0.25)
            assert conv.bias is None or 0 < conv.bias.abs().max() <= 1 / fan_in**0.5


@pytest.mark.parametrize("head", HEADS)
def test_torch_export_takes_every_head(head):
    model = segmenter(head=head).eval()
    program = torch.export.export(model, (images(1, 3, 32, 48),))
    others = images(1, 3, 32, 48) + 1  # not the traced ones: nothing may have become a constant
    with torch.no_grad():
        torch.testing.assert_close(program.module()(others).logits, model(others).logits)


# Configuration


@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"output_stride": 8}, [12, 24, 36]),
        ({"output_stride": 16}, [6, 12, 18]),
        ({"output_stride": 32}, [3, 6, 9]),
        ({"output_stride": 16, "atrous_rates": (2, 5)}, [2, 5]),
    ],
)
def test_atrous_rates_follow_the_stride_unless_given_and_dilate_the_head(fields, rates):
    model = segmenter(head="deeplabv3", **fields)
    assert model.config.atrous_rates == rates
    branches = list(model.head.features[0].branches)
    assert [branch[0].dilation for branch in branches[1:-1]] == [(rate, rate) for rate in rates]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "unet"}, "head='unet' is unknown; known heads: deeplabv3, deeplabv3plus, pspnet, fcn"),
        ({"output_stride": 4}, "output_stride=4 is not supported; choose 8, 16 or 32"),
        ({"atrous_rates": [6, 0]}, r"atrous_rates=\[6, 0\] must be one or more positive integers"),
        ({"atrous_rates": []}, "must be one or more positive integers"),
        ({"head_channels": 0}, "head_channels=0 must be positive"),
        ({"backbone_kwargs": {"output_stride": 16}}, "backbone_kwargs cannot set 'output_stride'; use output_stride"),
        ({"backbone": 18}, "backbone"),  # from here on: wrong types, rejected by name
        ({"output_stride": "8"}, "output_stride"),
        ({"auxiliary_head": "no"}, "auxiliary_head"),
        ({"atrous_rates": "12"}, "atrous_rates"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        AfDcdConfig(**fields)
