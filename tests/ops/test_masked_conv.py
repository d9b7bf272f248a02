"""conv3x3_of_kept equals the dense convolution of a map with zeros: values, gradients, odd masks and layouts."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.ops.masked_conv import KeptPositions, conv3x3_of_kept


def some_mask(batch, height, width, share=0.3):
    drawn = torch.rand(batch, 1, height, width, generator=torch.Generator().manual_seed(7))
    return (drawn < share).double()


def one_image_empty():
    mask = some_mask(3, 4, 5)
    mask[1] = 0
    return mask


def only_corners():
    mask = torch.zeros(2, 1, 3, 4, dtype=torch.float64)
    mask[:, :, ::2, ::3] = 1
    return mask


MASKS = {
    "counts that differ between images": some_mask(3, 5, 7),
    "one image without": one_image_empty(),
    "corners, next to those of the next image": only_corners(),
    "all kept": torch.ones(2, 1, 4, 3, dtype=torch.float64),
    "none kept": torch.zeros(2, 1, 4, 3, dtype=torch.float64),
    "one image": some_mask(1, 6, 6),
    "one position": torch.ones(1, 1, 1, 1, dtype=torch.float64),
    "one row": some_mask(2, 1, 9),
    "one column": some_mask(2, 9, 1),
    "neither zero nor one": some_mask(2, 5, 5) * torch.rand(2, 1, 5, 5, dtype=torch.float64),
}


def tensors(mask, dtype=torch.float64, channels=(3, 4)):
    torch.manual_seed(0)
    batch, _, height, width = mask.shape
    shapes = [(batch, channels[0], height, width), (channels[1], channels[0], 3, 3), (channels[1],)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def dense(feature_map, weight, bias, mask):
    return F.conv2d(feature_map * mask, weight, bias, padding=1)


def sparse(feature_map, weight, bias, mask):
    kept = KeptPositions.of(mask)
    return conv3x3_of_kept(kept.gather(feature_map) * kept.weights, kept, weight, bias)


def value_and_gradients(function, inputs, mask):
    value = function(*inputs, mask)
    towards = torch.randn(value.shape, dtype=value.dtype, generator=torch.Generator().manual_seed(3))
    return value, *torch.autograd.grad(value, inputs, towards)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_values_and_gradients_equal_the_dense_convolution(mask):
    inputs = tensors(mask)
    actual, expected = value_and_gradients(sparse, inputs, mask), value_and_gradients(dense, inputs, mask)
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_float32_agrees_to_rounding():
    mask = some_mask(2, 13, 11, share=0.25).float()
    inputs = tensors(mask, torch.float32, channels=(64, 48))
    actual, expected = value_and_gradients(sparse, inputs, mask), value_and_gradients(dense, inputs, mask)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() / theirs.norm() < 1e-5


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_gradcheck(share):
    mask = some_mask(2, 3, 4, share)
    assert torch.autograd.gradcheck(lambda *inputs: sparse(*inputs, mask), tensors(mask, channels=(2, 3)))


def strided(tensor):
    wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]))
    wide[..., ::2] = tensor
    return wide[..., ::2]


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [strided, channels_last, lambda tensor: tensor.mT.contiguous().mT])
def test_the_layout_of_map_weights_mask_and_gradient_does_not_matter(layout):
    mask = some_mask(2, 5, 6)
    inputs = tensors(mask)
    laid_out = [layout(tensor.detach()).requires_grad_() for tensor in inputs[:2]] + inputs[2:]
    towards = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    value, expected = sparse(*laid_out, layout(mask)), dense(*inputs, mask)
    assert value.is_contiguous()
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    actual = torch.autograd.grad(value, laid_out, layout(towards))
    for ours, theirs in zip(actual, torch.autograd.grad(expected, inputs, towards), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_what_needs_no_gradient_gets_none(index):
    mask = some_mask(2, 4, 4)
    inputs, reference = tensors(mask), tensors(mask)
    inputs = [tensor.requires_grad_(position == index) for position, tensor in enumerate(inputs)]
    sparse(*inputs, mask).sum().backward()
    dense(*reference, mask).sum().backward()
    assert [tensor.grad is not None for tensor in inputs] == [position == index for position in range(3)]
    torch.testing.assert_close(inputs[index].grad, reference[index].grad, rtol=1e-10, atol=1e-12)


def test_the_result_may_be_overwritten():
    mask = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    inputs, reference = tensors(mask), tensors(mask)
    F.relu(sparse(*inputs, mask), inplace=True).sum().backward()
    F.relu(dense(*reference, mask)).sum().backward()
    for ours, theirs in zip(inputs, reference, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_hidden_positions_are_never_read():
    mask = some_mask(2, 5, 5)
    inputs = tensors(mask)
    poisoned = torch.where(mask.bool(), inputs[0], float("nan"))
    assert torch.equal(sparse(poisoned, *inputs[1:], mask), sparse(*inputs, mask))


def test_positions_are_found_by_hand():
    mask = torch.tensor([[[[0.0, 1.0], [0.0, 0.0]]], [[[1.0, 0.0], [0.0, 0.5]]]])
    kept = KeptPositions.of(mask)
    assert kept.size == (2, 2, 2)
    assert kept.indices.tolist() == [1, 4, 7]
    assert kept.weights.tolist() == [[1.0], [1.0], [0.5]]
    # images of 4x4 with the frame: rows 1 and 2, columns 1 and 2 are the image
    assert kept.in_frame().tolist() == [1 * 4 + 2, 16 + 1 * 4 + 1, 16 + 2 * 4 + 2]
    assert kept.gather(torch.arange(8.0).view(2, 1, 2, 2)).tolist() == [[1.0], [4.0], [7.0]]
