"""A network's speed on the machine at hand, as rows of its card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..cost import ProfileRow, profile_model
from .card_facts import LatencyRow
from .folder_facts import COST_SIZES


def measure_latency(
    folder: str | Path,
    sizes: Sequence[tuple[int, int]] | None = None,
    *,
    device: str | None = None,
    precision: str = "fp32",
) -> list[LatencyRow]:
    """Measures as `afdcd profile` does, one image at a time.

    Args:
        folder: Folder of a saved network.
        sizes: `(height, width)` of the inputs; by default those at which the card counts MACs.
        device: Such as "cuda"; by default a GPU where there is one.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        ValueError: If a size, the device or the precision cannot be.
        OSError: If there is no such folder.
    """
    return [latency_row(row) for row in profile_model(folder, sizes or COST_SIZES, device=device, precision=precision)]


def latency_row(row: ProfileRow) -> LatencyRow:
    """The card's view of a row of `profile_model`."""
    return LatencyRow(**{name: getattr(row, name) for name in LatencyRow._fields})
