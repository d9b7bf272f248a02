"""Figures of runs and results: label maps, predictions, training curves, IoU by class, confusion matrices."""

from .label_maps import colorize, plot_predictions, plot_samples
from .results import data_title, plot_class_iou, plot_confusion_matrix
from .runs import load_history, plot_training_curves
