"""Pooling to a few cells in a form that ONNX can hold for every input size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class PoolingByProducts(TorchFunctionMode):
    """Inside, `adaptive_avg_pool2d` is computed by two matrix products.

    torch's exporter writes the cells of the example's size into the graph, which is silently wrong at other sizes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace that one function, and leave all others alone."""
        if func is F.adaptive_avg_pool2d:
            return cell_means(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def cell_means(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Averages over cells, as `torch.nn.functional.adaptive_avg_pool2d` gives them.

    Args:
        input: `(..., H, W)` float.
        output_size: number of cells downwards and to the right; one number for both, None for one cell per pixel.
    """
    vertical, horizontal = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if vertical == horizontal == 1:
        return input.mean((-2, -1), keepdim=True)
    if vertical is not None:
        input = _shares(vertical, input.shape[-2], input) @ input
    return input if horizontal is None else input @ _shares(horizontal, input.shape[-1], input).T


def _shares(cells: int, side: int, like: Tensor) -> Tensor:
    """`(cells, side)`: what each pixel of a side counts in the mean of each cell. Neighbouring cells may overlap."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(side, device=like.device)
    inside = (pixel >= cell * side // cells) & (pixel < ((cell + 1) * side + cells - 1) // cells)
    counts = inside.to(like.dtype)
    return counts / counts.sum(1, keepdim=True)
