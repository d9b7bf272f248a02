"""Trainers, their arguments, and complete runs from a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .distillation import DistillationModel, DistillationTrainer
    from .runs import distill, train
    from .trainer import SegmentationTrainer
    from .training_args import DistillationConfig, DistillationTrainingArguments, SegmentationTrainingArguments

__getattr__, __dir__, __all__ = lazy_exports(__name__)
