"""What a comparison says while it runs, and how long it may still take."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from .cells import Cell, each_run
from .plan import Plan
from .results import CellResult


class Progress:
    """Counts trainings and estimates the rest from those that are finished.

    Args:
        plan: What there is to do.
        show: Gets the lines; one without a line end is to be replaced by the next.
    """

    def __init__(self, plan: Plan, show: Callable[[str], None]) -> None:
        self._show = show
        self._left = [(method.name, budget.name) for _, budget, method in each_run(plan)]
        self._trials = sum(len(method.candidates) for method in plan.methods)
        self._total = len(self._left) + self._trials
        self._done = 0
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._last_watched = ""

    def starts(self, cell: Cell) -> None:
        """A training begins."""
        left = self.seconds_left()
        rest = f"; about {_duration(left)} left" if left else ""
        self._show(f"{self._number(cell)}{_title(cell)} ...{rest}\n")

    def watch(self, line: str) -> None:
        """What it printed last."""
        if line != self._last_watched:
            self._last_watched = line
            self._show(f"  {line}")

    def finished(self, cell: Cell, result: CellResult) -> None:
        """A training has ended, now or in an earlier call."""
        if cell.kind != "calibration":
            memory = f", {result.peak_memory_mb:.0f} MiB" if result.peak_memory_mb else ""
            self._show(
                f"  {_title(cell)}: mIoU {100 * result.mean_iou:.2f} %, {result.iterations} iterations in "
                f"{result.seconds:.0f} s{memory}\n"
            )
        key = (cell.method, cell.budget.name if cell.budget else cell.kind)
        self._seconds.setdefault(key, []).append(result.wall_seconds)
        self._count(cell)

    def failed(self, cell: Cell) -> None:
        """A training has ended with an error."""
        self._show(f"  {_title(cell)}: failed\n")
        self._count(cell)

    def _count(self, cell: Cell) -> None:
        if cell.kind == "run":
            self._left.remove((cell.method, cell.budget.name))
        elif cell.kind == "tuning":
            self._trials -= 1
        self._done += cell.kind in ("run", "tuning")

    def seconds_left(self) -> float | None:
        """For what is not finished: as long as the same took, else as others of that budget; None if nothing tells."""
        expected = [self._expected(method, budget) for method, budget in self._left]
        expected += [self._expected("", "tuning")] * self._trials
        return None if None in expected else sum(expected)

    def _expected(self, method: str, budget: str) -> float | None:
        same = self._seconds.get((method, budget))
        alike = [value for (_, name), values in self._seconds.items() if name == budget for value in values]
        return statistics.mean(same or alike) if same or alike else None

    def _number(self, cell: Cell) -> str:
        return f"[{self._done + 1}/{self._total}] " if cell.kind in ("run", "tuning") else ""


def _title(cell: Cell) -> str:
    if cell.kind == "run":
        return f"{cell.budget.name} {cell.method} seed {cell.seed}"
    if cell.kind == "tuning":
        return f"tuning {cell.method} {cell.place.rpartition('/')[2]}"
    return f"{cell.kind} {cell.method}" if cell.kind == "calibration" else cell.kind


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"
