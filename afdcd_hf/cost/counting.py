"""What a model costs: the numbers it stores and the multiply-accumulates of one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..inference.segment import height_and_width
from ..model_utils import device_of, dtype_of, evaluating


def count_parameters(model: nn.Module) -> int:
    """Count the numbers that a model stores: every tensor of its state dict, hence also the running statistics and step
    counters of batch norm. A tensor that is shared under several names counts once."""
    # keep_vars hands out the tensors themselves, so that shared ones can be told by their identity.
    state = model.state_dict(keep_vars=True).values()
    return sum({id(tensor): tensor.numel() for tensor in state if isinstance(tensor, torch.Tensor)}.values())


def count_macs(model: nn.Module, size: tuple[int, int], channels: int = 3) -> int:
    """Count the multiply-accumulates (MACs) of one forward pass of one image.

    Counted are convolutions (grouped and transposed ones too), matrix products and attention, by the shapes PyTorch
    really runs; a bias adds nothing. Everything else counts 0: normalisation, activations, pooling, resizing and
    other element-wise work, and fused recurrent layers. One MAC is two floating-point operations (FLOPs).
    The model runs once in evaluation mode on an image of zeros, on its own device and in its own dtype, without
    gradients; layers that work only in training (an auxiliary head) are not counted.

    Args:
        model: called as `model(pixel_values=image)`; every module is left in the mode it was in.
        size: `(height, width)` of the image in pixels.
        channels: channels of the image.

    Raises:
        ValueError: `size` is not a pair of positive whole numbers.
    """
    height_and_width("size", size)
    image = torch.zeros(1, channels, *size, device=device_of(model), dtype=dtype_of(model))
    counter = FlopCounterMode(display=False)
    # PyTorch has no formula for the CPU's fused attention: as plain matrix products it is counted on every device.
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pixel_values=image)
    return counter.get_total_flops() // 2


def count_macs_at(model: nn.Module, sizes: Iterable[tuple[int, int]]) -> list[int]:
    """As `count_macs`, for one RGB image at each `(height, width)`, from shapes alone: nothing is computed."""
    shapes = copy.deepcopy(model).to("meta")
    return [count_macs(shapes, size) for size in sizes]
