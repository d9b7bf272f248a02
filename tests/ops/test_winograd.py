"""The 3×3 convolution with fewer multiplications against the direct one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.losses.projectors import plain_projector
from afdcd_hf.ops import winograd
from afdcd_hf.ops.winograd import conv3x3_winograd, winograd_is_faster


def inputs(batch, channels, out_channels, height, width, dtype):
    generator = torch.Generator().manual_seed(height * width)
    shapes = (batch, channels, height, width), (out_channels, channels, 3, 3), (out_channels,)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def value_and_gradients(function, tensors):
    result = function(*tensors)
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), tensors)]


def direct(feature_map, weight, bias):
    return F.conv2d(feature_map, weight, bias, padding=1)


SHAPES = [(2, 3, 5, 6, 8), (1, 4, 2, 7, 5), (3, 2, 2, 1, 1), (2, 3, 3, 2, 9), (1, 1, 1, 4, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_direct_convolution(shape, layout):
    tensors = inputs(*shape, torch.float64)
    tensors[0] = tensors[0].detach().contiguous(memory_format=layout).requires_grad_()
    actual, expected = (value_and_gradients(function, tensors) for function in (conv3x3_winograd, direct))
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_portions_of_the_batch_make_no_difference(monkeypatch):
    tensors = inputs(5, 3, 4, 6, 7, torch.float64)
    whole = value_and_gradients(conv3x3_winograd, tensors)
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 24)  # two images
    for one, other in zip(value_and_gradients(conv3x3_winograd, tensors), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_error_in_float32_is_within_three_times_the_direct_convolutions():
    exact = inputs(1, 256, 256, 12, 12, torch.float64)
    rounded = [tensor.detach().float().requires_grad_() for tensor in exact]
    exact = [tensor.detach().double().requires_grad_() for tensor in rounded]
    truth = value_and_gradients(direct, exact)
    errors = [
        [(one.double() - other).norm() for one, other in zip(value_and_gradients(way, rounded), truth, strict=True)]
        for way in (conv3x3_winograd, direct)
    ]
    assert all(ours <= 3 * plain + 1e-12 for ours, plain in zip(*errors, strict=True))


def test_gradients_that_nobody_needs_are_not_computed(monkeypatch):
    feature_map, weight, bias = inputs(1, 2, 3, 4, 4, torch.float64)
    monkeypatch.setattr(winograd, "_weight_gradient", None)
    conv3x3_winograd(feature_map, weight.detach(), bias.detach()).sum().backward()
    assert feature_map.grad is not None


def test_it_is_taken_for_wide_and_large_float32_maps_on_a_cpu_alone():
    wide = torch.empty(2, 2048, 45, 45)
    assert winograd_is_faster(wide, 2048)
    assert not winograd_is_faster(wide[:1].double(), 2048)
    assert not winograd_is_faster(wide, 256)
    assert not winograd_is_faster(wide[:1, :, :8, :8], 2048)
    assert not winograd_is_faster(wide.to("meta"), 2048)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not winograd_is_faster(wide, 2048)


def test_a_projector_that_takes_it_gives_what_it_gave(monkeypatch):
    torch.manual_seed(0)
    projector, feature_map = plain_projector(16), torch.randn(2, 16, 6, 6, requires_grad=True)
    tensors = [feature_map, *projector.parameters()]
    expected = value_and_gradients(lambda *_: projector(feature_map), tensors)
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 16)
    monkeypatch.setattr(winograd, "LEAST_TILES", 1)
    assert winograd_is_faster(feature_map, 16)
    actual = value_and_gradients(lambda *_: projector(feature_map), tensors)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert list(projector.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
