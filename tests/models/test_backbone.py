"""timm backbones: ImageNet weights from a local file, output strides, gradient checkpointing, errors."""

from __future__ import annotations

import copy
import re
from unittest.mock import Mock

import pytest
import timm
import torch
from formula_weights import images
from images import TINY_RESNET
from safetensors.torch import load_file, save_file
from tiny import distilling, same, segmenter, supervised, weights
from torch import nn

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
    save_file(timm_model.state_dict(), tmp_path / "backbone.safetensors")
    return tmp_path / "backbone.safetensors"


def build(weights, backbone="resnet18", **options):
    kwargs = TINY_RESNET if backbone == "resnet18" else {}
    options = {"pretrained_backbone": weights, "backbone_kwargs": kwargs, **options}
    return AfDcdForSemanticSegmentation.from_backbone(backbone, **options)


# Weights from a file


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_weights_from_a_file_give_the_features_of_the_timm_model_to_the_bit(timm_model, weights_file, kind):
    model = build(kind(weights_file)).eval()
    stored = {name: tensor for name, tensor in load_file(weights_file).items() if not name.startswith("fc.")}
    assert same(model.backbone.net.state_dict(), stored)
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
    assert same(build(False).backbone.net.state_dict(), expected)


def test_files_without_the_models_weights_are_rejected(weights_file, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="No backbone weights at '.*nothing.safetensors'; give"):
        build(tmp_path / "nothing.safetensors")
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights.pth' must be a .safetensors file"):
        build(tmp_path / "weights.pth")
    for backbone in ("convnext_atto", "mobilenetv2_100", "regnety_002"):
        with pytest.raises(ValueError, match=f"backbone.safetensors' do not fit timm's '{backbone}'"):
            build(weights_file, backbone)
    monkeypatch.setattr(timm, "create_model", Mock(side_effect=ConnectionError("offline mode is enabled.")))
    with pytest.raises(OSError, match=r"of 'resnet18' cannot be downloaded.*: offline .* Set pretrained_backbone"):
        Backbone("resnet18", 32, pretrained=True)
    monkeypatch.undo()
    tensors = load_file(weights_file)
    del tensors["layer3.0.conv2.weight"]
    save_file(tensors, weights_file)
    with pytest.raises(ValueError, match=r"1 of \d+ tensors are missing, such as 'layer3.0.conv2.weight'"):
        build(weights_file)


def test_tensors_that_a_feature_model_renames_are_found_in_the_file(tmp_path):
    source = timm.create_model("convnext_atto", num_classes=3)  # stages.0... here, stages_0... in feature models
    save_file(source.state_dict(), tmp_path / "convnext.safetensors")
    backbone = Backbone("convnext_atto", 32, tmp_path / "convnext.safetensors").eval()
    with torch.no_grad():
        expected = source.eval().forward_intermediates(images(1, 3, 32, 32), norm=False, intermediates_only=True)
        assert torch.equal(backbone(images(1, 3, 32, 32))[-1], expected[-1])


@pytest.mark.parametrize(("given", "warns"), [(None, True), (False, False)])
def test_random_weights_give_a_warning_unless_requested(given, warns, monkeypatch):
    lines = []
    monkeypatch.setattr(modeling_afdcd.logger, "warning", lines.append)
    build(given)
    assert [line for line in lines if "random weights; pretrained_backbone=True" in line] == lines
    assert bool(lines) == warns


# Output strides and channels


@pytest.mark.parametrize(
    ("name", "stride", "options"),
    [("resnet10t", 8, {}), ("mobilenetv2_100", 8, {}), ("tf_efficientnet_lite0", 16, {}), ("convnext_atto", 8, {}),
     ("vgg11", 32, {"out_indices": (4, 5)})],
)  # fmt: skip
def test_maps_have_the_declared_channels_and_strides(name, stride, options):
    with torch.device("meta"):
        backbone = Backbone(name, stride, **options)
        maps = backbone(torch.zeros(1, 3, 64, 96))
    assert backbone.strides[-1] == stride
    expected = [(1, c, 64 // s, 96 // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    assert [tuple(one.shape) for one in maps] == expected


def test_channels_last_maps_are_permuted():
    torch.manual_seed(0)
    backbone = Backbone("swin_tiny_patch4_window7_224", 32, img_size=64, window_size=2, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        maps, inner = backbone(images(1, 3, 64, 64)), backbone.net(images(1, 3, 64, 64))
    assert [tuple(one.shape) for one in maps] == [(1, c, s, s) for c, s in ((96, 16), (192, 8), (384, 4), (768, 2))]
    assert all(torch.equal(one[0, 5], other[0, :, :, 5]) for one, other in zip(maps, inner, strict=True))
    assert all(one.is_contiguous() for one in maps)


@pytest.mark.parametrize(
    ("name", "stride", "options", "message"),
    [
        ("vgg16_bn", 8, {}, "timm's 'vgg16_bn' cannot give maps at output_stride=8: its last map has stride 32. Set "
         "output_stride=32, or take a backbone that timm can dilate"),
        ("vit_tiny_patch16_224", 8, {}, "its last map has stride 16. Set output_stride=16"),
        ("resnet81", 8, {}, "no model named 'resnet81'. Close names: "),
        ("resnet18", 8, {"stem_typ": "deep"}, "backbone with {'pretrained': False, 'stem_typ': 'deep'}"),
        ("resnet18", 32, {"stem_typ": "deep"}, "backbone with {'pretrained': False, 'stem_typ': 'deep'}"),
    ],
)  # fmt: skip
def test_unsupported_backbones_are_explained(name, stride, options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=re.escape(message)):
        Backbone(name, stride, **options)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'head_channel'"):
        build(False, head_channel=3)


# Gradient checkpointing: gradients and batch-norm statistics stay the same, with less memory


SMALL = {"channels": [8, 16, 16, 32], "layers": [2, 2, 2, 2], "drop_path_rate": 0.2}
BACKBONES = {
    "resnet18": SMALL,
    "mobilenetv2_035": {"drop_path_rate": 0.2},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": [1, 2, 1, 1], "dims": [8, 16, 16, 32]},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [1, 1, 2, 1]},
}
# newer versions of transformers call it activation checkpointing, and still take the old name
old_name = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")


def model_with(name):
    return segmenter(backbone=name, backbone_kwargs=BACKBONES[name], output_stride=32, auxiliary_head=True).train()


def one_pass(model):
    """Return gradients and state after a forward and a backward pass with dropout."""
    labels = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model(pixel_values=images(2, 3, 64, 64), labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, weights(model)


@old_name
@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_and_running_statistics_are_those_of_the_plain_model_to_the_bit(name):
    expected, model = one_pass(model_with(name)), model_with(name)
    model.gradient_checkpointing_enable()
    for one in (copy.deepcopy(model), model):
        assert one.backbone.gradient_checkpointing
        assert all(map(same, one_pass(one), expected))
    model.gradient_checkpointing_disable()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.backbone.gradient_checkpointing


def kept_bytes(backbone):
    """Return the memory of tensors saved for the backward pass, without the weights."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        backbone(torch.zeros(2, 3, 64, 64))
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    ours = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    return sum(size for pointer, size in storages.items() if pointer not in ours)


# Share of the memory that is still used; timm does not checkpoint stems and ResNet's last stage.
@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.75), ("mobilenetv2_035", 0.2), ("convnext_atto", 0.5)])
def test_less_memory_is_kept_for_the_backward_pass(name, share):
    backbone = model_with(name).backbone
    plain = kept_bytes(backbone)
    backbone.set_gradient_checkpointing(True)
    assert 0 < kept_bytes(backbone) < share * plain
    backbone.set_gradient_checkpointing(False)
    assert kept_bytes(backbone) == plain


@old_name
@pytest.mark.parametrize(
    ("make", "options"), [(supervised, {"bf16": True}), (distilling, {"student_layer": "backbone.net.layer3"})]
)
def test_a_run_with_checkpointing_equals_one_without_to_the_bit(tmp_path, make, options):
    states = []
    for checkpointing in (False, True):
        student = segmenter(backbone_kwargs=SMALL)
        trainer = make(tmp_path, student, gradient_checkpointing=checkpointing, ema_decay=0.9, **options)
        trainer.train()
        assert student.backbone.gradient_checkpointing is checkpointing
        states.append((weights(trainer.model), weights(trainer.evaluated_student)))
    assert all(map(same, *states))


@old_name
def test_unsupported_models_and_options_are_rejected_before_training(tmp_path):
    hrnet = {"backbone": "hrnet_w18_small", "backbone_kwargs": {"out_indices": [1, 2, 3, 4]}, "output_stride": 32}
    for model, kwargs, message in (
        (segmenter(**hrnet), None, "timm offers no gradient checkpointing for this backbone"),
        (nn.Sequential(segmenter()), None, "Sequential does not support gradient_checkpointing"),
        (segmenter(), {"use_reentrant": True}, "takes no further options"),
        (segmenter(), {"preserve_rng_state": False}, "takes no further options"),
    ):
        with pytest.raises(ValueError, match=message):
            supervised(tmp_path, model, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
