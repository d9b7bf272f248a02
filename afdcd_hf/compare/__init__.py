"""Distillation methods side by side: the same student, data and budget, several seeds, cost beside accuracy."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "Budget": "plan",
    "Method": "plan",
    "Plan": "plan",
    "load_plan": "plan",
    "run_comparison": "comparison",
}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
