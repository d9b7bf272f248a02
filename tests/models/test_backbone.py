"""timm backbones: ImageNet weights from a local file, output strides, errors."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from formula_weights import images
from images import TINY_RESNET
from safetensors.torch import load_file, save_file

from afdcd_hf import AfDcdForSemanticSegmentation
from afdcd_hf.models import modeling_afdcd
from afdcd_hf.models.backbone_afdcd import Backbone


@pytest.fixture
def timm_model():
    """A classifier with 10 classes, weights and running statistics all drawn at random, at output stride 8."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", output_stride=8, num_classes=10, **TINY_RESNET)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 0.3)
    return model.eval()


@pytest.fixture
def weights_file(timm_model, tmp_path):
    path = tmp_path / "backbone.safetensors"
    save_file(timm_model.state_dict(), path)
    return path


def build(weights):
    return AfDcdForSemanticSegmentation.from_backbone(
        "resnet18", pretrained_backbone=weights, backbone_kwargs=TINY_RESNET, num_labels=4
    )


# Weights from a file


@pytest.mark.parametrize("as_text", [True, False])
def test_weights_from_a_file_give_the_features_of_the_timm_model_to_the_bit(timm_model, weights_file, as_text):
    model = build(str(weights_file) if as_text else weights_file).eval()
    stored = {name: tensor for name, tensor in load_file(weights_file).items() if not name.startswith("fc.")}
    loaded = model.backbone.net.state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)
    assert str(weights_file) not in model.config.to_json_string()
    pixel_values, seen = images(1, 3, 32, 40), {}
    timm_model.layer2.register_forward_hook(lambda module, args, output: seen.update(layer2=output))
    with torch.no_grad():
        last = timm_model.forward_features(pixel_values)
        maps = model(pixel_values, output_hidden_states=True).hidden_states
    assert torch.equal(maps[-1], last) and torch.equal(maps[2], seen["layer2"])


def test_without_weights_the_backbone_keeps_timms_own_initialisation():
    torch.manual_seed(5)
    expected = timm.create_model("resnet18", features_only=True, output_stride=8, **TINY_RESNET).state_dict()
    torch.manual_seed(5)
    loaded = build(False).backbone.net.state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_files_that_do_not_hold_the_weights_are_refused(weights_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="No backbone weights at '.*nothing.safetensors'; give"):
        build(tmp_path / "nothing.safetensors")
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights.pth' must be a .safetensors file"):
        build(tmp_path / "weights.pth")
    for backbone in ("convnext_atto", "mobilenetv2_100", "regnety_002"):
        with pytest.raises(ValueError, match=f"backbone.safetensors' (lack|do not fit).* timm's '{backbone}'"):
            AfDcdForSemanticSegmentation.from_backbone(backbone, pretrained_backbone=weights_file)
    tensors = load_file(weights_file)
    del tensors["layer3.0.conv2.weight"]
    save_file(tensors, weights_file)
    with pytest.raises(ValueError, match="lack 1 tensors of timm's 'resnet18', e.g. 'layer3.0.conv2.weight'"):
        build(weights_file)


def test_tensors_that_a_feature_model_renames_are_found_in_the_file(tmp_path):
    torch.manual_seed(1)
    source = timm.create_model("convnext_atto", num_classes=3)  # stages.0... there, stages_0... in feature models
    save_file(source.state_dict(), tmp_path / "convnext.safetensors")
    backbone = Backbone("convnext_atto", 32, tmp_path / "convnext.safetensors").eval()
    with torch.no_grad():
        expected = source.eval().forward_intermediates(images(1, 3, 32, 32), norm=False, intermediates_only=True)
        assert torch.equal(backbone(images(1, 3, 32, 32))[-1], expected[-1])


# Output strides and channels


@pytest.mark.parametrize(
    ("name", "stride"),
    [("resnet10t", 8), ("mobilenetv2_100", 8), ("tf_efficientnet_lite0", 16), ("convnext_atto", 8), ("vgg11", 32)],
)
def test_maps_have_the_channels_and_strides_announced(name, stride):
    kwargs = {} if name != "vgg11" else {"out_indices": (4, 5)}
    with torch.device("meta"):
        backbone = Backbone(name, stride, **kwargs)
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.strides[-1] == stride
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    assert [tuple(one.shape) for one in maps] == expected


def test_channels_last_maps_are_turned_around():
    torch.manual_seed(0)
    backbone = Backbone("swin_tiny_patch4_window7_224", 32, img_size=64, window_size=2, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        maps, inner = backbone(images(1, 3, 64, 64)), backbone.net(images(1, 3, 64, 64))
    assert [tuple(one.shape) for one in maps] == [(1, c, s, s) for c, s in ((96, 16), (192, 8), (384, 4), (768, 2))]
    assert all(torch.equal(one[0, 5], other[0, :, :, 5]) for one, other in zip(maps, inner, strict=True))
    assert all(one.is_contiguous() for one in maps)


@pytest.mark.parametrize(
    ("name", "stride", "advice"),
    [
        ("vgg16_bn", 8, "its last map has stride 32. Set output_stride=32, or take a backbone that timm can dilate"),
        ("vit_tiny_patch16_224", 8, "its last map has stride 16. Set output_stride=16"),
    ],
)
def test_a_stride_that_a_model_cannot_give_is_refused_with_its_own(name, stride, advice):
    with torch.device("meta"), pytest.raises(ValueError, match=re.escape(advice)) as error:
        Backbone(name, stride)
    assert f"timm's '{name}' cannot give maps at output_stride={stride}" in str(error.value)


@pytest.mark.parametrize(("given", "warns"), [({}, True), ({"pretrained_backbone": False}, False)])
def test_random_weights_that_nobody_asked_for_are_warned_of(given, warns, monkeypatch):
    lines = []
    monkeypatch.setattr(modeling_afdcd.logger, "warning", lines.append)
    model = AfDcdForSemanticSegmentation.from_backbone("resnet18", backbone_kwargs=TINY_RESNET, **given)
    assert isinstance(model, AfDcdForSemanticSegmentation)
    assert [line for line in lines if "random weights; pretrained_backbone=True" in line] == lines
    assert bool(lines) == warns


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"no model named 'resnet81'. Close names: .*resnet18.*timm.list_models\(\)"):
        AfDcdForSemanticSegmentation.from_backbone("resnet81")
    for stride in (8, 32):
        with pytest.raises(ValueError, match="cannot build 'resnet18' as a backbone.*'stem_typ'"):
            Backbone("resnet18", stride, stem_typ="deep")
    with pytest.raises(TypeError, match="unexpected keyword argument 'head_channel'"):
        AfDcdForSemanticSegmentation.from_backbone("resnet18", head_channel=3)
