"""Maps captured by module path: values, errors, and no leftovers."""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import timm
import tiny
import torch
from torch import nn
from transformers import (
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    ViTConfig,
    ViTModel,
)

from afdcd_hf import capture
from afdcd_hf.features import LayerTap, _map_of_tokens


class Block(nn.Module):
    """A model of one convolution that runs `times` times, and a submodule with any kind of output."""

    def __init__(self, times=1, wrap=lambda output: output):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.inner = Wrapped(wrap)
        self.unused = nn.Identity()
        self.times = times

    def forward(self, pixel_values):
        for _ in range(self.times):
            pixel_values = self.conv(pixel_values)
        self.inner(pixel_values)
        return pixel_values


class Wrapped(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.forward = wrap


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def segformer():
    return tiny.segformer().eval()


# What is captured


@pytest.mark.parametrize("wrap", [lambda output: output, lambda output: [output], lambda output: (output,)])
def test_a_named_layer_gives_its_own_output_even_from_a_list_of_one(wrap, images):
    model = Block(wrap=wrap)
    with capture(model, ["conv", "inner", ""]) as maps:
        output = model(images)
    assert maps.keys() == {"conv", "inner", ""} and all(each is output for each in maps.values())
    output.sum().backward()
    assert model.conv.weight.grad.any()


def test_an_index_picks_one_of_several_maps(tiny_model):
    model, images = tiny_model().eval(), torch.randn(1, 3, 32, 32)
    with capture(model, ["backbone[-1]", "backbone[1]", "head.features"]) as maps:
        outputs = model(images, output_hidden_states=True)
    assert torch.equal(maps["backbone[-1]"], outputs.hidden_states[-1])
    assert torch.equal(maps["backbone[1]"], outputs.hidden_states[1])
    assert torch.equal(model.head.classifier(maps["head.features"]), outputs.logits)


def test_maps_are_found_in_transformers_model_outputs(segformer):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        with capture(segformer, ["segformer[0]", "decode_head.batch_norm", ""]) as maps:
            logits = segformer(images).logits
        last = segformer.segformer(images).last_hidden_state
    assert last.shape == (1, 32, 2, 2) and torch.equal(maps["segformer[0]"], last)
    assert tuple(maps["decode_head.batch_norm"].shape) == (1, 16, 16, 16)
    assert maps[""] is logits  # a ModelOutput with one value needs no index


DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "num_register_tokens": 4}
OWN_MAPS = {"out_features": ["stage1"], "apply_layernorm": False, "reshape_hidden_states": True}


def dinov3(images):
    model = DINOv3ViTBackbone(DINOv3ViTConfig(intermediate_size=32, **DINO, **OWN_MAPS))
    return model, "model.layer.0:tokens", lambda: model(pixel_values=images).feature_maps[0]


def vit(images):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    model = ViTModel(ViTConfig(**sizes, image_size=(32, 48)))
    nn.init.zeros_(model.embeddings.position_embeddings)  # what remains after the class token is the convolution
    return model, "embeddings:tokens", lambda: model.embeddings.patch_embeddings.projection(images)


def timm_vit(images):
    options = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    return model, "blocks.1:tokens", lambda: model.forward_intermediates(images, intermediates_only=True)[-1]


@pytest.mark.parametrize("build", [dinov3, vit, timm_vit])
def test_tokens_become_the_same_map_as_in_their_own_library(build):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 48)
    model, layer, expected = build(images)
    with torch.no_grad():
        with capture(model.eval(), [layer]) as maps:
            model(images)
        assert maps[layer].shape == (2, 16, 4, 6) and torch.equal(maps[layer], expected())
    assert not model._forward_pre_hooks


# Errors


def test_tokens_that_form_no_grid_are_rejected():
    for count, size, message in (
        (41, (32, 48), "gives 41 tokens .* at most 16 others before it"),  # a grid of 4x6, and 17 others
        (24, (33, 48), "gives 24 tokens for an image of 33x48, which form no grid of square patches"),
    ):
        with pytest.raises(ValueError, match=message):
            _map_of_tokens(torch.zeros(1, count, 3), size, "blocks.1:tokens")


def test_an_unknown_path_lists_close_names_and_a_malformed_one_the_expected_form(segformer):
    malformed = dict.fromkeys(("conv[", "conv[a]", "conv[1][2]", "conv[1].x"), "is not a module path; write 'a.b.c'")
    close = "has no module 'decode_head.batch_nrm'. Close: .*decode_head.batch_norm"
    for layer, message in {"decode_head.batch_nrm": close, "z": "has no module 'z'.$", **malformed}.items():
        with pytest.raises(ValueError, match=message), capture(segformer, [layer]):
            pass


@pytest.mark.parametrize(
    ("wrap", "layer", "message"),
    [
        (lambda m: [m, m], "inner", "'inner' returns 2 values; pick one, e.g. 'inner[-1]'"),
        (lambda m: [m, m], "inner[-3]", "'inner[-3]' returns 2 values; index -3 is out of range"),
        (lambda m: m, "inner[0]", "'inner[0]' returns a single value; leave the index out"),
        (lambda m: m.flatten(2).mT, "inner", "gives a tensor of shape (2, 64, 3), but a (B, C, h, w) map is needed"),
        (lambda m: m.flatten(2).mT, "inner", "or 'inner:tokens' if these are a ViT's tokens"),
        (lambda m: None, "inner", "gives NoneType, but a (B, C, h, w) map is needed"),
        (lambda m: m, "conv:tokens", "but (B, N, C) tokens are needed"),
    ],
)
def test_an_output_that_is_not_a_map_is_rejected_in_the_forward_pass(images, wrap, layer, message):
    model = Block(wrap=wrap)
    with pytest.raises(ValueError, match=re.escape(message)), capture(model, [layer]):
        model(images)


def test_a_layer_that_runs_twice_or_never_and_tokens_without_an_image_are_rejected(images):
    for layer, times, message in (("conv", 2, "ran twice in one forward pass"), ("unused", 1, "took no part")):
        with pytest.raises(RuntimeError, match=f"'{layer}' {message}"), capture(model := Block(times), [layer]):
            model(images)
    model = Block(wrap=lambda output: output.flatten(2).mT)
    with pytest.raises(RuntimeError, match="ran by itself"), capture(model, ["inner:tokens"]):
        model.inner(images)
    model.forward = lambda x: None
    message = "'inner:tokens' needs the size of the images, and Block was called with x; give them first, by position"
    with pytest.raises(ValueError, match=message), capture(model, ["inner:tokens"]):
        model(x=images)


# Leftovers


def test_hooks_are_gone_after_the_block_and_after_an_exception(images):
    model = Block()
    for layers, error in ((["conv", "inner"], KeyError), (["conv", "nothing"], ValueError)):
        with pytest.raises(error), capture(model, layers):
            assert sum(len(module._forward_hooks) for module in model.modules()) == 2
            model(images)
            raise KeyError
        assert not any(module._forward_hooks for module in model.modules())


def test_a_tap_records_the_last_pass_while_it_is_open(images):
    model = Block()
    tap = LayerTap(model, "conv")
    model(images)
    for _ in range(2):  # opening it again discards the previous pass
        tap.open()
        output = model(images)
    assert tap.pop() is output
    for _ in range(2):  # closed: neither recorded nor counted as a second run
        model(images)
    with pytest.raises(RuntimeError, match="took no part"):
        tap.pop()


def test_a_tap_keeps_no_map_alive_once_closed(images):
    model = Block()
    tap = LayerTap(model, "conv")
    tap.open()
    kept = weakref.ref(model(images))
    assert kept() is not None
    tap.pop()
    gc.collect()
    assert kept() is None
