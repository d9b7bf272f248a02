"""Distillation methods side by side: the same student, data and budget, several seeds, cost beside accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .comparison import merge_comparisons, run_comparison
    from .plan import Budget, Method, Plan, load_plan

__getattr__, __dir__, __all__ = lazy_exports(__name__)
