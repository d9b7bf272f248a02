"""Models for other runtimes: ONNX graphs, checked against PyTorch, also in int8; the backbone alone for timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from ..inference.onnx_segmenter import OnnxSegmenter, load_onnx
    from .onnx import export_onnx
    from .quantisation import quantise_onnx
    from .runtimes import compare_runtimes
    from .timm_backbone import export_timm_backbone

__getattr__, __dir__, __all__ = lazy_exports(__name__)
