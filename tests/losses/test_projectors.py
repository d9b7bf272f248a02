"""The projectors' layers and sizes, and restore(): what it hides and what it gives back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import build_loss
from afdcd_hf.losses.mgd import restore
from afdcd_hf.losses.projectors import PROJECTORS
from afdcd_hf.ops import omni_contrast

OPTIONS = {"feature_weight": 2e-2, "contrast_weight": 5e-3, "pool_size": 1, "channel_groups": 4}
RESTORING = [kind for kind in PROJECTORS if kind != "none"]


def parts(kind):
    """Alignment and projector with random weights, as no projector starts as the identity for long."""
    torch.manual_seed(0)
    modules = nn.ModuleList([nn.Conv2d(3, 8, kernel_size=1), PROJECTORS[kind](8)]).double()
    for layer in modules.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return modules


def map_and_mask(channels=3):
    generator = torch.Generator().manual_seed(1)
    feature_map = torch.randn(2, channels, 7, 6, generator=generator, dtype=torch.float64).requires_grad_()
    return feature_map, (torch.rand(2, 1, 7, 6, generator=generator) < 0.25).double()


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_projector_sees_zeros_at_hidden_positions(kind):
    align, projector = parts(kind)
    feature_map, mask = map_and_mask()
    hidden = torch.where(mask.bool(), align(feature_map), torch.zeros((), dtype=mask.dtype))
    torch.testing.assert_close(restore(feature_map, mask, align, projector), projector(hidden))


def test_without_a_projector_the_aligned_maps_are_compared():
    torch.manual_seed(0)
    options = {**OPTIONS, "projector": "none", "mask_ratio": 0.0, "reduction": "mean"}
    loss = build_loss("af_dcd", {"af_dcd": options}, 6, 8)
    assert set(loss.state_dict()) == {"align.weight", "align.bias"}
    student, teacher = torch.randn(2, 6, 8, 8, requires_grad=True), torch.randn(2, 8, 8, 8)
    terms = loss(Activations(torch.zeros(2, 3, 8, 8), student), Activations(torch.zeros(2, 3, 8, 8), teacher))
    aligned = F.conv2d(student, loss.align.weight, loss.align.bias)
    torch.testing.assert_close(terms["feature"], 2e-2 * F.mse_loss(aligned, teacher))
    torch.testing.assert_close(terms["contrast"], 5e-3 * omni_contrast(aligned, teacher, channel_groups=4) / 4)


@pytest.mark.parametrize("name", ["af_dcd", "mgd"])
@pytest.mark.parametrize(
    ("options", "hides"), [({}, "mask_ratio=0.75"), ({"mask": "center", "mask_ratio": 0.0}, "mask='center'")]
)
def test_hidden_positions_need_a_projector(name, options, hides):
    given = {**(OPTIONS if name == "af_dcd" else {}), "projector": "none", **options}
    with pytest.raises(ValueError, match=f"projector='none' restores nothing, but {hides} hides positions: set mask_r"):
        build_loss(name, {name: given}, 6, 8)


def count(kind, channels=2048):
    with torch.device("meta"):
        return sum(weight.numel() for weight in PROJECTORS[kind](channels).parameters())


def test_the_projectors_have_the_documented_sizes():
    assert count("plain") == 75_501_568 and count("enhanced") == 2 * 75_501_568
    assert count("bottleneck") == 2 * 2048 * 512 + 2 * 9 * 512**2 + 3 * 512 + 2048 == 6_819_328
    assert count("depthwise") == 2 * (2048**2 + 9 * 2048 + 2 * 2048) == 8_433_664


def test_the_weights_keep_their_names():
    names = {kind: [name for name in PROJECTORS[kind](8).state_dict() if "weight" in name] for kind in PROJECTORS}
    assert names == {
        "plain": ["0.weight", "2.weight"],
        "enhanced": ["first.0.weight", "second.0.weight", "restore_first.weight", "restore_second.weight"],
        "bottleneck": ["0.weight", "2.weight", "4.weight", "6.weight"],
        "depthwise": ["0.weight", "1.weight", "3.weight", "4.weight"],
        "none": [],
    }


def by_hand(kind, x, w, b):
    """What a projector gives, by its weights and biases in their order."""
    if kind == "enhanced":
        shallow = F.relu(F.conv2d(x, w[0], b[0], padding=1))
        deep = F.relu(F.conv2d(shallow, w[1], b[1], padding=1))
        return (F.conv2d(shallow, w[2], b[2], padding=1) + F.conv2d(deep, w[3], b[3], padding=1)) / 2
    if kind == "bottleneck":
        narrow = F.relu(F.conv2d(x, w[0], b[0]))
        narrow = F.relu(F.conv2d(narrow, w[1], b[1], padding=1))
        return F.conv2d(F.relu(F.conv2d(narrow, w[2], b[2], padding=1)), w[3], b[3])
    middle = F.relu(F.conv2d(F.conv2d(x, w[0], b[0], padding=1, groups=8), w[1], b[1]))
    return F.conv2d(F.conv2d(middle, w[2], b[2], padding=1, groups=8), w[3], b[3])


@pytest.mark.parametrize("kind", ["enhanced", "bottleneck", "depthwise"])
def test_a_projector_is_its_convolutions(kind):
    _, projector = parts(kind)
    feature_map, _ = map_and_mask(8)
    parameters = list(projector.parameters())
    torch.testing.assert_close(projector(feature_map), by_hand(kind, feature_map, parameters[::2], parameters[1::2]))


def test_the_depthwise_projector_starts_as_the_identity_on_a_map_behind_a_relu():
    feature_map = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    projector = PROJECTORS["depthwise"](6)
    assert torch.equal(projector(feature_map), feature_map.relu())
    projector(feature_map).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in projector.parameters())


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_projector_can_be_chosen_by_name_and_trains(kind):
    torch.manual_seed(0)
    hides = {} if kind in RESTORING else {"mask_ratio": 0.0}
    loss = build_loss("af_dcd", {"af_dcd": {**OPTIONS, "projector": kind, **hides}}, 3, 16)
    assert loss.get_config_dict()["projector"] == kind
    maps = [Activations(torch.zeros(2, 3, 8, 8), torch.randn(2, channels, 8, 8)) for channels in (3, 16)]
    sum(loss(*maps).values()).backward()
    assert all((weight.grad != 0).any() for weight in loss.parameters())


def test_channels_the_bottleneck_cannot_quarter_are_explained():
    with pytest.raises(ValueError, match="projector='bottleneck' works at 1/4 .* teacher_channels=18; use"):
        build_loss("af_dcd", {"af_dcd": {**OPTIONS, "channel_groups": 2, "projector": "bottleneck"}}, 3, 18)
