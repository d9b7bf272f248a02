"""Pictures of runs and results: label maps, predictions, training curves, IoU by class, confusion matrices.

Figures are drawn without pyplot, so that nothing here touches a notebook's or another library's state, and sized to
stay readable when a README shows them at half their width. matplotlib is imported on the first drawing.
"""

from __future__ import annotations

from .class_iou import plot_class_iou
from .confusion import plot_confusion_matrix
from .curves import plot_training_curves
from .history import load_history
from .palette import colorize
from .predictions import plot_predictions

__all__ = [
    "colorize", "load_history", "plot_class_iou", "plot_confusion_matrix", "plot_predictions", "plot_training_curves",
]  # fmt: skip
