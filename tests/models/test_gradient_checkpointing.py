"""Gradient checkpointing: the same gradients and batch-norm statistics as without, with less kept for them."""

from __future__ import annotations

import copy

import pytest
import torch
from formula_weights import images
from tiny import distilling, same, segmenter, supervised, weights
from torch import nn

# newer versions of transformers call it activation checkpointing, and still take the old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

SMALL = {"channels": [8, 16, 16, 32], "layers": [2, 2, 2, 2], "drop_path_rate": 0.2}
BACKBONES = {
    "resnet18": SMALL,
    "mobilenetv2_035": {"drop_path_rate": 0.2},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": [1, 2, 1, 1], "dims": [8, 16, 16, 32]},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [1, 1, 2, 1]},
}


def model_with(name: str, checkpointing: bool = False) -> nn.Module:
    kwargs = BACKBONES[name]
    model = segmenter(backbone=name, backbone_kwargs=kwargs, output_stride=32, auxiliary_head=True).train()
    # as the Trainer does, whose method for it has another name in newer versions of transformers
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    enable = next(getattr(model, name) for name in names if hasattr(model, name))
    if checkpointing:
        enable()
    return model


def one_pass(model: nn.Module) -> tuple[dict, dict]:
    """Gradients and state after a forward and a backward pass, with dropout at work."""
    labels = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model(pixel_values=images(2, 3, 64, 64), labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, weights(model)


def kept_bytes(backbone: nn.Module) -> int:
    """Memory of the tensors that the forward pass saves for the backward pass, without the weights."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = backbone(torch.zeros(2, 3, 64, 64))  # alive until all is counted, or addresses would be used again
    ours = {parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in ours) if outputs else 0


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_and_running_statistics_are_those_of_the_plain_model_to_the_bit(name):
    gradients, state = one_pass(model_with(name))
    model = model_with(name, checkpointing=True)
    twin = copy.deepcopy(model)
    for one in (model, twin):
        assert one.backbone.gradient_checkpointing
        found = one_pass(one)
        assert same(found[0], gradients) and same(found[1], state)
    model._set_gradient_checkpointing(False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.backbone.gradient_checkpointing


# Share of the memory that is still kept; ResNet's last stage, and stems, are left alone by timm.
@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.75), ("mobilenetv2_035", 0.2), ("convnext_atto", 0.5)])
def test_less_is_kept_for_the_backward_pass(name, share):
    backbone = model_with(name).backbone
    plain = kept_bytes(backbone)
    backbone.set_gradient_checkpointing(True)
    assert 0 < kept_bytes(backbone) < share * plain
    backbone.set_gradient_checkpointing(False)
    assert kept_bytes(backbone) == plain


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (supervised, {"bf16": True, "ema_decay": 0.9}),
        (distilling, {"student_layer": "backbone.net.layer3", "ema_decay": 0.9}),
    ],
    ids=["supervised in bf16", "distilling a map within a checkpointed part"],
)
def test_a_run_with_it_is_the_run_without_it_to_the_bit(tmp_path, make, options):
    states = []
    for checkpointing in (False, True):
        student = segmenter(backbone_kwargs=SMALL)
        trainer = make(tmp_path, student, gradient_checkpointing=checkpointing, **options)
        trainer.train()
        assert student.backbone.gradient_checkpointing is checkpointing
        states.append((weights(trainer.model), weights(trainer.evaluated_student)))
    assert all(same(*pair) for pair in zip(*states, strict=True))


def test_a_model_that_cannot_is_refused_before_training_and_so_are_options_that_would_be_dropped(tmp_path):
    hrnet = {"backbone": "hrnet_w18_small", "backbone_kwargs": {"out_indices": [1, 2, 3, 4]}, "output_stride": 32}
    with pytest.raises(ValueError, match="timm offers no gradient checkpointing for this backbone"):
        supervised(tmp_path, segmenter(**hrnet), gradient_checkpointing=True)
    with pytest.raises(ValueError, match="Sequential lacks"):
        supervised(tmp_path, nn.Sequential(segmenter()), gradient_checkpointing=True)
    for kwargs in ({"use_reentrant": True}, {"preserve_rng_state": False}):
        with pytest.raises(ValueError, match="takes no further options"):
            supervised(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
