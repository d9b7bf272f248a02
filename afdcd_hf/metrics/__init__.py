"""Scores that add up over images in constant memory."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "StreamingBoundaryIoU": "boundary_iou",
    "StreamingMeanIoU": "mean_iou",
    "streaming_mean_iou_path": "streaming_mean_iou",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
