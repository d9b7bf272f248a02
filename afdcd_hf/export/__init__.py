"""Export to ONNX, OpenVINO and ExecuTorch, checked against PyTorch; int8; web pages; the backbone for timm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from ..inference.graphs import ExecuTorchSegmenter, OnnxSegmenter, OpenVinoSegmenter, load_graph
    from .onnx import export_onnx
    from .other_formats import export_executorch, export_openvino
    from .quantisation import quantise_onnx
    from .runtimes import compare_runtimes
    from .timm_backbone import export_timm_backbone
    from .web import export_web

__getattr__, __dir__, __all__ = lazy_exports(__name__)
