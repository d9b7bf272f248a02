"""Boundary IoU: overlap in a narrow band along outlines, which hardly affects the IoU of large regions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from .mean_iou import StreamingMeanIoU


class StreamingBoundaryIoU(StreamingMeanIoU):
    """Boundary IoU of each class, in constant memory; arguments and errors as in `StreamingMeanIoU`.

    The band of a region consists of its pixels that lie at most `d` rows and columns from a pixel outside it or outside
    the image: those that `d` erosions by a 3x3 square remove, as in the paper's code (Cheng et al.: Boundary
    IoU. CVPR 2021, arXiv:2103.16562). With G and P the bands of a class in truth and prediction, its Boundary IoU is
    |G and P| / |G or P|, counted over *all* images seen. The paper scores objects; here a class of a label map is one
    region, wherever its parts lie. Ignored pixels form one more region in both maps, and are in no band.

    Args:
        ratio: Width of the band as a share of the image diagonal, above 0 and at most 1; `d` is rounded to pixels, and
            at least 1. The paper's code uses 0.02, and 0.005 for Cityscapes.

    Example:
        >>> truth = np.zeros((8, 8), np.uint8)
        >>> truth[2:6, 2:6] = 1
        >>> metric = StreamingBoundaryIoU(2, id2label={0: "road", 1: "car"})
        >>> metric.update(truth, truth)
        >>> metric.compute()["per_category_boundary_iou"]
        {'road': 1.0, 'car': 1.0}
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, ratio: float = 0.02, **options: Any) -> None:
        super().__init__(num_labels, ignore_index, **options)
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: expected a share of the image diagonal, above 0 and at most 1.")
        self.ratio = ratio

    def update(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
        """Count label maps as in `StreamingMeanIoU.update`; maps `(..., H, W)` must be whole images."""
        if len(predictions.shape) < 2:
            raise ValueError(f"The maps have shape {tuple(predictions.shape)}; bands need rows and columns.")
        regions = self._checked(*self._ids(predictions, references))
        width = max(1, round(self.ratio * math.hypot(*references.shape[-2:])))
        dtype = torch.uint8 if self.num_labels <= 255 else torch.int32  # the fewer bytes, the faster
        bands = (_boundary_band(ids.to(dtype), width) for ids in regions)
        inside = (ids.masked_fill(~band, self.num_labels) for ids, band in zip(regions, bands, strict=True))
        self._count(*inside)

    def merge(self, other: Self) -> Self:
        """Merge as in `StreamingMeanIoU.merge`; the ratios must be equal, too."""
        if other.ratio != self.ratio:
            raise ValueError(f"Bands of ratio {other.ratio} can't be merged with those of ratio {self.ratio}.")
        return super().merge(other)

    def compute(self) -> dict[str, Any]:
        """Return `mean_boundary_iou` and `per_category_boundary_iou`, 0..1, NaN where undefined; the counts stay."""
        scores = super().compute()
        return {"mean_boundary_iou": scores["mean_iou"], "per_category_boundary_iou": scores["per_category_iou"]}


def _boundary_band(regions: Tensor, width: int) -> Tensor:
    """Return which pixels have another region, or the image's outside, within `width` rows and columns."""
    # One pass serves all regions: around a pixel in no band, the largest and the smallest id are its own.
    band = torch.ones_like(regions, dtype=torch.bool)
    side = 2 * width + 1
    if min(regions.shape[-2:]) >= side:
        largest, smallest = (_extreme_around(regions, side, pick) for pick in (torch.maximum, torch.minimum))
        band[..., width:-width, width:-width] = largest != smallest
    return band


def _extreme_around(values: Tensor, side: int, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return the extreme over each square of `side` pixels that lies inside: `(..., H - side + 1, W - side + 1)`."""
    for dim in (-2, -1):
        reach = 1  # of a run of pixels, from runs half as long
        while reach < side:
            step = min(reach, side - reach)
            rest = values.shape[dim] - step
            values = pick(values.narrow(dim, 0, rest), values.narrow(dim, step, rest))
            reach += step
    return values
