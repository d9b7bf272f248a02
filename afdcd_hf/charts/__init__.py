"""Pictures of a run: label maps in colour, training curves, and predictions side by side.

Figures are drawn without pyplot, so that nothing here touches a notebook's or another library's state, and sized to
stay readable when a README shows them at half their width. matplotlib is imported on the first drawing.
"""

from __future__ import annotations

from .curves import plot_training_curves
from .palette import colorize
from .predictions import plot_predictions

__all__ = ["colorize", "plot_predictions", "plot_training_curves"]
