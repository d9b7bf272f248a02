"""What a model costs: the numbers it stores and the multiply-accumulates of one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..model_utils import evaluating


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Count the numbers a model stores.

    Args:
        model: the model; for a distilled student, without the loss's own layers.
        trainable_only: count only the parameters with `requires_grad`. Otherwise every tensor of the state dict counts,
            hence also the running statistics and step counters of batch norm.

    Returns:
        The number of elements. A tensor that is shared under several names counts once.
    """
    if trainable_only:
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
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
        ValueError: `size` is not a pair of positive whole numbers or `channels` is not positive.
    """
    numbers = (*size, channels) if isinstance(size, (tuple, list)) else ()
    if len(numbers) != 3 or any(not isinstance(number, int) or number < 1 for number in numbers):
        raise ValueError(
            f"size={size!r}, channels={channels!r} is no shape of an image; pass size=(height, width) and channels "
            "as positive whole numbers, for example size=(512, 1024), channels=3."
        )
    reference = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, channels, *size, device=reference.device, dtype=reference.dtype)
    counter = FlopCounterMode(display=False)
    # PyTorch has no formula for the CPU's fused attention: as plain matrix products it is counted on every device.
    with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(pixel_values=image)
    return counter.get_total_flops() // 2


def count_macs_at(model: nn.Module, sizes: Iterable[tuple[int, int]]) -> list[int]:
    """As `count_macs`, for one RGB image at each `(height, width)`, from shapes alone: nothing is computed."""
    shapes = copy.deepcopy(model).to("meta")
    return [count_macs(shapes, size) for size in sizes]
