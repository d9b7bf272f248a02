"""Buildings: roofs, walls, windows, posters, shops and doors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import BUILDING, Canvas, Colour, Light, Point, View
from .chance import SKINS, URBAN, WARM_LIGHT, blend, pick


@dataclass(frozen=True)
class Wall:
    """An upright rectangle on the ground that starts at (x, z) and runs in direction (dx, dz)."""

    view: View
    x: float
    z: float
    dx: float
    dz: float
    length: float
    height: float
    gain: float

    def post(self, u: float) -> Point:
        """`View.post` at `u` metres along the wall."""
        return self.view.post(self.x + self.dx * u, self.z + self.dz * u)

    def quad(self, u0: float, u1: float, y0: float, y1: float) -> list[Point]:
        """The corners of a panel of the wall, in pixels."""
        (xa, sa), (xb, sb) = self.post(u0), self.post(u1)
        row, eye = self.view.horizon, self.view.camera
        return [(xa, row + sa * (eye - y0)), (xa, row + sa * (eye - y1)),
                (xb, row + sb * (eye - y1)), (xb, row + sb * (eye - y0))]  # fmt: skip

    @property
    def distance(self) -> float:
        return self.z + self.dz * self.length / 2


@dataclass(frozen=True)
class Building:
    """A block on one `side` (-1 left, 1 right) of the street whose face along it stands at `x` from `z0` to `z1`."""

    side: int
    x: float
    z0: float
    z1: float
    height: float
    depth: float
    colour: Colour
    trim: Colour
    glass: Colour
    windows: str  # "grid", "tall", "ribbon", "glass" or "none"
    street_level: str  # "shop", "doors" or "plain"
    pitched: bool
    grain: int


def paint_building(canvas: Canvas, rng: np.random.Generator, block: Building) -> None:
    """Roof, the wall that faces the camera, and the wall along the street."""
    light = canvas.light
    front = Wall(canvas.view, block.x, block.z0, block.side, 0, block.depth, block.height, light.wall_gain((0, -1)))
    along = Wall(canvas.view, block.x, block.z0, 0, 1, block.z1 - block.z0, block.height,
                 light.wall_gain((-block.side, 0)))  # fmt: skip
    _paint_roof(canvas, rng, block)
    for wall in (front, along):
        _paint_wall(canvas, rng, block, wall)


def _paint_roof(canvas: Canvas, rng: np.random.Generator, block: Building) -> None:
    view, ink = canvas.view, canvas.light.shine
    top, middle = block.height, block.x + block.side * block.depth / 2
    if block.pitched:
        ridge = top + 0.3 * block.depth
        slope = [view.project(block.x, top, block.z0), view.project(block.x, top, block.z1),
                 view.project(middle, ridge, block.z1), view.project(middle, ridge, block.z0)]  # fmt: skip
        gable = [slope[0], slope[3], view.project(block.x + block.side * block.depth, top, block.z0)]
        canvas.shape(slope, ink(block.trim, block.z1, 0.9), BUILDING, block.grain)
        canvas.shape(gable, ink(block.colour, block.z0, 0.95), BUILDING, block.grain)
        top = top + 0.2 * block.depth
    for u in rng.random(int(rng.integers(0, 3))).tolist():
        column, scale = view.post(block.x + block.side * (1 + u), block.z0 + u * (block.z1 - block.z0))
        base, rise = view.horizon + scale * (view.camera - top + 1.5), (2.2 + u) * scale
        canvas.bar(column, base - rise, base, 1.1 * scale, ink(block.trim, block.z0, 0.7), BUILDING)


def _paint_wall(canvas: Canvas, rng: np.random.Generator, block: Building, wall: Wall) -> None:
    ends = wall.post(0)[0], wall.post(wall.length)[0]
    if max(ends) < 0 or min(ends) > canvas.view.width or abs(ends[0] - ends[1]) < 1:
        return
    colour = canvas.light.shine(block.colour, wall.distance, wall.gain)
    canvas.shape(wall.quad(0, wall.length, 0, wall.height), colour, BUILDING, block.grain)
    if block.windows == "glass":
        _paint_curtain_wall(canvas, block, wall)
    elif block.windows != "none":
        _paint_windows(canvas, rng, block, wall)
    elif wall.length > 4 and wall.height > 5:
        _paint_billboard(canvas, rng, wall)
    if block.street_level != "plain" and wall.distance < 45:
        _paint_street_level(canvas, rng, block, wall)
    _paint_wall_edges(canvas, rng, block, wall)


def _paint_wall_edges(canvas: Canvas, rng: np.random.Generator, block: Building, wall: Wall) -> None:
    ink, length, height = canvas.light.shine, wall.length, wall.height
    cornice = ink(block.trim, wall.distance, wall.gain)
    canvas.shape(wall.quad(0, length, height - 0.4, height), cornice)
    if canvas.light.shadow > 0.3 and rng.random() < 0.35:  # the shadow of a neighbour, low on the wall
        reach = length * (0.2 + 0.5 * rng.random())
        dark = ink(block.colour, wall.distance, 0.5 * wall.gain)
        corners = wall.quad(0, reach, 0, min(height, 2.6))
        canvas.shape([corners[0], corners[1], corners[3]], dark)


def _paint_curtain_wall(canvas: Canvas, block: Building, wall: Wall) -> None:
    """A wall of glass that mirrors the sky, held by a grid of thin bars."""
    ink, light = canvas.light.shine, canvas.light
    floors = max(1, int(wall.height / 3.4))
    for floor in range(floors):
        share = 0.2 + 0.6 * floor / floors
        sky = blend(block.glass, light.sky_low if floor % 3 else light.sky_top, share)
        low = 0.4 + floor * (wall.height - 0.8) / floors
        high = low + 0.86 * wall.height / floors
        canvas.shape(wall.quad(0.2, wall.length - 0.2, low, min(high, wall.height)), ink(sky, wall.distance, 0.9, True))
    bars = ink(block.trim, wall.distance, wall.gain)
    for column in range(1, int(wall.length / 2.2)):
        foot, _, _, _ = corners = wall.quad(column * 2.2, column * 2.2, 0.4, wall.height)
        if -5 < foot[0] < canvas.view.width + 5:
            canvas.stroke(foot, corners[1], 1, bars)


def _paint_windows(canvas: Canvas, rng: np.random.Generator, block: Building, wall: Wall) -> None:
    pitch, width, rise = {"grid": (2.6, 1.3, 1.5), "tall": (1.9, 0.9, 2.1), "ribbon": (4.2, 3.9, 1.3)}[block.windows]
    columns, floors = int(wall.length / pitch), int((wall.height - 0.9) / 3.1)
    if columns < 1 or floors < 1:
        return
    inks = _window_inks(canvas.light, block, wall)
    margin = (wall.length - columns * pitch + pitch - width) / 2
    chances = rng.random((columns, floors)).tolist()
    for column in range(columns):
        u = margin + column * pitch
        (xa, sa), (xb, sb) = wall.post(u), wall.post(u + width)
        if abs(xa - xb) >= 1.2 and max(xa, xb) > 0 and min(xa, xb) < canvas.view.width:
            for floor in range(1 if block.street_level != "plain" else 0, floors):
                _paint_window(canvas, inks, (xa, sa, xb, sb), 1.0 + 3.1 * floor, rise, chances[column][floor])


def _window_inks(light: Light, block: Building, wall: Wall) -> dict[str, Colour]:
    near, gain = wall.distance, wall.gain
    return {
        "frame": light.shine(block.trim, near, gain),
        "dark": light.shine(blend(block.glass, (22, 26, 32), 0.6), near),
        "glass": light.shine(block.glass, near, gain),
        "mirror": light.shine(blend(block.glass, light.sky_low, 0.6), near, 0.9, True),
        "lit": light.shine(WARM_LIGHT, near, 0.95, True),
        "share": light.lit_share,
    }


def _paint_window(canvas: Canvas, inks: dict, posts: tuple, low: float, rise: float, chance: float) -> None:
    (xa, sa, xb, sb), row, eye = posts, canvas.view.horizon, canvas.view.camera
    ya0, ya1, yb0, yb1 = (row + s * (eye - y) for s in (sa, sb) for y in (low, low + rise))
    if max(ya0, yb0) < 0:
        return
    if chance < inks["share"]:
        colour = inks["lit"]
    else:
        colour = inks[("dark", "glass", "mirror")[int(chance * 29) % 3]]
    if abs(xb - xa) > 7:
        pad = 1 if xb > xa else -1
        canvas.shape(
            [(xa - pad, ya0 + 1), (xa - pad, ya1 - 1), (xb + pad, yb1 - 1), (xb + pad, yb0 + 1)], inks["frame"]
        )
    canvas.shape([(xa, ya0), (xa, ya1), (xb, yb1), (xb, yb0)], colour)
    if abs(xb - xa) > 9:
        middle = (xa + xb) / 2
        canvas.stroke((middle, (ya0 + yb0) / 2), (middle, (ya1 + yb1) / 2), 1, inks["frame"])


def _paint_billboard(canvas: Canvas, rng: np.random.Generator, wall: Wall) -> None:
    """A poster with a picture of something that is not there: a figure, a car or a landscape."""
    ink, near, kind = canvas.light.shine, wall.distance, int(rng.integers(3))
    glowing = canvas.light.lit_share > 0.2
    u, y = 0.6 + rng.random() * 0.3 * wall.length, 2.2 + rng.random() * max(0.0, wall.height - 7)
    wide, high = min(wall.length - u - 0.3, 3.5 + 2 * rng.random()), min(3.4, wall.height - y - 0.3)

    def panel(left: float, right: float, low: float, top: float, colour: Colour) -> None:
        corners = wall.quad(u + left * wide, u + right * wide, y + low * high, y + top * high)
        canvas.shape(corners, ink(colour, near, 1.0, glowing))

    panel(0, 1, 0, 1, pick(rng, URBAN))
    if kind == 0:
        panel(0.4, 0.6, 0.05, 0.65, pick(rng, URBAN))
        panel(0.44, 0.56, 0.68, 0.88, pick(rng, SKINS))
    elif kind == 1:
        panel(0.1, 0.9, 0.2, 0.5, pick(rng, URBAN))
        panel(0.3, 0.75, 0.5, 0.75, (40, 46, 54))
        panel(0.18, 0.3, 0.1, 0.25, (20, 20, 22))
        panel(0.7, 0.82, 0.1, 0.25, (20, 20, 22))
    else:
        panel(0, 1, 0.4, 1, (130, 176, 220))
        panel(0, 1, 0, 0.4, (84, 130, 62))
        panel(0.6, 0.8, 0.3, 0.8, (58, 104, 48))


def _paint_street_level(canvas: Canvas, rng: np.random.Generator, block: Building, wall: Wall) -> None:
    """Doors of any colour, or shop windows below a sign and an awning."""
    ink, near, shop = canvas.light.shine, wall.distance, block.street_level == "shop"
    lit = shop and rng.random() < 0.2 + 2 * canvas.light.lit_share
    sign, door = pick(rng, URBAN), pick(rng, URBAN)
    if shop:
        canvas.shape(wall.quad(0.3, wall.length - 0.3, 2.7, 3.4), ink(sign, near, wall.gain))
    u, bay = 0.5, 3.0 if shop else 4.5
    while u + bay < wall.length:
        if shop:
            pane = WARM_LIGHT if lit else blend(block.glass, (30, 34, 40), 0.5)
            canvas.shape(wall.quad(u, u + 1.9, 0.5, 2.5), ink(pane, near, 0.8, lit))
            canvas.shape(wall.quad(u + 0.6, u + 1.0, 0.6, 1.9), ink(pick(rng, URBAN), near, 0.9))  # a dressed dummy
            if rng.random() < 0.4:
                canvas.shape(wall.quad(u - 0.1, u + 2.0, 2.2, 2.8), ink(pick(rng, URBAN), near))
        canvas.shape(wall.quad(u + bay - 1.0, u + bay - 0.1, 0, 2.2), ink(door, near, wall.gain))
        u += bay
