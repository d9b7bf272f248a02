"""A web page that shows what saved networks see, on this machine or as a Space on the Hugging Face Hub."""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {"build_app": "app", "launch_demo": "app", "write_space": "space"}

__all__ = sorted(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
