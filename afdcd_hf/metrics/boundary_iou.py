"""Boundary IoU: overlap in a narrow band along the outlines, to which the IoU of large regions is blind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .counting import StreamingCounts, as_int64, bounded_ids, check_maps, check_range, mean_of_defined, ratio


class StreamingBoundaryIoU(StreamingCounts):
    """Boundary IoU of each class, in constant memory: two int64 counts a class.

    The band of a region is made of its own pixels that lie at most `d` rows and columns from a pixel outside it; the
    outside of the image is outside every region. This is what `d` erosions by a 3x3 square remove, as in the paper's
    code. With G and P the bands of a class in truth and prediction, its Boundary IoU is |G and P| / |G or P|, counted
    over *all* images seen. The paper scores objects; here a class of a label map is one region, wherever its parts lie.

    Ignored pixels are one more region in both maps, and in no band: what a model says there has no influence, and the
    outline of an ignored area is an outline of its neighbours, in truth and prediction alike.

    Source: B. Cheng, R. Girshick, P. Dollar, A. C. Berg, A. Kirillov: Boundary IoU: Improving object-centric image
    segmentation evaluation. CVPR 2021, arXiv:2103.16562.

    Args:
        num_labels: Number of classes K.
        ignore_index: Reference value that is not counted.
        ratio: Width of the band as a share of the image diagonal, above 0 and at most 1; `d` is rounded to pixels, and
            at least 1. The paper's code has 0.02, and 0.005 for Cityscapes.
        id2label: Class names by index, as in `StreamingMeanIoU`.
        absent_as_zero: Count a class in neither truth nor prediction as 0, instead of leaving it out of the mean.
        device: Where the counts live; by default where the first predictions are.

    Raises:
        ValueError: If `num_labels` or `ratio` is out of range or `id2label` names a class outside 0..K-1.

    Example:
        >>> truth = np.zeros((8, 8), np.uint8)
        >>> truth[2:6, 2:6] = 1
        >>> metric = StreamingBoundaryIoU(2, id2label={0: "road", 1: "car"})
        >>> metric.update(truth, truth)
        >>> metric.compute()["per_category_boundary_iou"]
        {'road': 1.0, 'car': 1.0}
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = 255,
        ratio: float = 0.02,
        *,
        id2label: Mapping[int, str] | Mapping[str, str] | None = None,
        absent_as_zero: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(num_labels, ignore_index, id2label, device, (2, num_labels))
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio}: expected a share of the image diagonal, above 0 and at most 1.")
        self.ratio = ratio
        self.absent_as_zero = absent_as_zero

    def update(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> None:
        """Counts the bands of one label map, or of several of equal size, `(..., H, W)`; see `StreamingMeanIoU.update`.

        Maps must not be padded: the edge of a map is taken to be the edge of its image.
        """
        check_maps(predictions, references)
        if len(predictions.shape) < 2:
            raise ValueError(
                f"The maps have shape {tuple(predictions.shape)}; bands need rows and columns: (..., H, W)."
            )
        width = band_width((references.shape[-2], references.shape[-1]), self.ratio)
        regions = self._regions(predictions, references)
        predicted, truth = (ids.masked_fill(~boundary_band(ids, width), self.num_labels) for ids in regions)
        both = self._count(torch.where(predicted == truth, truth, self.num_labels))
        self._add(torch.stack([both, self._count(predicted) + self._count(truth) - both]))

    def merge(self, other: StreamingBoundaryIoU) -> StreamingBoundaryIoU:
        """As `StreamingMeanIoU.merge`; the ratios must not differ either."""
        if other.ratio != self.ratio:
            raise ValueError(f"Bands of ratio {other.ratio} can't be merged with those of ratio {self.ratio}.")
        return super().merge(other)

    def compute(self) -> dict[str, Any]:
        """Scores of everything counted so far; the counts stay.

        Returns:
            `mean_boundary_iou`, a float in 0..1, NaN when no pixel was counted, and `per_category_boundary_iou`, by
            class name, NaN where undefined.
        """
        both, either = self._counts.cpu().numpy()
        iou = ratio(both, either)
        if self.absent_as_zero and either.any():
            iou[either == 0] = 0.0
        return {"mean_boundary_iou": mean_of_defined(iou), "per_category_boundary_iou": self._by_class(iou)}

    def _regions(self, predictions: Tensor | np.ndarray, references: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
        """Both maps with 0..K-1 and, where ignored, K; in one byte a pixel where that will do."""
        device, num_labels = self._settle(predictions), self.num_labels
        ignored = as_int64(references).to(device) == self.ignore_index
        predicted, truth = (bounded_ids(ids, -1, num_labels).to(device) for ids in (predictions, references))
        wrong = (predicted < 0) | (predicted == num_labels) | (truth < 0) | (truth == num_labels)
        if (wrong & ~ignored).any().item():
            predicted, truth = (as_int64(ids).to(device)[~ignored] for ids in (predictions, references))
            check_range(predicted, truth, num_labels, f"{self.ignore_index} (ignore_index)")
        dtype = torch.uint8 if num_labels <= 255 else torch.int32
        return predicted.to(dtype).masked_fill_(ignored, num_labels), truth.to(dtype).masked_fill_(ignored, num_labels)

    def _count(self, ids: Tensor) -> Tensor:
        return torch.bincount(ids.flatten(), minlength=self.num_labels + 1)[: self.num_labels]


def band_width(size: tuple[int, int], ratio: float) -> int:
    """Pixels in `ratio` of the diagonal of an image of (height, width), rounded, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_band(regions: Tensor, width: int) -> Tensor:
    """Bool `(..., H, W)`: which pixels have another region, or the image's outside, within `width` rows and columns.

    One pass serves all regions: around a pixel that is in no band, the largest and the smallest id are its own.
    """
    band = torch.ones_like(regions, dtype=torch.bool)
    side = 2 * width + 1
    if min(regions.shape[-2:]) >= side:
        inner = (..., slice(width, -width), slice(width, -width))
        largest, smallest = (_extreme_around(regions, side, pick) for pick in (torch.maximum, torch.minimum))
        band[inner] = largest != smallest
    return band


def _extreme_around(values: Tensor, side: int, pick: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The extreme over each square of `side` pixels that lies inside: `(..., H - side + 1, W - side + 1)`."""
    for dim in (-2, -1):
        reach = 1  # of a run of pixels, from runs half as long
        while reach < side:
            step = min(reach, side - reach)
            rest = values.shape[dim] - step
            values = pick(values.narrow(dim, 0, rest), values.narrow(dim, step, rest))
            reach += step
    return values
