"""Cars, vans and trucks: outlines that are extruded to the car's width and seen from any side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import CAR, Canvas, Colour, Point, View
from .chance import blend

# Outlines from the rear bumper over the roof to the front one, (metres along, metres up); then the numbers of the two
# edges that are glass (rear window, windscreen), and half the width.
OUTLINES = {
    "saloon": (((0, 0.3), (0, 0.78), (0.12, 0.96), (0.7, 1.0), (1.25, 1.42), (2.65, 1.42), (3.4, 0.98), (4.3, 0.8),
                (4.42, 0.3)), (3, 5), 0.88),
    "hatch": (((0, 0.3), (0, 0.9), (0.1, 1.02), (0.5, 1.5), (2.2, 1.52), (3.0, 1.02), (3.8, 0.86), (3.92, 0.3)),
              (2, 4), 0.85),
    "suv": (((0, 0.38), (0, 1.0), (0.08, 1.12), (0.4, 1.72), (2.7, 1.74), (3.5, 1.14), (4.4, 1.0), (4.5, 0.38)),
            (2, 4), 0.95),
    "van": (((0, 0.35), (0, 1.2), (0.05, 1.25), (0.15, 2.1), (3.7, 2.15), (4.4, 1.25), (5.0, 1.05), (5.05, 0.35)),
            (2, 4), 0.98),
    "truck": (((0, 0.5), (0, 1.3), (0.02, 1.4), (0.04, 2.9), (5.9, 2.95), (6.2, 1.5), (6.5, 1.3), (6.5, 0.45)),
              (4, 4), 1.1),
}  # fmt: skip
# The corners of a twelve-sided wheel of radius 1.
WHEEL = ((0, 1), (0.5, 0.87), (0.87, 0.5), (1, 0), (0.87, -0.5), (0.5, -0.87),
         (0, -1), (-0.5, -0.87), (-0.87, -0.5), (-1, 0), (-0.87, 0.5), (-0.5, 0.87))  # fmt: skip


@dataclass(frozen=True)
class Car:
    """A vehicle whose nearest end is at `z` (its middle when `heading` is across the street).

    `heading` is "away", "towards", "left" or "right".
    """

    x: float
    z: float
    kind: str
    heading: str
    colour: Colour

    @property
    def length(self) -> float:
        return OUTLINES[self.kind][0][-1][0]

    @property
    def half_width(self) -> float:
        return OUTLINES[self.kind][2]

    @property
    def crosses(self) -> bool:
        return self.heading in ("left", "right")

    def place(self, u: float, v: float) -> Point:
        """Ground position (x, z) of a point `u` metres ahead of the rear and `v` metres to the side."""
        if self.heading == "away":
            return self.x + v, self.z + u
        if self.heading == "towards":
            return self.x + v, self.z + self.length - u
        sign = 1 if self.heading == "right" else -1
        return self.x + sign * (u - self.length / 2), self.z + v

    def eye(self, view: View) -> Point:
        """Where the camera is, in the car's own (u, v)."""
        x = self.x + view.bend * self.z * self.z
        if self.heading == "away":
            return -self.z, -x
        if self.heading == "towards":
            return self.length + self.z, -x
        return self.length / 2 - (x if self.heading == "right" else -x), -self.z


def paint_car(canvas: Canvas, rng: np.random.Generator, car: Car) -> None:
    """The faces of an extruded outline that the camera can see, then wheels, windows and lamps."""
    outline, glass, half = OUTLINES[car.kind]
    eye_u, eye_v = car.eye(canvas.view)
    belt = outline[2][1]
    widths = [half if y <= belt else 0.84 * half for _, y in outline]
    faces = []
    for number, ((u0, y0), (u1, y1)) in enumerate(zip(outline, outline[1:], strict=False)):
        towards = -(y1 - y0) * (eye_u - u0) + (u1 - u0) * (canvas.view.camera - y0)
        if towards > 0:
            faces.append((abs((u0 + u1) / 2 - eye_u), number))
    side = 1 if eye_v > half else -1 if eye_v < -half else 0
    if not car.crosses or not side:
        _paint_ends(canvas, car, sorted(faces, reverse=True), widths)
    if side:
        _paint_side(canvas, car, side, widths)
    if car.crosses:
        _paint_ends(canvas, car, [face for face in faces if face[1] == glass[1]], widths)
    _paint_lamps(canvas, rng, car, eye_u)


def _corner(canvas: Canvas, car: Car, u: float, v: float, y: float) -> Point:
    x, z = car.place(u, v)
    return canvas.view.project(x, y, z)


def _paint_ends(canvas: Canvas, car: Car, faces: list[tuple[float, int]], widths: list[float]) -> None:
    outline, glass, half = OUTLINES[car.kind]
    near_u = 0 if car.heading != "towards" else car.length
    if not car.crosses:
        tyre = canvas.light.shine((26, 26, 28), car.z)
        for v in (-half + 0.22, half - 0.22):
            corners = [
                _corner(canvas, car, near_u, v + w, y) for w, y in ((-0.2, 0), (-0.2, 0.5), (0.2, 0.5), (0.2, 0))
            ]
            canvas.shape(corners, tyre, CAR)
    for _, number in faces:
        (u0, y0), (u1, y1), w0, w1 = outline[number], outline[number + 1], widths[number], widths[number + 1]
        corners = [_corner(canvas, car, u, v, y) for u, v, y in
                   ((u0, -w0, y0), (u1, -w1, y1), (u1, w1, y1), (u0, w0, y0))]  # fmt: skip
        level = abs(u1 - u0) / (abs(u1 - u0) + abs(y1 - y0))
        if number in glass:
            canvas.shape(corners, canvas.light.shine(car.colour, car.z, 0.8), CAR, 8)
            middle = [sum(axis) / 4 for axis in zip(*corners, strict=True)]
            pane = [(middle[0] + 0.84 * (x - middle[0]), middle[1] + 0.84 * (y - middle[1])) for x, y in corners]
            canvas.shape(pane, _glass(canvas, car.z))
        else:
            canvas.shape(corners, canvas.light.shine(car.colour, car.z, 0.8 + 0.35 * level), CAR, 8)


def _glass(canvas: Canvas, distance: float) -> Colour:
    return canvas.light.shine(blend((34, 40, 48), canvas.light.sky_low, 0.22), distance, 0.9)


def _paint_side(canvas: Canvas, car: Car, side: int, widths: list[float]) -> None:
    outline, _, half = OUTLINES[car.kind]
    gain = canvas.light.wall_gain((0, -1) if car.crosses else (side, 0))
    body = [_corner(canvas, car, u, side * w, y) for (u, y), w in zip(outline, widths, strict=True)]
    canvas.shape(body, canvas.light.shine(car.colour, car.z, 0.85 * gain), CAR, 8)
    _paint_side_windows(canvas, car, side * half)
    for u in (0.19 * car.length, 0.8 * car.length):
        for radius, shade, class_id in ((0.34, (24, 24, 26), CAR), (0.18, (128, 130, 134), None)):
            rim = [_corner(canvas, car, u + radius * a, side * half, 0.34 + radius * b) for a, b in WHEEL]
            canvas.shape(rim, canvas.light.shine(shade, car.z), class_id)


def _paint_side_windows(canvas: Canvas, car: Car, v: float) -> None:
    outline = OUTLINES[car.kind][0]
    belt, roof = outline[2][1] + 0.03, max(y for _, y in outline)
    tops = [u for u, y in outline if y > roof - 0.06]
    feet = [u for u, y in outline if y >= belt - 0.06 and y < roof - 0.06]
    if car.kind in ("van", "truck"):  # closed sides, windows for the driver only
        panes = [((tops[-1] - 1.0, belt), (tops[-1] - 1.0, roof - 0.3), (tops[-1], roof - 0.3), (feet[-1] - 0.1, belt))]
    else:
        split = (tops[0] + tops[-1]) / 2
        panes = [
            ((feet[0] + 0.25, belt), (tops[0] + 0.08, roof - 0.1), (split - 0.06, roof - 0.1), (split - 0.06, belt)),
            ((split + 0.06, belt), (split + 0.06, roof - 0.1), (tops[-1], roof - 0.1), (feet[-1] - 0.25, belt)),
        ]
    for pane in panes:
        shrink = [0.86 if y > belt + 0.01 else 0.97 for _, y in pane]
        canvas.shape(
            [_corner(canvas, car, u, v * k, y) for (u, y), k in zip(pane, shrink, strict=True)], _glass(canvas, car.z)
        )


def _paint_lamps(canvas: Canvas, rng: np.random.Generator, car: Car, eye_u: float) -> None:
    if car.crosses:
        return
    dark, rear = canvas.light.lit_share > 0.15, car.heading == "away"
    lit = dark or (rear and rng.random() < 0.35)
    shade = ((250, 40, 30) if lit else (140, 26, 26)) if rear else ((255, 246, 214) if lit else (214, 216, 214))
    colour = canvas.light.shine(shade, car.z, 1.0, lit)
    u, y = (0, 0.78) if rear else (car.length, 0.62)
    for v in (-car.half_width + 0.18, car.half_width - 0.18):
        corners = [
            _corner(canvas, car, u, v + a, y + b) for a, b in ((-0.14, -0.1), (-0.14, 0.1), (0.14, 0.1), (0.14, -0.1))
        ]
        canvas.shape(corners, colour)
        if dark:
            canvas.glows.append((*corners[0], (0.25 if rear else 0.6) * canvas.view.focal / max(car.z, 3), shade))
    plate = [_corner(canvas, car, u, v, w) for v, w in ((-0.26, 0.48), (-0.26, 0.6), (0.26, 0.6), (0.26, 0.48))]
    canvas.shape(plate, canvas.light.shine((226, 224, 206), car.z))
