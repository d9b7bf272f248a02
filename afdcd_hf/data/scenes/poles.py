"""Poles at the kerb, and what they carry: lamps, signs, traffic lights and wires."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import POLE, Canvas, Colour
from .chance import WARM_LIGHT, pick


@dataclass(frozen=True)
class Pole:
    """Something thin at the kerb: a "lamp", "sign", "signal", "utility" or "bollard".

    `inward` is 1 where the road lies to the right, -1 where it lies to the left.
    """

    x: float
    z: float
    kind: str
    inward: int
    colour: Colour


def paint_pole(canvas: Canvas, rng: np.random.Generator, pole: Pole) -> None:
    """The post, and what it carries (labelled as pole as well)."""
    column, ground, scale = canvas.view.foot(pole.x, pole.z)
    size = 0.9 + 0.25 * rng.random()
    height = size * {"lamp": 6.4, "sign": 2.7, "signal": 3.6, "utility": 8.0, "bollard": 0.95}[pole.kind]
    width = scale * {"lamp": 0.15, "sign": 0.1, "signal": 0.15, "utility": 0.24, "bollard": 0.2}[pole.kind]
    top = ground - height * scale
    canvas.bar(column, top, ground, width, canvas.light.shine(pole.colour, pole.z), POLE)
    if pole.kind == "bollard":
        return
    head = {"lamp": _paint_lamp, "sign": _paint_sign, "signal": _paint_signal, "utility": _paint_crossbars}[pole.kind]
    head(canvas, rng, pole, column, top, scale)


def _paint_lamp(canvas: Canvas, rng: np.random.Generator, pole: Pole, column: float, top: float, scale: float) -> None:
    metal, reach = canvas.light.shine(pole.colour, pole.z), pole.inward * (1.0 + rng.random()) * scale
    end = (column + reach, top - 0.25 * scale)
    canvas.stroke((column, top), end, 0.1 * scale, metal, POLE)
    lit = canvas.light.lit_share > 0.15
    bulb = canvas.light.shine(WARM_LIGHT, pole.z, 1.0, True) if lit else metal
    canvas.disc(end[0], end[1], 0.35 * scale + 0.5, 0.13 * scale + 0.8, bulb, POLE)
    if lit:
        canvas.glows.append((end[0], end[1], 0.9 * scale, WARM_LIGHT))


def _paint_sign(canvas: Canvas, rng: np.random.Generator, pole: Pole, column: float, top: float, scale: float) -> None:
    shades = ((200, 40, 40), (40, 80, 170), (225, 190, 50), (225, 225, 220), (40, 110, 70), (110, 110, 112))
    rim, face = (canvas.light.shine(pick(rng, shades), pole.z) for _ in range(2))
    radius, kind = 0.36 * scale + 0.6, int(rng.integers(3))
    middle = top + 0.8 * radius
    if kind == 0:
        canvas.disc(column, middle, radius, radius, rim, POLE)
        canvas.disc(column, middle, 0.6 * radius, 0.6 * radius, face)
    elif kind == 1:
        corners = [(column - radius, middle + radius), (column, middle - radius), (column + radius, middle + radius)]
        canvas.shape(corners, rim, POLE)
        canvas.shape(
            [(column + 0.5 * (x - column), middle + 0.2 * radius + 0.5 * (y - middle)) for x, y in corners], face
        )
    else:
        canvas.bar(column, middle - radius, middle + radius, 2 * radius, rim, POLE)
        canvas.bar(column, middle - 0.6 * radius, middle + 0.2 * radius, 1.4 * radius, face)


def _paint_signal(
    canvas: Canvas, rng: np.random.Generator, pole: Pole, column: float, top: float, scale: float
) -> None:
    box, on = canvas.light.shine((40, 42, 40), pole.z), int(rng.integers(3))
    if rng.random() < 0.4:  # the lights hang over the road
        arm = column + pole.inward * 2.2 * scale
        canvas.stroke((column, top), (arm, top), 0.12 * scale, canvas.light.shine(pole.colour, pole.z), POLE)
        column = arm
    canvas.bar(column, top - 0.1 * scale, top + 1.0 * scale, 0.42 * scale + 1, box, POLE)
    for number, lamp in enumerate(((235, 50, 40), (240, 180, 50), (70, 220, 130))):
        colour = canvas.light.shine(lamp, pole.z, 1.0 if number == on else 0.3, number == on)
        radius = max(0.6, 0.12 * scale)
        canvas.disc(column, top + (0.12 + 0.32 * number) * scale, radius, radius, colour)


def _paint_crossbars(
    canvas: Canvas, rng: np.random.Generator, pole: Pole, column: float, top: float, scale: float
) -> None:
    """Crossbars and wires; wires are too thin for a label, as in real data sets."""
    wood, reach = canvas.light.shine(pole.colour, pole.z), 0.9 * scale
    for drop in (0.3, 1.0)[: int(rng.integers(1, 3))]:
        row = top + drop * scale
        canvas.stroke((column - reach, row), (column + reach, row), 0.14 * scale, wood, POLE)
        far = canvas.view.project(pole.x, 7.0, pole.z + 30)
        for end in (-reach, reach):
            canvas.stroke((column + end, row), far, 1, wood)
