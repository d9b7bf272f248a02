"""Af-DCD: train, evaluate, publish and use small, accurate semantic segmenters.

Importing the package is cheap: it needs no GPU, Triton or network, and pulls in torch, transformers and timm only when
a name is first used. It makes transformers' Auto classes know our models.
"""

from __future__ import annotations

from .lazy import lazy_exports
from .registration import register_when_used

__version__ = "0.1.0"

# public name -> the module that defines it
_EXPORTS = {
    "AfDcdConfig": "models.configuration_afdcd",
    "AfDcdForSemanticSegmentation": "models.modeling_afdcd",
    "AfDcdImageProcessor": "models.image_processing_afdcd",
    "AfDcdLoss": "losses.afdcd",
    "AfDcdOutput": "models.modeling_afdcd",
    "Activations": "features",
    "DistillationLoss": "losses.base",
    "DistillationModel": "training.distillation",
    "DistillationTrainer": "training.distillation_trainer",
    "DistillationTrainingArguments": "training.training_args",
    "KDLoss": "losses.kd",
    "SegmentationTrainer": "training.trainer",
    "SegmentationTrainingArguments": "training.training_args",
    "InferenceSettings": "inference.segment",
    "StreamingBoundaryIoU": "metrics.boundary_iou",
    "StreamingMeanIoU": "metrics.mean_iou",
    "as_segmenter": "adapters",
    "build_loss": "losses",
    "capture": "features",
    "convert_checkpoint": "hub.conversion.checkpoints",
    "evaluate_segmenter": "evaluation.segmenter",
    "export_onnx": "export.onnx",
    "load_benchmark": "data.loading",
    "load_plan": "compare.plan",
    "load_recipe": "recipes",
    "load_split": "data.loading",
    "profile_model": "cost.latency",
    "push_folder": "hub.push",
    "run_comparison": "compare.comparison",
    "segment_image": "inference.segment",
    "streaming_mean_iou_path": "metrics.streaming_mean_iou",
    "verify": "hub.verify",
}

__all__ = sorted([*_EXPORTS, "__version__"])

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)

register_when_used()
