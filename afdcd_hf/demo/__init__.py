"""A web page that segments images with saved models, on this machine or as a Space on the Hugging Face Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .app import build_app, launch_demo
    from .space import write_space

__getattr__, __dir__, __all__ = lazy_exports(__name__)
