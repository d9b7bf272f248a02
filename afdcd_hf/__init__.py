"""Af-DCD: train, evaluate, publish and use small, accurate semantic segmenters.

Importing the package is cheap: it needs no GPU, Triton or network, and pulls in torch, transformers and timm only when
a name is first used. It registers our models with transformers' Auto classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import lazy_exports
from .registration import register_when_used

if TYPE_CHECKING:
    from .adapters import as_segmenter as as_segmenter
    from .compare.comparison import run_comparison as run_comparison
    from .compare.plan import load_plan as load_plan
    from .cost.profiling import profile_model as profile_model
    from .data.loading import load_benchmark as load_benchmark, load_split as load_split
    from .data.samples import TrainingSamples as TrainingSamples, collate_samples as collate_samples
    from .data.transforms import RandomScaleCropFlip as RandomScaleCropFlip
    from .evaluation.segmenter import evaluate_segmenter as evaluate_segmenter
    from .export.onnx import export_onnx as export_onnx
    from .features import Activations as Activations, capture as capture
    from .hub.conversion import convert_checkpoint as convert_checkpoint
    from .hub.push import push_folder as push_folder
    from .hub.verify import verify as verify
    from .inference.segment import InferenceSettings as InferenceSettings, segment_image as segment_image
    from .losses import build_loss as build_loss
    from .losses.afdcd import AfDcdLoss as AfDcdLoss
    from .losses.base import DistillationLoss as DistillationLoss, MapLoss as MapLoss
    from .losses.cirkd import CIRKDLoss as CIRKDLoss
    from .losses.logit_losses import BPKDLoss as BPKDLoss, DISTLoss as DISTLoss, KDLoss as KDLoss
    from .losses.map_losses import (
        AttentionTransferLoss as AttentionTransferLoss,
        CWDLoss as CWDLoss,
        FitNetLoss as FitNetLoss,
        IFVDLoss as IFVDLoss,
        SKDLoss as SKDLoss,
    )
    from .losses.mgd import MGDLoss as MGDLoss
    from .metrics.boundary_iou import StreamingBoundaryIoU as StreamingBoundaryIoU
    from .metrics.mean_iou import (
        StreamingMeanIoU as StreamingMeanIoU,
        streaming_mean_iou_path as streaming_mean_iou_path,
    )
    from .models.configuration_afdcd import AfDcdConfig as AfDcdConfig
    from .models.image_processing_afdcd import AfDcdImageProcessor as AfDcdImageProcessor
    from .models.modeling_afdcd import (
        AfDcdForSemanticSegmentation as AfDcdForSemanticSegmentation,
        AfDcdOutput as AfDcdOutput,
    )
    from .ops.contrast import (
        channel_contrast as channel_contrast,
        omni_contrast as omni_contrast,
        spatial_contrast as spatial_contrast,
    )
    from .recipes import load_recipe as load_recipe
    from .training.distillation import (
        DistillationModel as DistillationModel,
        DistillationTrainer as DistillationTrainer,
    )
    from .training.trainer import SegmentationTrainer as SegmentationTrainer
    from .training.training_args import (
        DistillationConfig as DistillationConfig,
        DistillationTrainingArguments as DistillationTrainingArguments,
        SegmentationTrainingArguments as SegmentationTrainingArguments,
    )

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(__name__)

register_when_used()
