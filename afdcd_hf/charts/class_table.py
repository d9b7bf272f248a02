"""What a chart of IoU by class shows: the numbers of all results, and which classes stand in which panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

Results = Mapping[str, Mapping[str, float | None]]

ORDERS = ("classes", "gain")
MEAN = "mean"


class Panel(NamedTuple):
    """Rows below each other: K names with a `(K, R)` table of percent, NaN where a class is not in the data."""

    heading: str
    names: list[str]
    values: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """`(K,)` points, last result minus first."""
        return self.values[:, -1] - self.values[:, 0]

    def part(self, indices: Sequence[int], heading: str = "") -> Panel:
        """The panel of these rows alone."""
        return Panel(heading, [self.names[index] for index in indices], self.values[list(indices)])

    @property
    def means(self) -> np.ndarray:
        """`(R,)` mean of each result over the classes that it has a value for."""
        return np.nanmean(self.values, axis=0)

    def with_row(self, name: str, values: np.ndarray) -> Panel:
        """The panel with one more row, on top."""
        return self._replace(names=[name, *self.names], values=np.vstack([values, self.values]))


def percent_table(results: Results, most_results: int) -> Panel:
    """All classes of all results, in the first one's order.

    Raises:
        ValueError: See `plot_class_iou`.
    """
    if not 1 <= len(results) <= most_results:
        raise ValueError(f"{len(results)} results were passed; one to {most_results} fit in one picture.")
    (first, names), *others = ((name, list(classes)) for name, classes in results.items())
    for other, theirs in others:
        if difference := sorted(set(names) ^ set(theirs)):
            more = f" and {len(difference) - 10} more" if len(difference) > 10 else ""
            raise ValueError(
                f"The classes of {first!r} and {other!r} differ: only one of them has {difference[:10]}{more}. "
                "Compare results on the same dataset."
            )
    columns = [_percent(name, classes, names) for name, classes in results.items()]
    return Panel("", names, np.array(columns).T)


def _percent(result: str, classes: Mapping[str, float | None], order: list[str]) -> list[float]:
    values = {name: math.nan if classes[name] is None else float(classes[name]) for name in order}
    for name, value in values.items():
        if not (math.isnan(value) or 0 <= value <= 1):
            raise ValueError(f"{result!r} gives {name!r} an IoU of {value}; pass fractions from 0 to 1, not percent.")
    if all(math.isnan(value) for value in values.values()):
        raise ValueError(f"{result!r} has no IoU of any class; evaluate it on data with labels.")
    return [100 * value for value in values.values()]


def arrange(table: Panel, order: str, most_rows: Sequence[int], most_extremes: int) -> list[Panel]:
    """The rows in panels of about equal length, the mean first; only the most extreme classes if all are too many.

    Args:
        table: All classes.
        order: One of `ORDERS`.
        most_rows: Rows that fit in one panel if there is one, if there are two and so on.
        most_extremes: Rows in each of the two panels of extreme classes.

    Raises:
        ValueError: If the order is unknown, or is by gain and there is one result only.
    """
    if order not in ORDERS:
        raise ValueError(f"order={order!r} is unknown; known are {', '.join(ORDERS)}.")
    if order == "gain" and table.values.shape[1] < 2:
        raise ValueError("order='gain' compares the last result with the first; pass a second one or order='classes'.")
    indices = np.argsort(-table.gain, kind="stable") if order == "gain" else range(len(table.names))  # NaN comes last
    rows = table.part(indices).with_row(MEAN, table.means)
    for n_panels, most in enumerate(most_rows, start=1):
        if len(rows.names) <= n_panels * most:
            return [rows.part(part) for part in np.array_split(np.arange(len(rows.names)), n_panels)]
    first, *others = _extremes(table, most_extremes)
    return [first.with_row(MEAN, table.means), *others]


def _extremes(table: Panel, most: int) -> list[Panel]:
    """The largest gains and the largest losses; of one result the highest and the lowest IoU."""
    single = table.values.shape[1] == 1
    ranked = table.values[:, 0] if single else table.gain
    falling = [index for index in np.argsort(-ranked, kind="stable") if not math.isnan(ranked[index])]
    if single:
        half = min(most, len(falling) // 2)
        top, bottom = falling[:half], falling[::-1][:half]
        names = [f"Highest {half} of {len(falling)}", f"Lowest {half} of {len(falling)}"]
    else:
        gains = [index for index in falling if ranked[index] > 0]
        losses = [index for index in falling[::-1] if ranked[index] < 0]
        top, bottom = gains[:most], losses[:most]
        names = [f"Largest gains: {len(top)} of {len(gains)}", f"Largest losses: {len(bottom)} of {len(losses)}"]
    return [table.part(rows, name) for rows, name in zip((top, bottom), names, strict=True)]
