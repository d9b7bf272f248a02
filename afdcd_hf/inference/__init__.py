"""From pictures to label maps, and what is written of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .comparison import draw_predictions
    from .predictions import predict_images
    from .segment import InferenceSettings, predict_label_maps, segment_image
    from .submission import PredictionWriter, zip_predictions

__getattr__, __dir__, __all__ = lazy_exports(__name__)
