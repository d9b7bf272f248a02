"""The canvas of a scene: the camera's view, the light, and picture and label, which are always drawn together.

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

    def foot(self, x: float, z: float) -> tuple[float, float, float]:
        """Column and row where something stands on the ground, and the pixels that a metre takes there."""
        column, scale = self.post(x, z)
        return column, self.horizon + scale * self.camera, scale


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
