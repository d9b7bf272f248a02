"""Charts and images of runs and results: label maps, predictions, training curves, IoU by class, confusion matrices."""

from __future__ import annotations

from .class_iou import plot_class_iou
from .confusion import plot_confusion_matrix
from .curves import plot_training_curves
from .history import load_history
from .label_maps import colorize
from .predictions import plot_predictions

__all__ = [
    "colorize",
    "load_history",
    "plot_class_iou",
    "plot_confusion_matrix",
    "plot_predictions",
    "plot_training_curves",
]
