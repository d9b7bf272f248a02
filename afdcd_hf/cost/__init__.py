"""What a model costs: parameters, multiply-accumulates, and measured time and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_exports

if TYPE_CHECKING:
    from .counting import count_macs, count_macs_at, count_parameters
    from .latency import ProfileRow, ProfileSettings, profile_model, profile_rows, write_profile

__getattr__, __dir__, __all__ = lazy_exports(__name__)
