"""From images to label maps, and what is written of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .files import PredictionWriter
    from .graphs import ExecuTorchSegmenter, OnnxSegmenter, OpenVinoSegmenter, load_graph, load_segmenter
    from .predictions import draw_predictions, predict_images, write_pseudo_labels
    from .segment import InferenceSettings, Predictor, segment_image

__getattr__, __dir__, __all__ = lazy_exports(__name__)
