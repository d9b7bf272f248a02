"""Metrics that accumulate over images in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .boundary_iou import StreamingBoundaryIoU
    from .mean_iou import StreamingMeanIoU, streaming_mean_iou_path

__getattr__, __dir__, __all__ = lazy_exports(__name__)
