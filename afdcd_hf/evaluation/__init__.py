"""Scoring a segmenter on a labelled dataset, and the results file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .results import save_results
    from .segmenter import evaluate_segmenter

__getattr__, __dir__, __all__ = lazy_exports(__name__)
