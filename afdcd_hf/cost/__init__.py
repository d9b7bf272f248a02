"""What a network costs: parameters, multiply-accumulates, and measured time and memory.

Everything is loaded on first use.
"""

from __future__ import annotations

from ..lazy import lazy_exports

_MODULE_OF = {
    "count_macs": "counting",
    "count_macs_at": "counting",
    "count_parameters": "counting",
    "ProfileRow": "latency",
    "ProfileSettings": "latency",
    "format_profile": "table",
    "profile_model": "latency",
    "profile_rows": "latency",
    "write_profile": "table",
}

__all__ = list(_MODULE_OF)

__getattr__, __dir__ = lazy_exports(__name__, _MODULE_OF)
