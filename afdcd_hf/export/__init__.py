"""Networks for other runtimes: ONNX graphs, checked against PyTorch, also in int8; the backbone alone for timm."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "OnnxSegmenter": "onnx_segmenter",
    "compare_runtimes": "comparison",
    "export_onnx": "onnx",
    "export_timm_backbone": "timm_backbone",
    "load_onnx": "onnx_segmenter",
    "quantise_onnx": "quantisation",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
