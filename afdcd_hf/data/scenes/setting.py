"""The setting of a scene: where the camera looks, time of day and weather, and the street's ground plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Light, View
from .chance import any_of, between


@dataclass(frozen=True)
class Street:
    """The ground plan: kerbs and lane lines at fixed x, pavement widths (left, right), what crosses at which z."""

    left: float
    right: float
    lines: tuple[float, ...]
    pavements: tuple[float, float]
    side_road: tuple[float, float] | None
    zebra: float | None
    season: str


def choose_view(rng: np.random.Generator, height: int, width: int) -> View:
    """A camera of random height, direction and focal length, on a straight or curved street."""
    wide, tall = 2 * width, 2 * height
    focal = between(rng, 1.25, 1.75) * min(tall, wide / 1.3)
    bend = between(rng, -0.0028, 0.0028) if rng.random() < 0.5 else 0.0
    return View(
        wide,
        tall,
        horizon=tall * between(rng, 0.4, 0.58),
        centre=wide * between(rng, 0.38, 0.62),
        focal=focal,
        camera=between(rng, 1.3, 2.2),
        bend=bend,
    )


def choose_light(rng: np.random.Generator) -> Light:
    """Time of day and weather."""
    chance, side = rng.random(), any_of(rng, -1, 1)
    sun = (side * between(rng, 0.3, 1.3), between(rng, -0.8, 0.8))
    still = (0.0, 0.0)
    if chance < 0.4:
        return Light((96, 148, 214), (190, 210, 232), (1.06, 1.03, 0.97), 0.003, sun, between(rng, 0.35, 0.55), 0.0,
                     between(rng, 0, 1), 0.0)  # fmt: skip
    if chance < 0.64:
        grey = int(rng.integers(150, 215))
        return Light((grey, grey, grey + 4), (208, 210, 212), (0.9, 0.91, 0.93), 0.006, still, 0.25, 0.03, 0.6,
                     any_of(rng, 0.0, 0.0, 0.4))  # fmt: skip
    if chance < 0.77:
        return Light((96, 104, 150), (236, 172, 128), (0.8, 0.66, 0.62), 0.006, (2 * sun[0], sun[1]), 0.35, 0.22, 0.8,
                     any_of(rng, 0.0, 0.3))  # fmt: skip
    if chance < 0.89:
        return Light((20, 24, 46), (66, 58, 70), (0.56, 0.54, 0.6), 0.005, still, 0.3, 0.42, 0.4, any_of(rng, 0.0, 0.5))
    return Light((186, 188, 190), (204, 204, 202), (0.88, 0.88, 0.88), 0.022, still, 0.2, 0.06, 0.2, 0.2)


def choose_street(rng: np.random.Generator) -> Street:
    """Two to four lanes with the camera in one of them."""
    lane, lanes = between(rng, 2.9, 3.4), any_of(rng, 2, 2, 3, 3, 4)
    own = int(rng.integers(lanes))
    parking = [2.2 * float(rng.random() < 0.6) for _ in range(2)]
    left = -lane * (own + 0.5) - parking[0]
    right = lane * (lanes - own - 0.5) + parking[1]
    lines = tuple(-lane * (own + 0.5) + lane * number for number in range(lanes + 1))
    side_road = between(rng, 12, 40) if rng.random() < 0.35 else None
    zebra = between(rng, 7, 22) if rng.random() < 0.3 else None
    if side_road and rng.random() < 0.6:
        zebra = side_road - 4.0
    return Street(left, right, lines, (between(rng, 2.2, 5.5), between(rng, 2.2, 5.5)),
                  (side_road, side_road + between(rng, 6, 10)) if side_road else None, zebra,
                  any_of(rng, "summer", "summer", "autumn", "spring", "winter"))  # fmt: skip
