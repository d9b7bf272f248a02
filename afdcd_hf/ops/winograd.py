"""3×3 convolution with 4/9 of the multiplications: Winograd's F(2×2, 3×3) (Lavin and Gray, arXiv 1509.09308).

An output tile of 2×2 comes from an input tile d of 4×4 and a kernel g of 3×3, with 16 products instead of 36:

    Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A

Summed over channels, the products are 16 matrix products, one for each of the 4×4 places. The transforms only add,
subtract and halve, so the error in float32 is of the size of a direct convolution's.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Enough tiles for the matrix products to run at full rate; more images at a time only take memory.
TILES_AT_ONCE = 1024
# Forward and backward on one core of a busy machine, 45×45, batch 2: a direct convolution takes 1.3 times as long at
# 2048 channels, as long at 512, 0.7 times at 128.
LEAST_CHANNELS = 1024
LEAST_TILES = 256
TURNED = (3, 1, 2, 0)


def winograd_is_faster(feature_map: Tensor, out_channels: int) -> bool:
    """On a CPU, in eager mode, in float32 outside autocast, for wide and large maps; elsewhere it is unmeasured."""
    batch, channels, height, width = feature_map.shape
    if feature_map.device.type != "cpu" or feature_map.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    if torch.is_autocast_enabled("cpu") or min(channels, out_channels) < LEAST_CHANNELS:
        return False
    return batch * _tiles(height) * _tiles(width) >= LEAST_TILES


def conv3x3_winograd(feature_map: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Equal `F.conv2d(feature_map, weight, bias, padding=1)` up to rounding.

    While it runs it needs 16·C·C' numbers for the transformed kernels, and as many again for their gradient; what it
    keeps for the backward pass is what a convolution keeps. Not twice differentiable.

    Args:
        feature_map: `(B, C, h, w)` float32 or float64.
        weight: `(C', C, 3, 3)`, likewise.
        bias: `(C',)`, likewise.

    Returns:
        `(B, C', h, w)`, contiguous.
    """
    return _Winograd.apply(feature_map, weight, bias)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, feature_map: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(feature_map, weight)
        return _convolve(feature_map, weight).add_(bias[:, None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        feature_map, weight = ctx.saved_tensors
        needs_map, needs_weight, needs_bias = ctx.needs_input_grad
        for_map = _convolve(gradient, weight, turned=True) if needs_map else None
        for_weight = _weight_gradient(feature_map, gradient) if needs_weight else None
        return for_map, for_weight, gradient.sum((0, 2, 3)) if needs_bias else None


def _convolve(feature_map: Tensor, weight: Tensor, turned: bool = False) -> Tensor:
    """With `turned`, `(B, C', h, w)` to `(B, C, h, w)`: the derivative by the input, with kernels turned round."""
    batch, _, height, width = feature_map.shape
    kernels = _kernels(weight)  # (16, C', C)
    # turned round, rows 1 and 2 of G g are as they were, and rows 0 and 3 change places
    places = [4 * row + column for row in TURNED for column in TURNED] if turned else range(16)
    result = feature_map.new_empty(batch, weight.shape[1 if turned else 0], height, width)
    for images in _portions(feature_map):
        tiles = _input_tiles(feature_map[images])
        products = tiles.new_empty(*tiles.shape[:2], result.shape[1])
        for place, product, tile in zip(places, products, tiles, strict=True):
            torch.mm(tile, kernels[place] if turned else kernels[place].t(), out=product)
        result[images] = _output_map(products, height, width)
    return result


def _weight_gradient(feature_map: Tensor, gradient: Tensor) -> Tensor:
    channels, out_channels = feature_map.shape[1], gradient.shape[1]
    by_place = feature_map.new_zeros(16, out_channels, channels)
    for images in _portions(feature_map):
        by_place.baddbmm_(_gradient_tiles(gradient[images]).transpose(1, 2), _input_tiles(feature_map[images]))
    return (_kernel_transform(by_place.dtype).t() @ by_place.view(16, -1)).t().reshape(out_channels, channels, 3, 3)


def _portions(feature_map: Tensor) -> list[slice]:
    batch, _, height, width = feature_map.shape
    images = max(1, -(-TILES_AT_ONCE // (_tiles(height) * _tiles(width))))
    return [slice(start, start + images) for start in range(0, batch, images)]


def _tiles(side: int) -> int:
    return (side + 1) // 2


@cache
def _kernel_transform(dtype: torch.dtype) -> Tensor:
    """`(16, 9)`: G on rows and columns at once."""
    rows = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=dtype)
    return torch.kron(rows, rows)


def _kernels(weight: Tensor) -> Tensor:
    """G g Gᵀ: `(C', C, 3, 3)` to `(16, C', C)`."""
    out_channels, channels = weight.shape[:2]
    return (_kernel_transform(weight.dtype) @ weight.reshape(-1, 9).t()).view(16, out_channels, channels)


def _input_tiles(feature_map: Tensor) -> Tensor:
    """Bᵀ d B of all tiles: `(B, C, h, w)` to `(16, tiles, C)`."""
    batch, channels, height, width = feature_map.shape
    rows, columns = _tiles(height), _tiles(width)
    frame = (0, 0, 1, 2 * columns + 1 - width, 1, 2 * rows + 1 - height)
    framed = F.pad(feature_map.permute(0, 2, 3, 1), frame)  # (B, 2·rows + 2, 2·columns + 2, C)
    taken = [framed[:, place : place + 2 * rows : 2] for place in range(4)]  # every second row
    result = feature_map.new_empty(4, 4, batch, rows, columns, channels)
    for place, half in enumerate(_differences(taken)):
        quarter = [half[:, :, start : start + 2 * columns : 2] for start in range(4)]
        for target, tile in zip(result[place], _differences(quarter), strict=True):
            target.copy_(tile)
    return result.view(16, -1, channels)


def _differences(parts: list[Tensor]) -> tuple[Tensor, ...]:
    """Bᵀ on four rows."""
    return parts[0] - parts[2], parts[1] + parts[2], parts[2] - parts[1], parts[1] - parts[3]


def _output_map(products: Tensor, height: int, width: int) -> Tensor:
    """Aᵀ m A of all tiles: `(16, tiles, C')` to `(B, C', h, w)`."""
    rows, columns = _tiles(height), _tiles(width)
    tiles = products.view(4, 4, -1, rows, columns, products.shape[-1])
    result = products.new_empty(tiles.shape[2], rows, 2, columns, 2, products.shape[-1])
    for i, half in enumerate((tiles[0] + tiles[1] + tiles[2], tiles[1] - tiles[2] - tiles[3])):
        result[:, :, i, :, 0] = half[0] + half[1] + half[2]
        result[:, :, i, :, 1] = half[1] - half[2] - half[3]
    return result.view(-1, 2 * rows, 2 * columns, products.shape[-1])[:, :height, :width].permute(0, 3, 1, 2)


def _gradient_tiles(gradient: Tensor) -> Tensor:
    """A y Aᵀ, the transpose of `_output_map`: `(B, C', h, w)` to `(16, tiles, C')`."""
    batch, channels, height, width = gradient.shape
    rows, columns = _tiles(height), _tiles(width)
    framed = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, 2 * columns - width, 0, 2 * rows - height))
    result = gradient.new_empty(4, 4, batch, rows, columns, channels)
    for place, half in enumerate(_sums(framed[:, ::2], framed[:, 1::2])):
        for target, tile in zip(result[place], _sums(half[:, :, ::2], half[:, :, 1::2]), strict=True):
            target.copy_(tile)
    return result.view(16, -1, channels)


def _sums(first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    """A on two rows."""
    return first, first + second, first - second, -second
