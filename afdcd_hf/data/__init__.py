"""Data: the table of benchmarks, generated street scenes, augmentation and training samples.

Everything is loaded on first use, so that reading the table does not import torch.
"""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "BENCHMARKS": "benchmarks",
    "Benchmark": "benchmarks",
    "get_benchmark": "benchmarks",
    "SplitCheck": "loading",
    "check_layout": "loading",
    "class_names": "loading",
    "load_benchmark": "loading",
    "load_split": "loading",
    "SCENE_CLASSES": "scenes",
    "SCENE_PALETTE": "scenes",
    "generate_scene": "scenes",
    "RandomScaleCropFlip": "transforms",
    "TrainingSamples": "samples",
    "check_labels": "samples",
    "collate_samples": "samples",
}

__all__ = list(_MODULE_OF)


__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
