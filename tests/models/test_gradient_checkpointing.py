"""Gradient checkpointing: the same gradients and batch-norm statistics as without, with less kept for them."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import distilling, same, segmenter, supervised, weights
from torch import nn

from afdcd_hf.models.backbone_afdcd import Backbone

# newer versions of transformers call it activation checkpointing, and still take the old name
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")

SMALL = {"resnet18": {"channels": [8, 16, 16, 32], "layers": [2, 2, 2, 2], "drop_path_rate": 0.2}}
BACKBONES = {
    **SMALL,
    "mobilenetv2_035": {"drop_path_rate": 0.2},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": [1, 2, 1, 1], "dims": [8, 16, 16, 32]},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [1, 1, 2, 1]},
}


def network(name: str) -> nn.Module:
    return segmenter(backbone=name, backbone_kwargs=BACKBONES[name], output_stride=32, auxiliary_head=True).train()


def enable(model: nn.Module) -> None:
    """As the Trainer does, whose method for it has another name in newer versions of transformers."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


def one_pass(model: nn.Module) -> tuple[dict, dict]:
    """Gradients and state after a forward and a backward pass, with dropout at work."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    labels = torch.randint(0, 4, (2, 64, 64), generator=generator)
    torch.manual_seed(1)
    model(pixel_values=images, labels=labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, weights(model)


def kept_bytes(backbone: Backbone, monkeypatch) -> int:
    """Memory of what the forward pass keeps for the backward pass: saved tensors, and inputs of checkpointed parts."""
    kept: dict[int, torch.Tensor] = {tensor.untyped_storage().data_ptr(): None for tensor in backbone.parameters()}
    weights_alone = set(kept)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    plain = torch.utils.checkpoint.checkpoint

    def spy(function, *args, **kwargs):
        for arg in args:
            keep(arg)
        return plain(function, *args, **kwargs)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", spy)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone(torch.zeros(2, 3, 64, 64))
    monkeypatch.undo()
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in weights_alone)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_and_running_statistics_are_those_of_the_plain_network_to_the_bit(name):
    plain = one_pass(network(name))
    model = network(name)
    enable(model)
    assert model.backbone.gradient_checkpointing
    gradients, state = one_pass(model)
    assert same(gradients, plain[0]) and same(state, plain[1])
    assert not model.backbone._recomputation._kept


# Share of the memory that is still kept; ResNet's last stage, and stems, are left alone by timm.
@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.75), ("mobilenetv2_035", 0.2), ("convnext_atto", 0.5)])
def test_less_is_kept_for_the_backward_pass(name, share, monkeypatch):
    backbone = network(name).backbone
    plain = kept_bytes(backbone, monkeypatch)
    backbone.set_gradient_checkpointing(True)
    checkpointed = kept_bytes(backbone, monkeypatch)
    assert 0 < checkpointed < share * plain
    backbone.set_gradient_checkpointing(False)
    assert kept_bytes(backbone, monkeypatch) == plain


def test_without_the_guard_batch_norm_would_count_every_batch_twice():
    model = network("resnet18")
    enable(model)
    model.backbone._recomputation.watch(False)
    counts = {name: int(count) for name, count in one_pass(model)[1].items() if name.endswith("num_batches_tracked")}
    assert set(counts.values()) == {1, 2}


def test_switching_it_off_leaves_no_hook_behind_and_a_copy_works_by_itself():
    model = network("resnet18")
    enable(model)
    enable(model)
    twin = copy.deepcopy(model)
    expected = one_pass(model)
    assert all(same(*pair) for pair in zip(one_pass(twin), expected, strict=True))
    model._set_gradient_checkpointing(False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not model.backbone.gradient_checkpointing


@pytest.mark.parametrize(
    ("make", "options"), [(supervised, {"bf16": True}), (distilling, {})], ids=["supervised in bf16", "distilling"]
)
def test_a_training_with_it_is_the_training_without_it_to_the_bit(tmp_path, make, options):
    states = []
    for checkpointing in (False, True):
        student = segmenter(backbone_kwargs=SMALL["resnet18"])
        trainer = make(tmp_path, student, gradient_checkpointing=checkpointing, ema_decay=0.9, **options)
        trainer.train()
        assert student.backbone.gradient_checkpointing is checkpointing
        states.append((weights(trainer.model), weights(trainer.evaluated_student)))
    assert all(same(*pair) for pair in zip(*states, strict=True))


def test_a_map_within_a_checkpointed_part_can_be_distilled(tmp_path):
    states = []
    for checkpointing in (False, True):
        trainer = distilling(tmp_path, student_layer="backbone.net.layer3", gradient_checkpointing=checkpointing)
        trainer.train()
        states.append(weights(trainer.model))
    assert same(*states)


def test_a_backbone_that_cannot_is_refused_before_training_and_so_are_options_that_would_be_dropped(tmp_path):
    hrnet = {"backbone": "hrnet_w18_small", "backbone_kwargs": {"out_indices": [1, 2, 3, 4]}, "output_stride": 32}
    with pytest.raises(ValueError, match="timm offers no gradient checkpointing for this backbone"):
        supervised(tmp_path, segmenter(**hrnet), gradient_checkpointing=True)
    for kwargs in ({"use_reentrant": True}, {"preserve_rng_state": False}):
        with pytest.raises(ValueError, match="takes no further options"):
            supervised(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)


def test_a_student_without_gradient_checkpointing_is_refused(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = segmenter()

        def forward(self, pixel_values):
            return self.net(pixel_values=pixel_values)

    with pytest.raises(ValueError, match="Plain lacks"):
        supervised(tmp_path, Plain(), gradient_checkpointing=True)
