"""Whether a graph computes what the model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.transforms import run_processor

# float32 sums of some thousand products in another order: up to about 1e-5 of the largest score
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ParityRow:
    """One input given to the model and to the graph.

    Attributes:
        batch: images at once.
        height: of the images, in pixels.
        width: likewise.
        difference: largest absolute difference of a score; for label maps, by how much the score of a label in the
            graph's map falls short of the pixel's best at most.
        largest_score: largest absolute score of the model, to judge the difference by.
        other_labels: share of the pixels whose best class is another one.
    """

    batch: int
    height: int
    width: int
    difference: float
    largest_score: float
    other_labels: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within `TOLERANCE` of the largest score."""
        return self.difference <= TOLERANCE * self.largest_score  # False for NaN


def check_parity(
    scores_of: Callable[[Tensor], Tensor],
    graph: Callable[[np.ndarray], np.ndarray],
    processor: Any,
    shapes: Iterable[tuple[int, int, int]],
    *,
    labels: bool = False,
) -> list[ParityRow]:
    """Give images of several sizes to both.

    Args:
        scores_of: `(B, 3, H, W)` float32 to class scores `(B, K, h, w)` in PyTorch.
        graph: the same input as an array, to the same scores or, with `labels`, to class ids `(B, h, w)`.
        processor: image processor of the model, so that inputs have the range that it is used to.
        shapes: batch size, height and width of each input.
        labels: the graph gives label maps.

    Raises:
        ValueError: the graph fails on an input, gives another shape, or differs by more than `TOLERANCE` of the
            model's largest score.
    """
    rows = [_compare(scores_of, graph, processor, shape, labels) for shape in shapes]
    if not all(row.holds for row in rows):
        raise ValueError(
            f"The graph differs from the model beyond {TOLERANCE:g} of the largest score; nothing was written.\n"
            f"{format_parity(rows)}\n"
            "If only the sizes differ in which the graph was not traced, fix the size: --size HEIGHT WIDTH."
        )
    return rows


def format_parity(rows: Sequence[ParityRow]) -> str:
    """A table with a line per input."""
    lines = [f"{'input':<16}{'max difference':>16}{'largest score':>15}{'other labels':>14}"]
    for row in rows:
        size = f"{row.batch}x{row.height}x{row.width}"
        lines.append(f"{size:<16}{row.difference:>16.1e}{row.largest_score:>15.2f}{row.other_labels:>14.2%}")
    return "\n".join(lines)


@torch.no_grad()
def _compare(scores_of: Any, graph: Any, processor: Any, shape: tuple[int, int, int], labels: bool) -> ParityRow:
    inputs = _images(processor, *shape)
    scores = scores_of(inputs).float()
    result = torch.from_numpy(graph(inputs.numpy()))
    expected = scores.argmax(1) if labels else scores
    if result.shape != expected.shape:
        given, wanted = tuple(result.shape), tuple(expected.shape)
        raise ValueError(f"For an input of {tuple(inputs.shape)} the graph gives {given}, the model {wanted}.")
    classes = result.long() if labels else result.argmax(1)
    if labels:
        difference = (scores.amax(1) - scores.gather(1, classes[:, None])[:, 0]).max()
    else:
        difference = (scores - result).abs().max()
    others = (classes != scores.argmax(1)).double().mean()
    return ParityRow(*shape, difference.item(), scores.abs().max().item(), others.item())


def _images(processor: Any, batch: int, height: int, width: int) -> Tensor:
    """Colour ramps with noise, the same on every call, as the model gets them."""
    rng = np.random.default_rng([batch, height, width])
    ramp = np.linspace(0, 200, height)[:, None, None] * rng.random(3) + np.linspace(0, 50, width)[None, :, None]
    noisy = (ramp + rng.integers(0, 56, (batch, height, width, 3))).clip(0, 255).astype(np.uint8)
    return torch.stack([run_processor(processor, torch.from_numpy(pixels).permute(2, 0, 1)) for pixels in noisy])
