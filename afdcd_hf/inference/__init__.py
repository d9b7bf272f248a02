"""From pictures to label maps, and what is written of them."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "InferenceSettings": "segment",
    "PredictionWriter": "submission",
    "draw_predictions": "comparison",
    "predict_images": "predictions",
    "predict_label_maps": "segment",
    "segment_image": "segment",
    "zip_predictions": "submission",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
