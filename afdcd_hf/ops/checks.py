"""Option checks for the contrast and the losses: functions of name and value that raise ValueError."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from numbers import Integral, Real
from typing import Any

Check = Callable[[str, Any], None]


def optional(check: Check) -> Check:
    """Return the same check, but let None pass."""
    return lambda name, value: None if value is None else check(name, value)


def check_choice(name: str, value: Any, known: Iterable[object]) -> None:
    """Reject a value that is not one of the `known`, and list them."""
    if value not in (names := list(known)):
        raise ValueError(f"unknown {name}={value!r}; use one of {', '.join(map(repr, names))}.")


check_flag = partial(check_choice, known=(True, False))


def check_ignore_index(name: str, value: Any) -> None:
    """Reject anything but a whole number or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise ValueError(f"{name}={value!r} must be a whole number, or None if no label is ignored.")


def check_whole(name: str, value: Any) -> None:
    """Reject anything but a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def _finite(holds: Callable[[Any], bool], must: str) -> Check:
    """Return a check for finite numbers that satisfy `holds`."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, str):
            # YAML 1.1 reads 2e-6 as text, the most common way for a string to get here
            raise ValueError(f"{name}={value!r} is text, not a number; in a YAML file write 2e-6 as 2.0e-6.")
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be a finite number.")
        if not holds(value):
            raise ValueError(f"{name}={value!r} must {must}.")

    return check


check_positive = _finite(lambda value: value > 0, "be greater than 0")
check_weight = _finite(lambda value: value >= 0, "not be negative; 0 switches the term off")
check_fraction = _finite(lambda value: 0 <= value < 1, "be at least 0 and less than 1")


def check_divides(groups: int, channels: int, of: str) -> None:
    """Reject channel groups that do not divide `channels`, called `of` in the error, and suggest nearby divisors."""
    if channels % groups == 0:
        return
    # one group has no contrast over channels, so it is not suggested
    divisors = [number for number in range(2, channels + 1) if channels % number == 0] or [1]
    *near, last = sorted(sorted(divisors, key=lambda number: abs(number - groups))[:3])
    either = f"{', '.join(map(str, near))} or {last}" if near else last
    raise ValueError(f"channel_groups={groups} does not divide {of}; use a divisor such as {either}.")
