"""From images to label maps, and what is written of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .onnx_segmenter import OnnxSegmenter, load_onnx, load_segmenter
    from .predictions import predict_images
    from .pseudo_labels import write_pseudo_labels
    from .segment import Predictor, predict_label_maps, segment_image
    from .settings import InferenceSettings
    from .side_by_side import draw_predictions
    from .submission import PredictionWriter, zip_predictions

__getattr__, __dir__, __all__ = lazy_exports(__name__)
