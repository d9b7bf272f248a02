"""Generated street scenes with exact labels: a small stand-in for a driving dataset, with nothing to download.

A scene is laid out in metres, painted from far to near and photographed. Colours are shared between classes on purpose,
so that shape and context have to be learned.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from .scene_canvas import Canvas, Chance, Colour, Label, Point, void_borders

# One palette for walls, doors, signs, vehicles and clothes: a colour alone must not give its class away.
URBAN: tuple[Colour, ...] = (
    (196, 188, 172), (158, 78, 60), (112, 112, 116), (72, 74, 80), (222, 218, 208), (140, 120, 98), (54, 66, 96),
    (66, 92, 66), (178, 150, 96), (96, 128, 150), (150, 44, 40), (38, 38, 42), (206, 170, 60), (120, 150, 120),
    (170, 176, 182), (90, 60, 48), (128, 116, 140), (204, 120, 84),
)  # fmt: skip
GREYS: tuple[Colour, ...] = (
    (92, 92, 96), (118, 117, 115), (140, 140, 142), (164, 160, 154), (72, 74, 78), (150, 138, 124),
)  # fmt: skip
MARKS: tuple[Colour, ...] = ((226, 226, 220), (186, 184, 178), (214, 190, 110))
LEAVES: tuple[tuple[Colour, ...], ...] = (
    ((70, 104, 48), (92, 122, 58), (54, 86, 50), (110, 128, 66)),  # summer
    ((186, 112, 44), (168, 66, 42), (196, 152, 60), (128, 96, 52)),  # autumn
    ((128, 152, 74), (214, 172, 182), (226, 214, 210), (98, 132, 66)),  # spring
    ((58, 78, 56), (84, 84, 62), (112, 98, 76)),  # winter
)
SKINS: tuple[Colour, ...] = ((232, 190, 160), (198, 146, 112), (146, 98, 70), (92, 62, 46))
HAIRS: tuple[Colour, ...] = ((34, 28, 26), (88, 60, 40), (176, 142, 92), (150, 150, 150), (150, 44, 40))
GLASS: tuple[Colour, ...] = ((22, 26, 32), (60, 74, 88), (96, 118, 136), (120, 130, 128))
BARK, LAMPLIGHT = (82, 70, 60), (255, 214, 142)
# Spacing, width and height of windows in metres.
WINDOWS = ((2.6, 1.3, 1.5), (2.6, 1.3, 1.5), (1.9, 0.9, 2.1), (4.2, 3.9, 1.3), (2.2, 2.0, 2.6))
# Outlines from the rear bumper over the roof to the front one, (metres along, metres up); which edges are glass; half
# the width.
VEHICLES = (
    (((0, 0.3), (0, 0.78), (0.12, 0.96), (0.7, 1.0), (1.25, 1.42), (2.65, 1.42), (3.4, 0.98), (4.3, 0.8), (4.42, 0.3)),
     (3, 5), 0.88),
    (((0, 0.3), (0, 0.9), (0.1, 1.02), (0.5, 1.5), (2.2, 1.52), (3.0, 1.02), (3.8, 0.86), (3.92, 0.3)), (2, 4), 0.85),
    (((0, 0.38), (0, 1.0), (0.08, 1.12), (0.4, 1.72), (2.7, 1.74), (3.5, 1.14), (4.4, 1.0), (4.5, 0.38)), (2, 4), 0.95),
    (((0, 0.4), (0, 1.2), (0.05, 1.25), (0.15, 2.3), (4.2, 2.35), (4.9, 1.25), (5.5, 1.05), (5.55, 0.4)), (2, 4), 1.0),
)  # fmt: skip

# Height and width in metres.
POLES = {"lamp": (6.4, 0.15), "mast": (8.0, 0.24), "sign": (2.7, 0.1), "signal": (3.6, 0.15), "bollard": (0.95, 0.2)}
OCTAGON = ((0, 1), (0.7, 0.7), (1, 0), (0.7, -0.7), (0, -1), (-0.7, -0.7), (-1, 0), (-0.7, 0.7))

Thing = tuple[float, Callable[..., None], tuple[Any, ...]]  # distance, painter, the painter's arguments


def generate_scene(seed: int, size: tuple[int, int] = (96, 192)) -> tuple[np.ndarray, np.ndarray]:
    """Generate one labelled street scene, the same for the same seed (0 or more) and size (both sides at least 32).

    Returns:
        The image, (H, W, 3) uint8 RGB, and the label, (H, W) uint8: ids of `Label`, 255 = ignored.
    """
    seed, height, width = map(operator.index, (seed, *size))
    if seed < 0 or min(height, width) < 32:
        raise ValueError(f"seed={seed}, size={size}: the seed must be at least 0, height and width at least 32.")
    chance = Chance(str(seed))  # text is hashed, whereas some numbers beyond 32 bits give equal draws
    canvas = Canvas(chance, height, width)
    street = Street(chance)
    _paint_skyline(canvas, street)
    _paint_ground(canvas, street)
    things = [*_traffic(canvas, street), *_people(canvas, street)]
    for side in (-1, 1):
        things += [*_buildings(canvas, street, side), *_kerbside(canvas, street, side)]
    for _, paint, details in sorted(things, key=lambda thing: -thing[0]):
        paint(canvas, *details)
    if chance.random() < 0.35:  # the front of our own car, which datasets ignore
        bonnet, high = canvas.ink(Label.VOID, chance.colour(URBAN), gain=0.8), canvas.height * chance.uniform(0.05, 0.1)
        canvas.disc(canvas.width / 2, canvas.height, 0.7 * canvas.width, high, bonnet)
    image, label = canvas.photograph()
    return image, void_borders(label) if chance.random() < 0.3 else label


class Street:
    """The ground plan: kerbs and lane lines at fixed x, pavement widths, a zebra crossing, and the season."""

    def __init__(self, chance: Chance) -> None:
        lane, lanes = chance.uniform(2.9, 3.4), chance.one_of((2, 2, 3, 3, 4))
        own = chance.whole(0, lanes - 1)
        self.lines = [lane * (number - own - 0.5) for number in range(lanes + 1)]
        self.parking = {side: chance.random() < 0.5 for side in (-1, 1)}
        self.kerbs = {-1: self.lines[0] - 2.2 * self.parking[-1], 1: self.lines[-1] + 2.2 * self.parking[1]}
        self.pavements = {side: chance.uniform(2.2, 5.5) for side in (-1, 1)}
        self.zebra = chance.uniform(7, 22) if chance.random() < 0.4 else None
        self.leaves = chance.one_of(LEAVES)


def _paint_skyline(canvas: Canvas, street: Street) -> None:
    """Paint distant buildings and trees along the horizon."""
    chance, scale, x = canvas.chance, canvas.focal / 140, 0.0
    tall = chance.one_of((9, 16, 30)) * scale
    while x < canvas.width:
        width, height = chance.uniform(7, 22) * scale, chance.uniform(0.35, 1) * tall
        if chance.random() < 0.65:
            wall = canvas.ink(Label.BUILDING, chance.colour(URBAN), 110, grain=30)
            canvas.bar(x + width / 2, canvas.horizon - height, canvas.horizon + 2, width, wall)
        else:
            leaf = canvas.ink(Label.TREE, chance.colour(street.leaves), 110, grain=90)
            canvas.disc(x + width / 2, canvas.horizon, 0.6 * width, 0.5 * height, leaf)
        x += width * chance.uniform(0.7, 1.1)


def _paint_ground(canvas: Canvas, street: Street) -> None:
    """Paint road and pavements, with slabs, kerbs, lane marks, and a zebra crossing."""
    chance, top = canvas.chance, int(canvas.horizon) + 1
    rows = np.arange(top, canvas.height, dtype=np.float32)[:, None] + 0.5
    z = np.minimum(canvas.focal * canvas.eye / (rows - canvas.horizon), 140)
    x = (np.arange(canvas.width, dtype=np.float32) + 0.5 - canvas.centre) * (z / canvas.focal) - canvas.bend * z * z
    left, right, lines = street.kerbs[-1], street.kerbs[1], street.lines
    paving, slab = chance.colour(URBAN + GREYS), chance.uniform(0.8, 2)
    slabs = [canvas.ink(Label.SIDEWALK, paving, gain=chance.uniform(0.88, 1.08), grain=50) for _ in range(4)]
    which = np.where(z < 15, np.floor(x / slab) + 3 * np.floor(z / slab), 0)
    shapes = slabs[0] + which.astype(np.int32) % 4
    shapes[(x > left - 0.25) & (x < right + 0.25)] = canvas.ink(Label.SIDEWALK, paving, gain=1.25)
    road = (x > left) & (x < right)
    shapes[road] = canvas.ink(Label.ROAD, chance.colour(GREYS), grain=70)
    if chance.random() < 0.25:  # a cycle or bus lane
        shapes[road & (x > lines[-2])] = canvas.ink(Label.ROAD, chance.colour(URBAN), grain=70)
    half, period = 0.06 + 0.0012 * z, chance.uniform(6, 11)
    broken = (z + chance.uniform(0, 9)) % period < 0.45 * period
    marks = (np.abs(x - lines[0]) < half) | (np.abs(x - lines[-1]) < half)
    for line in lines[1:-1]:
        marks |= (np.abs(x - line) < half) & broken
    if street.zebra:
        marks |= (z > street.zebra) & (z < street.zebra + 3) & (np.floor(1.8 * x) % 2 == 0)
    shapes[marks & road] = canvas.ink(Label.ROAD, chance.colour(MARKS))
    canvas.shapes.paste(Image.fromarray(shapes), (0, top))


def _buildings(canvas: Canvas, street: Street, side: int) -> Iterator[Thing]:
    """Yield a row of similar buildings, with trees in the gaps; a building's distance is that of its far end."""
    chance, line = canvas.chance, street.kerbs[side] + side * street.pavements[side]
    low, high = chance.one_of(((3.5, 7), (4.5, 9), (6, 14), (10, 30)))
    gaps, z = chance.one_of((0.1, 0.3, 0.6)), chance.uniform(0.8, 6)
    while z < 110:
        end = z + chance.uniform(5, 16)
        if chance.random() < gaps:
            for _ in range(chance.whole(1, 3)):
                spot = chance.uniform(z, end)
                x = line + side * chance.uniform(1, 6)
                yield spot, _paint_tree, (x, spot, chance.one_of(("round", "bush", "bush")), street)
        else:
            x = line + side * max(0.0, chance.uniform(-8, 3.5))
            yield end, _paint_building, (side, x, z, end, chance.uniform(low, high))
        z = end + max(0.0, chance.uniform(-6, 3))


def _kerbside(canvas: Canvas, street: Street, side: int) -> Iterator[Thing]:
    """Yield trees in a row, lamps or wires, single signs and lights, bollards, parked cars."""
    chance, kerb, metal = canvas.chance, street.kerbs[side], canvas.chance.colour(GREYS + URBAN)
    x, first, step = kerb + side * chance.uniform(0.8, 1.4), chance.uniform(8, 14), chance.uniform(7, 13)
    for number in range(chance.whole(6, 9) if chance.random() < 0.45 else chance.whole(0, 2)):
        z = first + step * number
        yield z, _paint_tree, (x, z, chance.one_of(("round", "round", "round", "bare")), street)
    x = kerb + side * chance.uniform(0.3, 0.7)
    start, kind = _seen_from(canvas, x), chance.one_of(("lamp", "lamp", "mast"))
    first, step = start + chance.uniform(0, 8), chance.uniform(14, 24)
    poles = [(first + step * number, kind) for number in range(4 if chance.random() < 0.65 else 0)]
    poles += [(start * chance.uniform(1.1, 3), chance.one_of(("sign", "signal"))) for _ in range(chance.whole(0, 3))]
    if chance.random() < 0.25:
        poles += [(start + 2.5 * number, "bollard") for number in range(8)]
    for z, kind in poles:
        yield z, _paint_pole, (x, z, kind, -side, metal)
    z, share = chance.uniform(6, 14), chance.uniform(0.3, 0.75) * street.parking[side]
    while z < 70:
        if chance.random() < share:
            yield z, _paint_car, (kerb - side * 1.15, z, chance.random() < 0.67)
        z += chance.uniform(5.6, 7.5)


def _seen_from(canvas: Canvas, x: float) -> float:
    """Return how far away something at x must be to stand inside the image."""
    return max(5.5, abs(x) * canvas.focal / (0.42 * canvas.width))


def _traffic(canvas: Canvas, street: Street) -> Iterator[Thing]:
    """Yield up to two cars per lane, driving ahead of us, or towards us on the left."""
    chance = canvas.chance
    for start, end in zip(street.lines, street.lines[1:], strict=False):
        x = (start + end) / 2 + chance.uniform(-0.3, 0.3)
        away, z = end > 0 or chance.random() < 0.15, chance.uniform(9 if abs(x) < 1 else 6, 26)
        for _ in range(chance.whole(0, 2)):
            yield z, _paint_car, (x, z, away)
            z += chance.uniform(8, 25)


def _people(canvas: Canvas, street: Street) -> Iterator[Thing]:
    """Yield single people and small groups on the pavements, some on the zebra crossing or in the road."""
    chance, spots = canvas.chance, []
    for _ in range(chance.whole(3, 6)):
        side = chance.one_of((-1, 1))
        x = street.kerbs[side] + side * chance.uniform(0.5, street.pavements[side] - 0.4)
        z = _seen_from(canvas, x) * chance.uniform(1, 2.4)
        spots += [(x + 0.65 * n, z + chance.uniform(-0.3, 0.3)) for n in range(chance.one_of((1, 1, 2, 3)))]
    for _ in range(chance.whole(0, 4 if street.zebra else 1)):
        z = street.zebra + chance.uniform(0.3, 2.5) if street.zebra else chance.uniform(8, 20)
        spots.append((chance.uniform(street.kerbs[-1], street.kerbs[1]), z))
    for x, z in spots:
        yield z, _paint_person, (x, z, chance.uniform(1.55, 1.9) if chance.random() < 0.88 else chance.uniform(1, 1.4))


def _paint_building(canvas: Canvas, side: int, x: float, z0: float, z1: float, height: float) -> None:
    """Paint a block whose front faces us and whose side stands at x from z0 to z1, with windows and perhaps a shop."""
    chance, light, (dx, dz) = canvas.chance, canvas.light, canvas.sun
    colours = [chance.colour(palette) for palette in (URBAN + GREYS, URBAN, URBAN, GLASS)]
    grain, shop, (pitch, wide, rise) = chance.whole(8, 60), chance.random() < 0.4, chance.one_of(WINDOWS)
    if side * dx < 0:
        canvas.shade(((x, z0), (x, z1), (x + dx * height, z1 + dz * height), (x + dx * height, z0 + dz * height)))
    for along, length, sunlit in ((False, 9.0, dz > 0), (True, z1 - z0, side * dx > 0)):
        far = z0 + along * length / 2
        gain = 1 + light.shadow * (0.25 if sunlit else -0.5)
        wall, trim, sign, glass = (canvas.ink(Label.BUILDING, colour, far, gain, grain) for colour in colours)

        def panel(u: float, width: float, low: float, high: float, ink: int, along: bool = along) -> None:
            ends = [(x, z0 + end) if along else (x + side * end, z0) for end in (u, u + width)]
            canvas.panel(ends[0], ends[1], low, high, ink)

        panel(0, length, 0, height, wall)
        panel(0, length, height - 0.4, height, trim)
        if abs(canvas.post(*(x, z1) if along else (x + side * length, z0))[0] - canvas.post(x, z0)[0]) < 12:
            continue
        sky = canvas.ink(Label.BUILDING, light.low, gain=0.9, glows=True)
        panes = [glass, glass, sky, canvas.ink(Label.BUILDING, GLASS[0], far)]
        panes += [canvas.ink(Label.BUILDING, LAMPLIGHT, far, glows=True)] * round(12 * light.lit)
        for u in (0.4 + pitch * number for number in range(int((length - 0.3) / pitch))):
            for low in (1 + 3.1 * floor for floor in range(shop, int((height - 0.9) / 3.1))):
                if far < 20:
                    panel(u - 0.1, wide + 0.2, low - 0.1, low + rise + 0.1, trim)
                panel(u, wide, low, low + rise, chance.one_of(panes))
        if shop:
            panel(0, length, 2.7, 3.4, sign)
            for u in (0.4 + 3 * number for number in range(int(length / 3))):
                panel(u, 2.2, 0.4, 2.5, chance.one_of(panes))
                panel(u + 0.8, 0.5, 0.6, 1.9, chance.one_of((wall, trim, sign)))  # a mannequin


def _paint_tree(canvas: Canvas, x: float, z: float, kind: str, street: Street) -> None:
    """Paint a trunk with clumps of leaves, brighter at the top; a bush; or branches without leaves."""
    chance, (column, ground, scale) = canvas.chance, canvas.foot(x, z)
    height = chance.uniform(0.9, 2.2) if kind == "bush" else chance.uniform(4.2, 8.7)
    tall, leaf = height * scale, chance.colour(street.leaves)
    canvas.cast(x, z, 0.15 * height, height)
    if kind != "bush":
        bark = canvas.ink(Label.TREE, BARK, z, chance.uniform(0.7, 1.3), 60)
        canvas.pen.polygon([(column - 0.2 * scale - 1, ground), (column, ground - 0.8 * tall),
                        (column + 0.2 * scale + 1, ground)], bark)  # fmt: skip
    if kind == "bare":
        for number in range(12):
            start, reach = ground - (0.4 + 0.03 * number) * tall, chance.uniform(0.1, 0.3) * tall * (-1) ** number
            canvas.stroke((column, start), (column + reach, start - 0.3 * tall), 0.05 * scale, bark)
    else:
        ry = (0.5 if kind == "bush" else 0.34) * tall
        rx, middle = ry * (1.6 if kind == "bush" else 0.75 + 0.4 * chance.random()), ground - max(ry, tall - ry)
        inks = [canvas.ink(Label.TREE, leaf, z, 0.6 + 0.1 * step, 120) for step in range(7)]
        for _ in range(int(min(18, 7 + 0.4 * ry))):
            across, down, size = chance.uniform(-0.8, 0.8), chance.uniform(-0.8, 0.8), chance.uniform(0.15, 0.42)
            down *= 1 - 0.6 * abs(across)
            ink = inks[int(3 - 2.2 * down - across * canvas.sun[0] + chance.random())]
            canvas.disc(column + across * rx, middle + down * ry, size * rx + 1, size * ry + 1, ink)


def _paint_pole(canvas: Canvas, x: float, z: float, kind: str, inward: int, metal: Colour) -> None:
    """Paint a post with a lamp, a sign or traffic lights, all labelled as pole; or a bollard."""
    chance, (column, ground, scale) = canvas.chance, canvas.foot(x, z)
    height, width = POLES[kind]
    height *= chance.uniform(0.9, 1.15)
    canvas.cast(x, z, 0.08, height)
    ink, top = canvas.ink(Label.POLE, metal, z), ground - height * scale
    canvas.bar(column, top, ground, width * scale, ink)
    if kind == "lamp":
        end, lit = column + inward * chance.uniform(1, 2) * scale, canvas.light.lit > 0.2
        canvas.stroke((column, top), (end, top - 0.25 * scale), 0.1 * scale, ink)
        bulb = canvas.ink(Label.POLE, LAMPLIGHT if lit else metal, z, glows=lit)
        canvas.disc(end, top - 0.25 * scale, 0.35 * scale + 1, 0.13 * scale + 1, bulb)
    elif kind == "sign":
        rim, face = (canvas.ink(Label.POLE, chance.colour(URBAN + MARKS), z) for _ in range(2))
        shape, y = canvas.pen.ellipse if chance.random() < 0.5 else canvas.pen.rectangle, top + 0.3 * scale
        for radius, paint in ((0.36 * scale + 1, rim), (0.22 * scale, face)):
            shape((column - radius, y - radius, column + radius, y + radius), paint)
    elif kind == "signal":
        if chance.random() < 0.4:  # the lights hang over the road
            canvas.stroke((column, top), (column + inward * 2.2 * scale, top), 0.12 * scale, ink)
            column += inward * 2.2 * scale
        canvas.bar(column, top - 0.1 * scale, top + scale, 0.42 * scale + 1, canvas.ink(Label.POLE, (40, 42, 40), z))
        on = chance.whole(0, 2)
        bulb = canvas.ink(Label.POLE, ((235, 50, 40), (240, 180, 50), (70, 220, 130))[on], z, glows=True)
        canvas.disc(column, top + (0.12 + 0.32 * on) * scale, 0.13 * scale, 0.13 * scale, bulb)


def _paint_car(canvas: Canvas, x: float, z: float, away: bool) -> None:
    """Paint an outline extruded to the car's width: the faces that we can see, its side, windows, wheels and lamps."""
    chance, light, polygon = canvas.chance, canvas.light, canvas.pen.polygon
    (outline, glass, half), colour = chance.one_of(VEHICLES), chance.colour(URBAN)
    length, belt = outline[-1][0], outline[2][1]
    eye = -z if away else z + length  # where we are along the car, from its rear

    def corner(u: float, v: float, y: float) -> Point:
        narrow = 0.84 if y > belt else 1.0
        return canvas.project(x + narrow * v, y, z + (u if away else length - u))

    canvas.shade([(x + a * half, z + b) for a, b in ((-1, -0.2), (-1, length), (1, length), (1, -0.2))])
    canvas.cast(x, z + length / 2, 1.5, 1.4)
    tyre, pane = canvas.ink(Label.CAR, (26, 26, 28), z), canvas.ink(Label.CAR, GLASS[0], z, 1.3)
    for v in (-half, half - 0.4):
        near = 0 if away else length
        polygon([corner(near, v + a, y) for a, y in ((0, 0), (0, 0.5), (0.4, 0.5), (0.4, 0))], tyre)
    edges = list(enumerate(zip(outline, outline[1:], strict=False)))
    for number, ((u0, y0), (u1, y1)) in edges[::-1] if away else edges:
        if (y0 - y1) * (eye - u0) + (u1 - u0) * (canvas.eye - y0) <= 0:
            continue
        level = abs(u1 - u0) / (abs(u1 - u0) + abs(y1 - y0))
        ink = canvas.ink(Label.CAR, colour, z, 0.8 + 0.35 * level, 8)
        polygon([corner(u0, -half, y0), corner(u1, -half, y1), corner(u1, half, y1), corner(u0, half, y0)], ink)
        if number in glass:
            a, b, v = u0 + 0.1 * (u1 - u0), u0 + 0.9 * (u1 - u0), 0.88 * half
            low, high = y0 + 0.1 * (y1 - y0), y0 + 0.9 * (y1 - y0)
            polygon([corner(a, -v, low), corner(b, -v, high), corner(b, v, high), corner(a, v, low)], pane)
    seen = x + canvas.bend * z * z
    if abs(seen) > half:
        v = -half if seen > 0 else half
        gain = 0.85 + light.shadow * (0.2 if v * canvas.sun[0] < 0 else -0.4)
        polygon([corner(u, v, y) for u, y in outline], canvas.ink(Label.CAR, colour, z, gain, 8))
        roof = [(u, y) for u, y in outline if y >= belt + 0.05]
        left, right, top = roof[0][0] + 0.1, roof[-1][0] - 0.1, max(y for _, y in roof) - 0.1
        window = [corner(u, v, y) for u, y in ((left, belt + 0.05), (left, top), (right, top), (right, belt + 0.05))]
        polygon(window, pane)
        for u in (0.19 * length, 0.8 * length):
            polygon([corner(u + 0.34 * a, v, 0.34 + 0.34 * b) for a, b in OCTAGON], tyre)
    lit = light.lit > 0.1 or chance.random() < 0.2
    lamp = canvas.ink(Label.CAR, (235, 40, 30) if away else (250, 240, 210), z, 1.0 if lit else 0.7, glows=lit)
    for v in (-half + 0.05, half - 0.35):
        u, y = (0, 0.68) if away else (length, 0.55)
        polygon([corner(u, v + a, y + b) for a, b in ((0, 0), (0, 0.2), (0.3, 0.2), (0.3, 0))], lamp)


def _paint_person(canvas: Canvas, x: float, z: float, height: float) -> None:
    """Paint legs, arms, body, head and hair, and perhaps a bag."""
    chance, polygon, (column, ground, scale) = canvas.chance, canvas.pen.polygon, canvas.foot(x, z)
    tall, stride, coat = height * scale, chance.uniform(0, 0.13), chance.uniform(-0.02, 0.2)
    top, legs, extra = (canvas.ink(Label.PERSON, chance.colour(URBAN), z, grain=25) for _ in range(3))
    skin, hair = canvas.ink(Label.PERSON, chance.colour(SKINS), z), canvas.ink(Label.PERSON, chance.colour(HAIRS), z)
    hip, neck, head = ground - 0.48 * tall, ground - 0.84 * tall, 0.068 * tall
    canvas.cast(x, z, 0.22, height)
    for sign in (-1, 1):
        foot = column + sign * (0.05 + stride) * tall
        side = column + sign * 0.1 * tall
        polygon([(side, hip), (column, hip), (foot - 0.045 * tall, ground), (foot + 0.045 * tall, ground)], legs)
        canvas.stroke((side, neck + 0.04 * tall), (side + sign * (0.06 + stride / 2) * tall, hip), 0.065 * tall, top)
    wide, hem = 0.12 * tall, hip + coat * tall
    polygon([(column - wide, neck), (column + wide, neck), (column + wide, hem), (column - wide, hem)], top)
    canvas.disc(column, neck - 1.7 * head, 0.85 * head, 0.6 * head, hair)
    canvas.disc(column, neck - 0.9 * head, 0.8 * head, 1.1 * head, skin)
    if chance.random() < 0.3:
        canvas.disc(column - 0.13 * tall, neck + 0.2 * tall, 0.08 * tall, 0.13 * tall, extra)
