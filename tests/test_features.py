"""Maps captured by module path: what is returned, what is refused, and that nothing stays behind."""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import timm
import torch
from torch import nn
from transformers import (
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTModel,
)

from afdcd_hf import capture
from afdcd_hf.features import LayerTap, _map_of_tokens, default_layer


class Block(nn.Module):
    """A network of one convolution run `times` times, with submodules of all kinds of output."""

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
        self.wrap = wrap

    def forward(self, output):
        return self.wrap(output)


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def segformer():
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return SegformerForSemanticSegmentation(config).eval()


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


# What is captured


@pytest.mark.parametrize("wrap", [lambda output: output, lambda output: [output], lambda output: (output,)])
def test_a_named_layer_gives_its_own_output_also_out_of_a_list_of_one(wrap, images):
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


def test_maps_come_out_of_the_model_outputs_of_a_transformers_network(segformer):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        with capture(segformer, ["segformer[0]", "decode_head.batch_norm", ""]) as maps:
            logits = segformer(images).logits
        last = segformer.segformer(images).last_hidden_state
    assert last.shape == (1, 16, 2, 2) and torch.equal(maps["segformer[0]"], last)
    assert tuple(maps["decode_head.batch_norm"].shape) == (1, 8, 16, 16)
    assert maps[""] is logits  # a ModelOutput with one value needs no index


DINO = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8, "num_register_tokens": 4}
OWN_MAPS = {"out_features": ["stage1"], "apply_layernorm": False, "reshape_hidden_states": True}


def dinov3(images):
    model = DINOv3ViTBackbone(DINOv3ViTConfig(intermediate_size=32, **DINO, **OWN_MAPS))
    return model, "model.layer.0:tokens", lambda: model(pixel_values=images).feature_maps[0]


def vit(images):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    model = ViTModel(ViTConfig(**sizes, image_size=(32, 48)))
    nn.init.zeros_(model.embeddings.position_embeddings)  # what is left behind the class token is the convolution
    return model, "embeddings:tokens", lambda: model.embeddings.patch_embeddings.projection(images)


def timm_vit(images):
    options = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", **options)
    return model, "blocks.1:tokens", lambda: model.forward_intermediates(images, intermediates_only=True)[-1]


@pytest.mark.parametrize("build", [dinov3, vit, timm_vit])
def test_tokens_become_the_map_that_the_library_makes_of_them_itself(build):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 48)
    model, layer, expected = build(images)
    with torch.no_grad():
        with capture(model.eval(), [layer]) as maps:
            model(images)
        assert maps[layer].shape == (2, 16, 4, 6) and torch.equal(maps[layer], expected())
    assert not model._forward_pre_hooks


# What is refused


@pytest.mark.parametrize(
    ("count", "size", "message"),
    [
        (41, (32, 48), None),  # a grid of 4x6, and 17 others
        (24, (33, 48), "gives 24 tokens for an image of 33x48, which are no grid of square patches"),
        (0, (32, 48), "gives 0 tokens"),
    ],
)
def test_tokens_that_are_no_grid_are_refused(count, size, message):
    with pytest.raises(ValueError, match=message or "gives 41 tokens .* at most 16 others before it"):
        _map_of_tokens(torch.zeros(1, count, 3), size, "blocks.1:tokens")


def test_tokens_and_maps_are_not_mistaken_for_each_other(images):
    model = Block(wrap=lambda output: output.flatten(2).mT)
    with pytest.raises(ValueError, match=r"or 'inner:tokens' if these are a ViT's tokens"), capture(model, ["inner"]):
        model(images)
    with pytest.raises(ValueError, match=r"but \(B, N, C\) tokens are needed"), capture(model, ["conv:tokens"]):
        model(images)
    with pytest.raises(RuntimeError, match="ran by itself"), capture(model, ["inner:tokens"]):
        model.inner(images)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("decode_head.batch_nrm", "has no module 'decode_head.batch_nrm'. Close: .*decode_head.batch_norm"),
        ("z", "has no module 'z'.$"),
        *((layer, "is not a module path; write 'a.b.c'") for layer in ("conv[", "conv[a]", "conv[1][2]", "conv[1].x")),
    ],
)
def test_an_unknown_path_lists_close_names_and_a_malformed_one_the_form_expected(segformer, layer, message):
    with pytest.raises(ValueError, match=message), capture(segformer, [layer]):
        pass


@pytest.mark.parametrize(
    ("wrap", "layer", "message"),
    [
        (lambda m: [m, m], "inner", "'inner' returns 2 values; pick one, e.g. 'inner[-1]'"),
        (lambda m: [m, m], "inner[2]", "'inner[2]' returns 2 values; index 2 is out of range"),
        (lambda m: [m, m], "inner[-3]", "'inner[-3]' returns 2 values; index -3 is out of range"),
        (lambda m: m, "inner[0]", "'inner[0]' returns a single value; leave the index out"),
        (lambda m: m.flatten(2).mT, "inner", "gives a tensor of shape (2, 64, 3), but a (B, C, h, w) map is needed"),
        (lambda m: None, "inner", "gives NoneType, but a (B, C, h, w) map is needed"),
    ],
)
def test_an_output_that_is_no_map_is_refused_in_the_forward_pass(images, wrap, layer, message):
    model = Block(wrap=wrap)
    with pytest.raises(ValueError, match=re.escape(message)), capture(model, [layer]):
        model(images)


@pytest.mark.parametrize(
    ("layer", "times", "message"), [("conv", 2, "ran twice in one forward pass"), ("unused", 1, "took no part")]
)
def test_a_layer_that_runs_twice_or_not_at_all_is_refused(images, layer, times, message):
    with pytest.raises(RuntimeError, match=f"'{layer}' {message}"), capture(model := Block(times), [layer]):
        model(images)


# What stays behind


def test_hooks_are_gone_after_the_block_and_after_an_exception(images):
    model = Block()
    with capture(model, ["conv", "inner"]):
        assert hooks(model) == 2
        model(images)
    assert hooks(model) == 0
    with pytest.raises(KeyError), capture(model, ["conv", "inner"]):
        raise KeyError
    assert hooks(model) == 0
    with pytest.raises(ValueError, match="has no module"), capture(model, ["conv", "nothing"]):
        pass
    assert hooks(model) == 0


def test_a_tap_records_the_last_pass_while_it_is_open(images):
    model = Block()
    tap = LayerTap(model, "conv")
    model(images)
    for _ in range(2):  # opened again, it forgets the pass before
        tap.open()
        output = model(images)
    assert tap.pop() is output
    for _ in range(2):  # closed: neither recorded nor counted as a second run
        model(images)
    with pytest.raises(RuntimeError, match="took no part"):
        tap.pop()


@pytest.mark.parametrize("opened", [False, True])
def test_a_tap_keeps_no_map_alive_once_closed(images, opened):
    model = Block()
    tap = LayerTap(model, "conv")
    if opened:
        tap.open()
    kept = weakref.ref(model(images))
    if opened:
        assert kept() is not None
        tap.pop()
    gc.collect()
    assert kept() is None


# Default layers


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_other_networks_than_ours_need_a_layer_and_their_modules_are_listed(segformer, role, tiny_model):
    assert default_layer(tiny_model(), role) == "backbone[-1]"
    expected = f"{role}_layer must name the map to distil, because the {role} is a SegformerForSemanticSegmentation"
    with pytest.raises(ValueError, match=expected) as error:
        default_layer(segformer, role)
    assert "segformer, decode_head" in str(error.value)
