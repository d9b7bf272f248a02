"""Painters for the generated street scenes: a canvas that draws picture and label together, one painter an object.

Positions are in metres as seen by the camera: `x` to the right, `y` up from the ground, `z` ahead. Floats only meet
sums, products, quotients and square roots, so that the drawn pixels do not depend on a platform's maths library.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SKY, BUILDING, ROAD, SIDEWALK, TREE, POLE, CAR, PERSON = range(8)
VOID = 255

# One palette for walls, doors, signs, vehicles and clothes: a colour alone must not give its class away.
URBAN = (
    (196, 188, 172), (158, 78, 60), (112, 112, 116), (72, 74, 80), (222, 218, 208), (140, 120, 98), (54, 66, 96),
    (66, 92, 66), (178, 150, 96), (96, 128, 150), (150, 44, 40), (38, 38, 42), (206, 170, 60), (120, 150, 120),
    (170, 176, 182), (90, 60, 48), (128, 116, 140), (204, 120, 84),
)  # fmt: skip
GREYS = ((92, 92, 96), (118, 117, 115), (140, 140, 142), (164, 160, 154), (72, 74, 78), (150, 138, 124))
SKINS = ((232, 190, 160), (198, 146, 112), (146, 98, 70), (92, 62, 46))
WARM_LIGHT = (255, 214, 142)
# The corners of a twelve-sided wheel of radius 1.
WHEEL = ((0, 1), (0.5, 0.87), (0.87, 0.5), (1, 0), (0.87, -0.5), (0.5, -0.87),
         (0, -1), (-0.5, -0.87), (-0.87, -0.5), (-1, 0), (-0.87, 0.5), (-0.5, 0.87))  # fmt: skip


def pick(rng: np.random.Generator, colours: tuple[Colour, ...], spread: int = 14) -> Colour:
    """One of `colours`, each channel moved by at most `spread`."""
    which, light, *tints = rng.random(5).tolist()
    base = colours[int(which * len(colours))]
    shifts = (spread * (light + tint - 1) for tint in tints)
    return tuple(min(255, max(0, int(value + shift))) for value, shift in zip(base, shifts, strict=True))


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` (0 to 1) of `second` mixed in."""
    return tuple(int(a + (b - a) * share) for a, b in zip(first, second, strict=True))


@dataclass(frozen=True)
class View:
    """The camera: a pinhole `camera` metres above a flat ground; lengths in pixels of the (enlarged) canvas.

    `bend` moves everything sideways by `bend * z * z` metres, so that a straight street becomes a curve.
    """

    width: int
    height: int
    horizon: float
    centre: float
    focal: float
    camera: float
    bend: float

    def post(self, x: float, z: float) -> Point:
        """The column of a vertical line at (x, z), and how many pixels a metre has there."""
        z = max(z, 0.7)
        return self.centre + self.focal * (x / z + self.bend * z), self.focal / z

    def project(self, x: float, y: float, z: float) -> Point:
        """The pixel (column, row) of a point."""
        column, scale = self.post(x, z)
        return column, self.horizon + scale * (self.camera - y)


@dataclass(frozen=True)
class Light:
    """Time of day and weather.

    `sun` is where the shadow of a point one metre up falls on the ground, as a shift (x, z); `shadow` how dark shadows
    are (0 to 1); `haze` how fast things fade into the colour of the low sky; `lit_share` the share of lit windows
    (lamps are on above 0.15); `clouds` and `wet` (the mirror in the road) go from 0 to 1.
    """

    sky_top: Colour
    sky_low: Colour
    ambient: tuple[float, float, float]
    haze: float
    sun: Point
    shadow: float
    lit_share: float
    clouds: float
    wet: float

    def shine(self, colour: Colour, distance: float, gain: float = 1.0, glowing: bool = False) -> Colour:
        """The colour as the camera sees it; a glowing surface is not dimmed by the hour."""
        share = distance * self.haze / (1 + distance * self.haze)
        gain *= 1 - share
        red, green, blue = (gain, gain, gain) if glowing else (gain * own for own in self.ambient)
        low = self.sky_low
        return (min(255, int(colour[0] * red + low[0] * share)), min(255, int(colour[1] * green + low[1] * share)),
                min(255, int(colour[2] * blue + low[2] * share)))  # fmt: skip

    def wall_gain(self, normal: Point) -> float:
        """Brightness of a wall whose outward direction on the ground is `normal` (x, z)."""
        facing = -(normal[0] * self.sun[0] + normal[1] * self.sun[1])
        return 1 + self.shadow * max(-0.5, min(0.25, 0.4 * facing))


@dataclass
class Canvas:
    """Picture, label and grain (strength of the texture) of one scene, always drawn with the same shape.

    A shape with a `class_id` is a thing: it covers what is behind it in all three layers. A shape without one is a
    detail of the thing below it (a window, a lamp): it must lie inside, and changes the picture only.
    """

    view: View
    light: Light
    image: Image.Image = field(init=False)
    label: Image.Image = field(init=False)
    grain: Image.Image = field(init=False)
    glows: list[tuple[float, float, float, Colour]] = field(default_factory=list)

    def __post_init__(self) -> None:
        size = (self.view.width, self.view.height)
        self.image = Image.new("RGB", size)
        self.label, self.grain = Image.new("L", size, SKY), Image.new("L", size, 0)
        self._pens = [ImageDraw.Draw(layer) for layer in (self.image, self.label, self.grain)]

    def paste(self, row: int, picture: np.ndarray, ids: np.ndarray | None = None) -> None:
        """Lay computed rows (h, width, 3) uint8, and their classes (h, width) uint8, on the canvas from `row` down."""
        self.image.paste(Image.fromarray(picture), (0, row))
        if ids is not None:
            self.label.paste(Image.fromarray(ids), (0, row))

    def shape(self, points: list[Point], colour: Colour, class_id: int | None = None, grain: int = 0) -> None:
        """A filled polygon."""
        corners = [(round(x), round(y)) for x, y in points]
        self._draw("polygon", corners, colour, class_id, grain)

    def disc(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, class_id: int | None = None, grain: int = 0
    ) -> None:
        """A filled ellipse around (x, y)."""
        box = (round(x - rx), round(y - ry), round(x + rx), round(y + ry))
        self._draw("ellipse", box, colour, class_id, grain)

    def bar(
        self, x: float, top: float, bottom: float, width: float, colour: Colour, class_id: int | None = None
    ) -> None:
        """An upright rectangle around column x, at least two canvas pixels (one label pixel) wide."""
        left = round(x - width / 2)
        box = (left, round(min(top, bottom)), left + max(1, round(width) - 1), round(max(top, bottom)))
        self._draw("rectangle", box, colour, class_id, 0)

    def stroke(self, a: Point, b: Point, width: float, colour: Colour, class_id: int | None = None) -> None:
        """A thick line, at least two canvas pixels wide for a thing."""
        thick = max(2 if class_id is not None else 1, round(width))
        ends = (round(a[0]), round(a[1]), round(b[0]), round(b[1]))
        self._draw("line", ends, colour, class_id, 0, width=thick)

    def _draw(self, kind: str, where, colour: Colour, class_id: int | None, grain: int, **options: int) -> None:
        getattr(self._pens[0], kind)(where, fill=colour, **options)
        if class_id is not None:
            getattr(self._pens[1], kind)(where, fill=class_id, **options)
            getattr(self._pens[2], kind)(where, fill=grain, **options)


# ---------------------------------------------------------------------------------------------------------- buildings


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


# -------------------------------------------------------------------------------------------------------------- trees


@dataclass(frozen=True)
class Tree:
    """A tree or a bush; `kind` is "round", "cone", "bare" or "bush"."""

    x: float
    z: float
    height: float
    kind: str
    leaf: Colour
    bark: Colour


def paint_tree(canvas: Canvas, rng: np.random.Generator, tree: Tree) -> None:
    """Trunk and crown."""
    column, scale = canvas.view.post(tree.x, tree.z)
    ground = canvas.view.horizon + scale * canvas.view.camera
    if tree.kind != "bush":
        bark, top = canvas.light.shine(tree.bark, tree.z), ground - 0.55 * tree.height * scale
        wide, slim = 0.2 * scale + 0.5, 0.1 * scale + 0.5
        trunk = [(column - wide, ground), (column - slim, top), (column + slim, top), (column + wide, ground)]
        canvas.shape(trunk, bark, TREE, 40)
    crown = {"round": _paint_crown, "bush": _paint_crown, "cone": _paint_cone, "bare": _paint_branches}[tree.kind]
    crown(canvas, rng, tree, column, ground, scale)


def _paint_crown(
    canvas: Canvas, rng: np.random.Generator, tree: Tree, column: float, ground: float, scale: float
) -> None:
    """Overlapping clumps of leaves, brighter towards the sun and the top, ragged at the rim."""
    bush = tree.kind == "bush"
    ry = (0.5 if bush else 0.34) * tree.height * scale
    rx = ry * (1.6 if bush else 0.75 + 0.4 * rng.random())
    middle = ground - ry if bush else ground - (tree.height * scale - ry)
    count = int(min(34, 10 + 1.2 * ry))
    lean = -0.12 * max(-1.0, min(1.0, canvas.light.sun[0]))
    clumps = rng.random((count, 4)).tolist()
    for number, (a, b, c, d) in enumerate(clumps):
        inner = number < count // 2
        dx, dy = 2 * a - 1, 2 * b - 1
        dy *= (1 - 0.8 * dx * dx) ** 0.5
        reach, size = (0.7, 0.3 + 0.2 * c) if inner else (0.86, 0.12 + 0.12 * c)
        gain = 0.82 - 0.22 * dy + lean * dx * 2 + 0.3 * (d - 0.5)
        colour = canvas.light.shine(tree.leaf, tree.z, gain)
        canvas.disc(
            column + reach * dx * rx, middle + reach * dy * ry, size * rx + 0.6, size * ry + 0.6, colour, TREE, 120
        )


def _paint_cone(
    canvas: Canvas, rng: np.random.Generator, tree: Tree, column: float, ground: float, scale: float
) -> None:
    """A conifer: tiers of hanging branches."""
    tall, tiers = tree.height * scale, 6
    for tier in range(tiers):
        low, wide = ground - tall * (0.12 + 0.13 * tier), 0.24 * tall * (1 - tier / (tiers + 0.6))
        colour = canvas.light.shine(tree.leaf, tree.z, 0.7 + 0.06 * tier + 0.15 * rng.random())
        jag = rng.random(2).tolist()
        fringe = [(column - wide, low + 0.05 * tall * jag[0]), (column - wide / 2, low - 0.02 * tall),
                  (column, low + 0.03 * tall), (column + wide / 2, low - 0.02 * tall),
                  (column + wide, low + 0.05 * tall * jag[1])]  # fmt: skip
        canvas.shape([*fringe, (column, low - 0.3 * tall)], colour, TREE, 110)


def _paint_branches(
    canvas: Canvas, rng: np.random.Generator, tree: Tree, column: float, ground: float, scale: float
) -> None:
    """A tree without leaves: three generations of forks."""
    bark, tall = canvas.light.shine(tree.bark, tree.z), tree.height * scale
    buds = [(column, ground - 0.4 * tall, 0.0, -0.3 * tall, 0.14 * scale)]
    for _ in range(4):
        forks = []
        for x, y, dx, dy, width in buds:
            turn = (0.35 + 0.35 * rng.random()) * abs(dy)
            for bias in (-turn, turn * (0.6 + 0.6 * rng.random())):
                end = (x + 0.8 * (dx + bias), y + 0.8 * dy)
                canvas.stroke((x, y), end, width, bark, TREE)
                forks.append((*end, 0.7 * (dx + bias), 0.72 * dy, 0.65 * width))
        buds = forks


# -------------------------------------------------------------------------------------------------------------- poles


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
    column, scale = canvas.view.post(pole.x, pole.z)
    ground = canvas.view.horizon + scale * canvas.view.camera
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


# --------------------------------------------------------------------------------------------------------------- cars

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


# ------------------------------------------------------------------------------------------------------------- people


@dataclass(frozen=True)
class Person:
    """Somebody `height` metres tall; `stride` (-1 to 1) is how far the legs are apart, 0 when standing."""

    x: float
    z: float
    height: float
    stride: float
    top: Colour
    legs: Colour
    skin: Colour
    hair: Colour
    wear: str  # "plain", "coat", "bag" or "umbrella"


def paint_person(canvas: Canvas, rng: np.random.Generator, person: Person) -> None:
    """Legs, body, arms and head, and what is worn or carried."""
    column, scale = canvas.view.post(person.x, person.z)
    ground, tall = canvas.view.horizon + scale * canvas.view.camera, person.height * scale
    top, legs, skin, hair = (
        canvas.light.shine(colour, person.z) for colour in (person.top, person.legs, person.skin, person.hair)
    )
    hip, neck, half = ground - 0.48 * tall, ground - 0.84 * tall, 0.125 * tall
    for sign in (-1, 1):
        foot = column + sign * (0.05 + 0.13 * abs(person.stride)) * tall
        thigh = column + sign * 0.05 * tall
        canvas.shape([(thigh - 0.055 * tall, hip), (thigh + 0.055 * tall, hip), (foot + 0.045 * tall, ground),
                      (foot - 0.045 * tall, ground)], legs, PERSON, 20)  # fmt: skip
        hand = (column + sign * (0.15 + 0.06 * abs(person.stride)) * tall, hip + 0.02 * tall)
        canvas.stroke((column + sign * 0.1 * tall, neck + 0.04 * tall), hand, 0.065 * tall, top, PERSON)
    hem = hip + (0.2 * tall if person.wear == "coat" else 0.02 * tall)
    flare = 1.15 if person.wear == "coat" else 0.8
    canvas.shape([(column - half, neck), (column + half, neck), (column + flare * half, hem),
                  (column - flare * half, hem)], top, PERSON, 30)  # fmt: skip
    head = 0.068 * tall
    canvas.disc(column, neck - 1.05 * head, 0.85 * head, 1.15 * head, skin, PERSON)
    canvas.disc(column, neck - 1.7 * head, 0.85 * head, 0.6 * head, hair, PERSON)
    if person.wear in ("bag", "umbrella"):
        _paint_carried(canvas, rng, person, (column, neck, half, tall))


def _paint_carried(canvas: Canvas, rng: np.random.Generator, person: Person, body: tuple) -> None:
    column, neck, half, tall = body
    colour = canvas.light.shine(pick(rng, URBAN), person.z)
    side = 1 if person.stride >= 0 else -1
    if person.wear == "bag":
        canvas.disc(column - side * half, neck + 0.16 * tall, 0.08 * tall, 0.13 * tall, colour, PERSON)
        return
    rim, width = neck - 0.16 * tall, 0.32 * tall
    canvas.stroke((column + side * half, neck + 0.2 * tall), (column + side * half, rim), 1, colour, PERSON)
    middle = column + side * 0.5 * half
    canvas.shape([(middle - width, rim), (middle - 0.6 * width, rim - 0.1 * tall), (middle, rim - 0.15 * tall),
                  (middle + 0.6 * width, rim - 0.1 * tall), (middle + width, rim)], colour, PERSON)  # fmt: skip
