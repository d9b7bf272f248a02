"""Trainers, their arguments, and whole runs from a recipe."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "DistillationModel": "distillation",
    "DistillationTrainer": "distillation_trainer",
    "DistillationTrainingArguments": "training_args",
    "SegmentationTrainer": "trainer",
    "SegmentationTrainingArguments": "training_args",
    "distill": "runs",
    "train": "runs",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
