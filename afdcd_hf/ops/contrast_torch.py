"""The contrastive terms of `contrast_reference.py` without their similarity matrix, in PyTorch, on any device.

The matrix `(patches, V, V)` exists a block of rows at a time and is not kept for the backward pass: the student's
gradient is formed in the forward pass, while a block is at hand, and the backward pass only multiplies it by the
incoming number. With p(a, j) the softmax of anchor a over its positive and its negatives:

    ∂loss/∂s_a = 1 / (τ·B·H·W) · Σ_j (1[j = a] - p(a, j)) · ∂‖s_a - t_j‖/∂s_a

On a CPU, rows whose softmax is peaked (common at τ = 0.07) are summed over the pairs that weigh anything.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .contrast_blocks import (
    EAGER,
    Arithmetic,
    compiled_arithmetic,
    matrix_blocks,
    patch_grid,
    portions,
    pulls_of_few,
    read_vectors,
    write_vectors,
)
from .contrast_reference import excluded_pairs
from .threads import map_in_threads


class Sizes(NamedTuple):
    """Most numbers at a time: copied out of each map, at least a patch; of the similarity matrix, at least a row."""

    maps: int
    matrix: int


# 2**18 numbers are the eight patches of a row in the case (2, 2048, 16, 32): neighbours share lines of the cache.
NUMBERS = {"cpu": Sizes(maps=2**18, matrix=2**17), "other": Sizes(maps=2**24, matrix=2**22)}
# Gathering the pairs that weigh anything beats summing over all pairs while they are fewer than this share of them.
FEW = 0.15


def contrast_torch(
    student: Tensor,
    teacher: Tensor,
    *,
    patch_size: int,
    channel_groups: int,
    temperature: float,
    distance: str,
    negatives: str,
    compiled: bool = False,
) -> Tensor:
    """Compute what `contrast_reference` computes, with the same arguments; there is no second derivative.

    Beside the gradient, kept until the backward pass, it needs blocks of about 7 MiB for each thread of a CPU. With
    `compiled` the arithmetic of a block goes through `torch.compile`: faster after 20 to 60 s of compiling.
    """
    with_gradient = torch.is_grad_enabled() and student.requires_grad
    options = (patch_size, channel_groups, float(temperature), distance, negatives, with_gradient)
    return _fused_contrast(student, teacher.detach(), *options, compiled)[0]


contrast_compiled = partial(contrast_torch, compiled=True)


# An operator of its own, so that torch.compile takes it as one node: nothing to trace, no break of the graph.
@torch.library.custom_op(
    "afdcd::fused_contrast",
    mutates_args=(),
    schema="(Tensor student, Tensor teacher, SymInt patch_size, SymInt channel_groups, float temperature, "
    "str distance, str negatives, bool with_gradient, bool compiled) -> (Tensor, Tensor)",
)
def _fused_contrast(
    student: Tensor,
    teacher: Tensor,
    patch_size: int,
    channel_groups: int,
    temperature: float,
    distance: str,
    negatives: str,
    with_gradient: bool,
    compiled: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient with respect to the student: like `student`, or empty if not wanted."""
    excluded = excluded_pairs(patch_size, channel_groups, negatives, student.device)  # (V, V)
    bias = torch.zeros_like(excluded, dtype=student.dtype).masked_fill_(excluded, -torch.inf)
    terms = _Terms(bias, temperature, distance, compiled_arithmetic() if compiled else EAGER)
    students, teachers = (patch_grid(maps, patch_size, channel_groups) for maps in (student, teacher))
    gradient = torch.empty_like(student) if with_gradient else student.new_empty(0)
    gradients = patch_grid(gradient, patch_size, channel_groups) if with_gradient else None
    sizes = NUMBERS.get(student.device.type, NUMBERS["other"])

    positions = student.numel() // student.shape[1]  # B·H·W

    def contrast(portion: tuple) -> Tensor:
        anchors, candidates = read_vectors(students[portion]), read_vectors(teachers[portion])
        pulled = torch.empty_like(anchors) if with_gradient else None
        blocks = matrix_blocks(anchors, sizes.matrix)
        total = sum(_block(terms, anchors, candidates, pulled, *block) for block in blocks)
        if with_gradient:
            write_vectors(gradients[portion], pulled.mul_(1 / (temperature * positions)))
        return total

    every = portions(students, sizes.maps)
    totals = map_in_threads(contrast, every) if student.device.type == "cpu" else map(contrast, every)
    return torch.stack(list(totals)).sum() / positions, gradient


class _Terms(NamedTuple):
    """What is the same for all blocks; bias is `(V, V)`, -inf for pairs that take no part, else 0."""

    bias: Tensor
    temperature: float
    distance: str
    arithmetic: Arithmetic


def _block(
    terms: _Terms, anchors: Tensor, candidates: Tensor, pulled: Tensor | None, patches: slice, rows: slice
) -> Tensor:
    """The InfoNCE sum of some rows of some patches; their pull goes to `pulled`, `(C/M, patches, V)` as the vectors."""
    some, against = anchors[:, patches, rows], candidates[:, patches]
    lengths = terms.arithmetic.distances(some, against, terms.distance)  # (patches, rows, V)
    own_lengths = lengths.diagonal(offset=rows.start, dim1=1, dim2=2)  # (patches, rows)
    if terms.distance == "l1":
        own_lengths.copy_((some - against[:, :, rows]).abs_().sum(0))
    similarity = (lengths * (-1 / terms.temperature)).add_(terms.bias[rows])
    largest = similarity.amax(dim=2, keepdim=True)
    # exp of less is nothing beside exp(0), but numbers that small slow a processor down twentyfold
    floor = math.log(torch.finfo(similarity.dtype).tiny) / 2
    weights = similarity.sub_(largest).clamp_(min=floor).exp_()
    denominator = weights.sum(dim=2, keepdim=True)
    loss = (denominator.log() + largest).sum() + own_lengths.sum() / terms.temperature
    if pulled is not None:
        weights.mul_(-1 / denominator).diagonal(offset=rows.start, dim1=1, dim2=2).add_(1)  # 1[j = a] - p(a, j)
        pulled[:, patches, rows] = _pull(terms, some, against, weights, lengths)
    return loss


def _pull(terms: _Terms, anchors: Tensor, candidates: Tensor, weights: Tensor, lengths: Tensor) -> Tensor:
    pairs = _weighty_pairs(weights) if weights.device.type == "cpu" else None
    if terms.distance == "l2":
        weights = torch.where(lengths > 0, weights / lengths, 0)
    if pairs is not None and len(pairs) < FEW * weights.numel():
        return pulls_of_few(anchors, candidates, weights, pairs, terms.distance)
    return terms.arithmetic.pulls(anchors, candidates, weights, terms.distance)


def _weighty_pairs(weights: Tensor) -> Tensor:
    """Where in the flattened weights those are that count, `(n,)` int64.

    The others of a row sum to less than the rounding of its 1 - p(a, a).
    """
    negligible = torch.finfo(weights.dtype).eps / (4 * weights.shape[2])
    counts = ~(weights.abs() <= negligible)  # negated, so that NaN counts: it must show in the gradient
    return counts.flatten().nonzero().squeeze(1)


@_fused_contrast.register_fake
def _(
    student, teacher, patch_size, channel_groups, temperature, distance, negatives, with_gradient, compiled
):  # shapes alone, for tracing
    return student.new_empty(()), torch.empty_like(student) if with_gradient else student.new_empty(0)


def _keep_gradient(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _scale_gradient(ctx, grad_loss: Tensor | None, grad_gradient: Tensor | None) -> tuple:
    if grad_gradient is not None:
        raise RuntimeError(
            "this backend of the contrast has no second derivative; use backend='reference' with create_graph=True."
        )
    (gradient,) = ctx.saved_tensors
    return (None if grad_loss is None else gradient * grad_loss, *[None] * 8)


_fused_contrast.register_autograd(_scale_gradient, setup_context=_keep_gradient)
