"""Af-DCD: train, evaluate, publish and use small, accurate semantic segmenters.

Importing the package is cheap: it needs no GPU, Triton or network, and pulls in torch, transformers and timm only when
a name is first used. It makes transformers' Auto classes know our models.
"""

from __future__ import annotations

import importlib

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
    "DistillationModel": "distillation",
    "DistillationTrainer": "trainer",
    "DistillationTrainingArguments": "training_args",
    "KDLoss": "losses.kd",
    "SegmentationTrainer": "trainer",
    "SegmentationTrainingArguments": "training_args",
    "StreamingMeanIoU": "metrics",
    "capture": "features",
    "evaluate_segmenter": "evaluation",
    "load_benchmark": "data.loading",
    "load_recipe": "recipes",
}

__all__ = sorted([*_EXPORTS, "__version__"])


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_used()
