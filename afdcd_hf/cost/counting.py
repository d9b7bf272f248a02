"""What a network costs: the numbers it stores and the multiply-accumulates of one forward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..model_utils import evaluating


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Counts the numbers a network stores.

    Args:
        model: The network; for a distilled student, without the loss's own layers.
        trainable_only: Counts only the parameters with `requires_grad`. Otherwise every tensor of the state dict
            counts, hence also the running statistics and step counters of batch normalisation.

    Returns:
        The number of elements. A tensor that is shared under several names counts once.
    """
    if trainable_only:
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # keep_vars hands out the tensors themselves, so that shared ones can be told by their identity.
    tensors = {
        id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, torch.Tensor)
    }
    return sum(tensor.numel() for tensor in tensors.values())


def count_macs(model: nn.Module, size: tuple[int, int], channels: int = 3) -> int:
    """Counts the multiply-accumulates (MACs) of one forward pass of one image.

    Counted are convolutions (grouped and transposed ones too), matrix products and attention, by the shapes PyTorch
    really runs; a bias adds nothing. Everything else counts 0: normalisation, activations, pooling, resizing and
    other element-wise work, and fused recurrent layers. One MAC is two floating-point operations (FLOPs).
    The network runs once in evaluation mode on an image of zeros, where it lies and in its own dtype, without
    gradients; layers that work only while training (an auxiliary head that is skipped in evaluation) are not counted.

    Args:
        model: A network that is called as `model(pixel_values=image)`.
        size: `(height, width)` of the image in pixels.
        channels: Channels of the image.

    Returns:
        The number of MACs. Every module is left in the mode it was in.

    Raises:
        ValueError: If `size` is no pair of positive whole numbers or `channels` is not positive.
    """
    _check_shape(size, channels)
    reference = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, channels, *size, device=reference.device, dtype=reference.dtype)
    counter = FlopCounterMode(display=False)
    with evaluating(model), torch.no_grad(), counter:
        model(pixel_values=image)
    return counter.get_total_flops() // 2


def count_macs_at(model: nn.Module, sizes: Iterable[tuple[int, int]]) -> list[int]:
    """Counts the MACs of one RGB image at each `(height, width)`, as `count_macs` does, from shapes alone.

    Nothing is computed, so that large images take neither time nor memory.
    """
    shapes = copy.deepcopy(model).to("meta")
    return [count_macs(shapes, size) for size in sizes]


def _check_shape(size: tuple[int, int], channels: int) -> None:
    numbers = (*size, channels) if isinstance(size, (tuple, list)) else ()
    if len(numbers) != 3 or any(not isinstance(number, int) or number < 1 for number in numbers):
        raise ValueError(
            f"size={size!r}, channels={channels!r} is no shape of an image; pass size=(height, width) and channels "
            "as positive whole numbers, for example size=(512, 1024), channels=3."
        )
