"""Data: the table of benchmarks, generated street scenes, augmentation and training samples.

Everything is loaded on first use, so that reading the table does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .benchmarks import BENCHMARKS, Benchmark, get_benchmark
    from .checks import check_classes, check_labels, check_same_size
    from .loading import SplitCheck, check_layout, class_names, load_benchmark, load_split
    from .samples import TrainingSamples, collate_samples
    from .scenes import generate_scene
    from .statistics import LabelStatistics, count_labels
    from .streaming import StreamedRows, StreamedSamples
    from .transforms import RandomScaleCropFlip

PAPER_SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)  # of augmented images
__getattr__, __dir__, __all__ = lazy_exports(__name__)
