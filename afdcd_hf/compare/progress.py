"""What a comparison says while it runs, and how long it may still take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from .cells import Cell, each_run, each_trial, run_place, tuning_place
from .plan import Plan
from .results import CellResult


class Progress:
    """Counts trainings and estimates the rest from those that are finished.

    Args:
        plan: What there is to do.
        show: Gets the lines; one without a line end is to be replaced by the next.
        earlier: Folder of each training that an earlier call has finished, to its result.
    """

    def __init__(self, plan: Plan, show: Callable[[str], None], earlier: Mapping[str, CellResult]) -> None:
        self._show = show
        # folder of what has to be trained -> what tells how long that may take: method and budget
        self._left = {tuning_place(method, number): ("", "tuning") for method, number in each_trial(plan)}
        runs = each_run(plan)
        self._left |= {run_place(method, budget, seed): (method.name, budget.name) for seed, budget, method in runs}
        self._total = len(self._left)
        self._done = 0
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._last_watched = ""
        for place, result in earlier.items():
            self._learn(place, result)

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
        if cell.place in self._left:
            self._learn(cell.place, result)
        self._done += cell.kind in ("run", "tuning")

    def failed(self, cell: Cell) -> None:
        """A training has ended with an error."""
        self._show(f"  {_title(cell)}: failed\n")
        self._left.pop(cell.place, None)
        self._done += cell.kind in ("run", "tuning")

    def _learn(self, place: str, result: CellResult) -> None:
        self._seconds.setdefault((result.method, result.budget or result.kind), []).append(result.wall_seconds)
        self._left.pop(place, None)

    def seconds_left(self) -> float | None:
        """For what is not finished: as long as the same took, else as others of that budget; None if nothing tells."""
        expected = [self._expected(method, budget) for method, budget in self._left.values()]
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
