"""CWDLoss: a hand calculation, what does not change it, maps and logits apart, gradients and options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import CWDLoss
from afdcd_hf.losses.cwd import channel_wise_divergence


def seen(channels, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return Activations(
        torch.randn(2, 3, 3, 4, generator=generator).to(dtype),
        torch.randn(2, channels, 3, 4, generator=generator).to(dtype),
    )


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_two_channels_with_two_positions_by_hand(temperature):
    # channel 0: the teacher says 3:1 where the student says 1:1; channel 1: both say 1:1
    teacher = temperature * torch.tensor([[math.log(3), 0.0], [5.0, 5.0]]).view(1, 2, 1, 2)
    student = torch.zeros(1, 2, 1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = temperature**2 * divergence / 2
    assert channel_wise_divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)


def test_a_constant_per_channel_changes_nothing_and_a_shuffle_of_positions_neither():
    student, teacher = seen(5, 0).feature_map, seen(5, 1).feature_map
    expected = channel_wise_divergence(student, teacher)
    torch.testing.assert_close(channel_wise_divergence(student + torch.arange(5.0).view(1, 5, 1, 1), teacher), expected)
    torch.testing.assert_close(channel_wise_divergence(student.flip(2, 3), teacher.flip(2, 3)), expected)
    assert channel_wise_divergence(student.flip(2, 3), teacher) != expected


def test_maps_and_logits_have_weights_and_temperatures_of_their_own():
    student, teacher = seen(5, 0), seen(5, 1)
    terms = CWDLoss(5, 5, map_weight=2, logits_weight=7, map_temperature=0.5, logits_temperature=3)(student, teacher)
    assert list(terms) == ["cwd_map", "cwd_logits"]
    on_maps = channel_wise_divergence(student.feature_map, teacher.feature_map, 0.5)
    on_logits = channel_wise_divergence(student.logits, teacher.logits, 3.0)
    torch.testing.assert_close(terms["cwd_map"], 2 * on_maps)
    torch.testing.assert_close(terms["cwd_logits"], 7 * on_logits)


def test_the_defaults_are_the_published_settings():
    options = {"map_weight": 50.0, "logits_weight": 3.0, "map_temperature": 4.0, "logits_temperature": 4.0}
    assert CWDLoss(5, 7).get_config_dict() == {"student_channels": 5, "teacher_channels": 7, **options}


@pytest.mark.parametrize(("off", "left"), [("map_weight", "cwd_logits"), ("logits_weight", "cwd_map")])
def test_weight_zero_leaves_a_term_out(off, left):
    assert list(CWDLoss(5, 7, **{off: 0})(seen(5, 0), seen(7, 1))) == [left]


def test_without_the_term_on_maps_nothing_needs_maps_or_trains():
    loss = CWDLoss(None, None, map_weight=0)
    student, teacher = (Activations(seen(5, seed).logits) for seed in range(2))
    assert list(loss(student, teacher)) == ["cwd_logits"] and not list(loss.parameters())


def test_other_channels_are_aligned_by_a_convolution_that_trains():
    loss = CWDLoss(5, 7, logits_weight=0)
    student, teacher = seen(5, 0), seen(7, 1)
    term = loss(student, teacher)["cwd_map"]
    aligned = F.conv2d(student.feature_map, loss.align.weight, loss.align.bias)
    torch.testing.assert_close(term, 50 * channel_wise_divergence(aligned, teacher.feature_map))
    term.backward()
    assert loss.align.weight.grad.abs().sum() > 0
    assert isinstance(CWDLoss(5, 5).align, nn.Identity)


def test_the_gradient_is_the_difference_of_the_distributions_and_reaches_the_student_only():
    student, teacher = seen(5, 0), seen(5, 1)
    own, taught = student.feature_map.requires_grad_(), teacher.feature_map.requires_grad_()
    CWDLoss(5, 5, map_weight=1)(student, teacher)["cwd_map"].backward()
    shares = [(each.detach().flatten(2) / 4).softmax(2).view(2, 5, 3, 4) for each in (own, taught)]
    torch.testing.assert_close(own.grad, 4 * (shares[0] - shares[1]) / (2 * 5))
    assert taught.grad is None


def test_values_far_apart_stay_finite():
    student = torch.tensor([1e4, -1e4]).view(1, 1, 1, 2).requires_grad_()
    divergence = channel_wise_divergence(student, -student.detach(), temperature=1.0)
    divergence.backward()
    assert divergence.item() == pytest.approx(2e4) and torch.isfinite(student.grad).all()


def test_bf16_under_autocast_is_computed_in_float32():
    loss = CWDLoss(5, 7)
    half = [Activations(*(each.bfloat16() for each in seen(channels, 0)[:2])) for channels in (5, 7)]
    full = [Activations(*(each.float() for each in activations[:2])) for activations in half]
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(*half)
    expected = loss(*full)
    assert all(actual[name].dtype == torch.float32 and torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"map_weight": -1}, "map_weight=-1 must not be negative"),
        ({"logits_weight": "3e0"}, "logits_weight='3e0' is text"),
        ({"map_temperature": 0}, "map_temperature=0 must be greater than 0"),
        ({"logits_temperature": -4}, "logits_temperature=-4 must be greater than 0"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        CWDLoss(5, 7, **options)
