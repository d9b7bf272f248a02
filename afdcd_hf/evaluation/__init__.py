"""Scoring a segmenter on a labelled dataset, and the results file."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "evaluate_segmenter": "segmenter",
    "save_results": "results",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
