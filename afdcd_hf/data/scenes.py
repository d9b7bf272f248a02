"""Generated street scenes with exact labels: a small stand-in for a driving data set, with nothing to download.

A scene is laid out in metres (street, buildings, trees, poles, cars, people), painted from far to near at twice the
size on a canvas that draws picture and label together, then photographed: texture, wet road, lamp light, blur, noise.
Colours are shared between classes on purpose, so that shape and context have to be learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .scene_painters import (
    BUILDING,
    CAR,
    GREYS,
    PERSON,
    ROAD,
    SIDEWALK,
    SKINS,
    TREE,
    URBAN,
    VOID,
    Building,
    Canvas,
    Car,
    Light,
    Person,
    Pole,
    Tree,
    View,
    paint_building,
    paint_car,
    paint_person,
    paint_pole,
    paint_tree,
    pick,
)

SCENE_CLASSES: tuple[str, ...] = ("sky", "building", "road", "sidewalk", "tree", "pole", "car", "person")
SCENE_PALETTE: tuple[tuple[int, int, int], ...] = (
    (92, 170, 230), (110, 84, 70), (128, 64, 128), (244, 150, 200), (60, 140, 50), (250, 215, 40), (20, 30, 160),
    (225, 30, 50),
)  # fmt: skip

FARTHEST = 110.0  # metres; beyond it there is only the skyline
LEAVES = {
    "summer": ((70, 104, 48), (92, 122, 58), (54, 86, 50), (110, 128, 66)),
    "autumn": ((186, 112, 44), (168, 66, 42), (196, 152, 60), (128, 96, 52), (120, 118, 56)),
    "spring": ((128, 152, 74), (214, 172, 182), (226, 214, 210), (98, 132, 66)),
    "winter": ((58, 78, 56), (84, 84, 62), (112, 98, 76)),
}
BARKS = ((92, 76, 60), (70, 62, 56), (120, 110, 98), (58, 48, 42))
HAIRS = ((34, 28, 26), (88, 60, 40), (176, 142, 92), (150, 150, 150), (150, 44, 40))


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


@dataclass(frozen=True)
class Plan:
    """Everything that stands on the ground of one scene."""

    buildings: list[Building]
    trees: list[Tree]
    poles: list[Pole]
    cars: list[Car]
    people: list[Person]


def generate_scene(seed: int, size: tuple[int, int] = (96, 192)) -> tuple[np.ndarray, np.ndarray]:
    """Generate one labelled street scene.

    The same seed and size give the same scene; scenes of different seeds are independent.

    Args:
        seed: a whole number, 0 or more.
        size: (height, width) in pixels, each at least 32.

    Returns:
        The picture, (H, W, 3) uint8 RGB, and the label, (H, W) uint8: indices into `SCENE_CLASSES`, 255 = ignored.

    Raises:
        ValueError: if the seed is not a whole number >= 0, or the size is not two whole numbers >= 32.
    """
    rng = np.random.default_rng(_checked_seed(seed))
    height, width = _checked_size(size)
    view, light = _choose_view(rng, height, width), _choose_light(rng)
    street = _choose_street(rng)
    plan = _plan_things(rng, view, street)
    canvas = Canvas(view, light)
    paint_sky(canvas, rng)
    paint_skyline(canvas, rng, street)
    paint_ground(canvas, rng, street, cast_shadows(view, light, plan))
    paint_things(canvas, rng, plan)
    if rng.random() < 0.35:
        paint_bonnet(canvas, rng)
    label = _shrink_label(np.asarray(canvas.label))
    if rng.random() < 0.3:
        label = _void_borders(label)
    return _photograph(canvas, rng), label


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed={seed!r} is not a whole number of at least 0; pass one such as 0, 1, 2, ...")
    return int(seed)


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else ()
    whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in pair)
    if len(pair) != 2 or not whole or min(pair) < 32:
        expected = "(height, width) in whole pixels of at least 32"
        raise ValueError(f"size={size!r} is not {expected}; pass one such as (96, 192)")
    return int(pair[0]), int(pair[1])


# ------------------------------------------------------------------------------------------------------------- layout


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _any(rng: np.random.Generator, *options):
    return options[int(rng.integers(len(options)))]


def _choose_view(rng: np.random.Generator, height: int, width: int) -> View:
    """A camera of random height, direction and focal length, on a straight or curved street."""
    wide, tall = 2 * width, 2 * height
    focal = _between(rng, 1.25, 1.75) * min(tall, wide / 1.3)
    bend = _between(rng, -0.0028, 0.0028) if rng.random() < 0.5 else 0.0
    return View(
        wide,
        tall,
        horizon=tall * _between(rng, 0.4, 0.58),
        centre=wide * _between(rng, 0.38, 0.62),
        focal=focal,
        camera=_between(rng, 1.3, 2.2),
        bend=bend,
    )


def _choose_light(rng: np.random.Generator) -> Light:
    """Time of day and weather."""
    chance, side = rng.random(), _any(rng, -1, 1)
    sun = (side * _between(rng, 0.3, 1.3), _between(rng, -0.8, 0.8))
    still = (0.0, 0.0)
    if chance < 0.4:
        return Light((96, 148, 214), (190, 210, 232), (1.06, 1.03, 0.97), 0.003, sun, _between(rng, 0.35, 0.55), 0.0,
                     _between(rng, 0, 1), 0.0)  # fmt: skip
    if chance < 0.64:
        grey = int(rng.integers(150, 215))
        return Light((grey, grey, grey + 4), (208, 210, 212), (0.9, 0.91, 0.93), 0.006, still, 0.25, 0.03, 0.6,
                     _any(rng, 0.0, 0.0, 0.4))  # fmt: skip
    if chance < 0.77:
        return Light((96, 104, 150), (236, 172, 128), (0.8, 0.66, 0.62), 0.006, (2 * sun[0], sun[1]), 0.35, 0.22, 0.8,
                     _any(rng, 0.0, 0.3))  # fmt: skip
    if chance < 0.89:
        return Light((20, 24, 46), (66, 58, 70), (0.56, 0.54, 0.6), 0.005, still, 0.3, 0.42, 0.4, _any(rng, 0.0, 0.5))
    return Light((186, 188, 190), (204, 204, 202), (0.88, 0.88, 0.88), 0.022, still, 0.2, 0.06, 0.2, 0.2)


def _choose_street(rng: np.random.Generator) -> Street:
    """Two to four lanes with the camera in one of them."""
    lane, lanes = _between(rng, 2.9, 3.4), _any(rng, 2, 2, 3, 3, 4)
    own = int(rng.integers(lanes))
    parking = [2.2 * float(rng.random() < 0.6) for _ in range(2)]
    left = -lane * (own + 0.5) - parking[0]
    right = lane * (lanes - own - 0.5) + parking[1]
    lines = tuple(-lane * (own + 0.5) + lane * number for number in range(lanes + 1))
    side_road = _between(rng, 12, 40) if rng.random() < 0.35 else None
    zebra = _between(rng, 7, 22) if rng.random() < 0.3 else None
    if side_road and rng.random() < 0.6:
        zebra = side_road - 4.0
    return Street(left, right, lines, (_between(rng, 2.2, 5.5), _between(rng, 2.2, 5.5)),
                  (side_road, side_road + _between(rng, 6, 10)) if side_road else None, zebra,
                  _any(rng, "summer", "summer", "autumn", "spring", "winter"))  # fmt: skip


def _plan_things(rng: np.random.Generator, view: View, street: Street) -> Plan:
    buildings, trees, poles, cars = [], [], [], []
    for side in (-1, 1):
        blocks, gardens = _plan_buildings(rng, street, side)
        buildings += blocks
        trees += gardens + _plan_avenue(rng, street, side)
        poles += _plan_poles(rng, view, street, side)
        cars += _plan_parked(rng, street, side)
    cars += _plan_traffic(rng, street)
    return Plan(buildings, trees, poles, cars, _plan_people(rng, view, street))


def _edge(street: Street, side: int) -> float:
    return street.left if side < 0 else street.right


def _seen_from(view: View, x: float) -> float:
    """How far away something at `x` must be to stand inside the picture."""
    return max(5.5, abs(x) * view.focal / (0.42 * view.width))


def _in_side_road(street: Street, z: float, margin: float = 0.5) -> bool:
    return street.side_road is not None and street.side_road[0] - margin < z < street.side_road[1] + margin


def _plan_buildings(rng: np.random.Generator, street: Street, side: int) -> tuple[list[Building], list[Tree]]:
    """A row of buildings of one neighbourhood, with gaps that hold trees."""
    line = abs(_edge(street, side)) + street.pavements[side > 0]
    low, high = _any(rng, (3.5, 7.0), (4.5, 9.0), (6.0, 14.0), (10.0, 30.0))
    gap_share, z = _any(rng, 0.1, 0.3, 0.6), _between(rng, 0.8, 6)
    blocks, trees = [], []
    while z < FARTHEST:
        length = _between(rng, 5, 16)
        if street.side_road and z < street.side_road[1] and z + length > street.side_road[0]:
            length = street.side_road[0] - 1.5 - z
            if length < 3:
                z = street.side_road[1] + 1.5
                continue
        if rng.random() < gap_share:
            trees += [_grow(rng, street, side * (line + _between(rng, 1, 6)), z + _between(rng, 0, length), True)
                      for _ in range(int(rng.integers(1, 4)))]  # fmt: skip
        else:
            setback = _between(rng, 0, 3.5) if rng.random() < 0.3 else 0.0
            blocks.append(_design(rng, side, line + setback, z, length, _between(rng, low, high)))
        z += length + (_between(rng, 0.5, 3) if rng.random() < 0.3 else 0.0)
    return blocks, trees


def _design(rng: np.random.Generator, side: int, x: float, z: float, length: float, height: float) -> Building:
    windows = _any(
        rng, "grid", "grid", "tall", "ribbon", "none" if height < 14 else "glass", "glass" if height > 9 else "grid"
    )
    return Building(
        side,
        side * x,
        z,
        z + length,
        height,
        _between(rng, 7, 12),
        pick(rng, URBAN + GREYS),
        pick(rng, URBAN),
        pick(rng, ((60, 74, 88), (96, 118, 136), (44, 48, 54), (120, 130, 128))),
        windows,
        _any(rng, "shop", "doors", "plain"),
        height < 12 and rng.random() < 0.55,
        int(rng.integers(8, 60)),
    )


def _grow(rng: np.random.Generator, street: Street, x: float, z: float, garden: bool = False) -> Tree:
    kinds = ("round", "bush", "bush", "cone") if garden else ("round",)
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "round" and rng.random() < (0.6 if street.season == "winter" else 0.06):
        kind = "bare"
    low, high = {"round": (4.5, 8.5), "bare": (4.5, 8.0), "cone": (4.0, 9.0), "bush": (0.9, 2.2)}[kind]
    season = "summer" if kind == "cone" else street.season
    return Tree(x, z, _between(rng, low, high), kind, pick(rng, LEAVES[season]), pick(rng, BARKS))


def _plan_avenue(rng: np.random.Generator, street: Street, side: int) -> list[Tree]:
    """Trees along the kerb, at even distances, or one or two single ones."""
    x = _edge(street, side) + side * _between(rng, 0.8, 1.4)
    if rng.random() < 0.45:
        spots = np.arange(_between(rng, 8, 14), 80, _between(rng, 7, 13)).tolist()
    else:
        spots = [_between(rng, 12, 50) for _ in range(int(rng.integers(0, 3)))]
    return [_grow(rng, street, x, z) for z in spots if not _in_side_road(street, z)]


def _plan_poles(rng: np.random.Generator, view: View, street: Street, side: int) -> list[Pole]:
    """A row of lamps or wires, single signs and lights near the front, and sometimes bollards."""
    x, metal = _edge(street, side) + side * _between(rng, 0.3, 0.7), pick(rng, GREYS + URBAN)
    start = _seen_from(view, x)
    kind = _any(rng, "lamp", "lamp", "utility")
    spots = np.arange(start + _between(rng, 0, 8), 70, _between(rng, 14, 24)).tolist() if rng.random() < 0.65 else []
    poles = [Pole(x, z, kind, -side, metal) for z in spots]
    poles += [Pole(x, start * _between(rng, 1.1, 3), _any(rng, "sign", "sign", "signal"), -side, pick(rng, GREYS))
              for _ in range(int(rng.integers(0, 3)))]  # fmt: skip
    if street.side_road and rng.random() < 0.6:
        poles.append(Pole(x, street.side_road[0] - 1.0, "signal", -side, pick(rng, GREYS)))
    if rng.random() < 0.25:
        poles += [Pole(x, float(z), "bollard", -side, metal) for z in np.arange(start, 30, 2.5)]
    return [pole for pole in poles if not _in_side_road(street, pole.z)]


def _model(rng: np.random.Generator, x: float, z: float, heading: str) -> Car:
    kind = _any(rng, "saloon", "saloon", "hatch", "hatch", "suv", "suv", "van", "truck")
    return Car(x, z, kind, heading, pick(rng, URBAN))


def _plan_parked(rng: np.random.Generator, street: Street, side: int) -> list[Car]:
    """Cars along the kerb where there is room for them."""
    lines_end = street.lines[0] if side < 0 else street.lines[-1]
    edge = _edge(street, side)
    if abs(edge - lines_end) < 1 or rng.random() < 0.2:
        return []
    cars, z, share = [], _between(rng, 6, 14), _between(rng, 0.3, 0.75)
    while z < 70:
        car = _model(rng, edge - side * 1.15, z, _any(rng, "away", "away", "towards"))
        if rng.random() < share and not any(_in_side_road(street, z + u, 2) for u in (0, 3, 6)):
            cars.append(car)
        z += car.length + _between(rng, 0.8, 2)
    return cars


def _plan_traffic(rng: np.random.Generator, street: Street) -> list[Car]:
    """One or two cars a lane: ahead of us, oncoming on the left, and across at the side road."""
    cars = []
    for start, end in zip(street.lines, street.lines[1:], strict=False):
        middle = (start + end) / 2 + _between(rng, -0.3, 0.3)
        heading = "towards" if end < 0 and rng.random() < 0.85 else "away"
        z = _between(rng, 9 if abs(middle) < 1 else 6, 26)
        for _ in range(int(rng.integers(0, 3))):
            cars.append(_model(rng, middle, z, heading))
            z += _between(rng, 8, 25)
    if street.side_road and rng.random() < 0.6:
        cars.append(_model(rng, _between(rng, -8, 8), street.side_road[0] + 2, _any(rng, "left", "right")))
    if not cars:
        cars.append(_model(rng, 0.0, _between(rng, 11, 24), "away"))
    return [car for car in cars if car.crosses or not _in_side_road(street, car.z, 0) or rng.random() < 0.3]


def _plan_people(rng: np.random.Generator, view: View, street: Street) -> list[Person]:
    """Single people and small groups on the pavements, on the zebra crossing and now and then in the road."""
    people = []
    for _ in range(int(rng.integers(3, 7))):
        side = _any(rng, -1, 1)
        x = _edge(street, side) + side * _between(rng, 0.5, max(0.8, street.pavements[side > 0] - 0.4))
        z = _seen_from(view, x) * _between(rng, 1, 2.4)
        people += [
            _somebody(rng, x + 0.65 * number, z + _between(rng, -0.3, 0.3)) for number in range(_any(rng, 1, 1, 2, 3))
        ]
    if street.zebra:
        people += [
            _somebody(rng, _between(rng, street.left, street.right), street.zebra + _between(rng, 0.3, 2.5))
            for _ in range(int(rng.integers(1, 5)))
        ]
    elif rng.random() < 0.4:
        people.append(_somebody(rng, _between(rng, street.left, street.right), _between(rng, 8, 20)))
    return people


def _somebody(rng: np.random.Generator, x: float, z: float) -> Person:
    height = _between(rng, 1.55, 1.9) if rng.random() < 0.88 else _between(rng, 1.0, 1.4)
    return Person(
        x,
        z,
        height,
        _between(rng, -1, 1) if rng.random() < 0.75 else 0.0,
        pick(rng, URBAN),
        pick(rng, URBAN),
        pick(rng, SKINS),
        pick(rng, HAIRS),
        _any(rng, "plain", "plain", "plain", "coat", "bag", "bag", "umbrella"),
    )


# ------------------------------------------------------------------------------------------------------------ painting


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float, stretch: float = 1.0) -> np.ndarray:
    """Smooth random values in [0, 1] of about `cell` pixels, (height, width) float32."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / (cell * stretch)))
    small = Image.fromarray(rng.integers(0, 256, (rows, columns), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient down to the horizon with clouds."""
    view, light = canvas.view, canvas.light
    rows = min(view.height, int(view.horizon) + 2)
    height = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    top, low = (np.array(colour, np.float32) for colour in (light.sky_top, light.sky_low))
    picture = top + (low - top) * height * height
    cell = rows / 5
    puffs = 0.65 * _smooth_noise(rng, rows, view.width, cell, 2.5) + 0.35 * _smooth_noise(
        rng, rows, view.width, cell / 3, 2
    )
    cover = np.clip((puffs - 0.75 + 0.45 * light.clouds) * 3, 0, 0.8)[..., None]
    bright = 0.5 * low + 0.5 * np.array((250, 246, 242), np.float32) * min(1.0, light.ambient[2])
    shade = 1 - 0.25 * _smooth_noise(rng, rows, view.width, cell / 2, 2)[..., None]
    picture = picture + cover * (bright * shade - picture)
    canvas.paste(0, picture.clip(0, 255).astype(np.uint8))


def paint_skyline(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """Distant buildings and trees along the horizon."""
    view = canvas.view
    _, scale = view.post(0, 140)
    x, base, tall = 0.0, view.horizon + scale * view.camera + 2, _any(rng, 9, 16, 30)
    while x < view.width:
        width, height = _between(rng, 7, 22) * scale, _between(rng, 0.35, 1) * tall * scale
        if rng.random() < 0.65:
            corners = [(x, base), (x, base - height), (x + width, base - height), (x + width, base)]
            canvas.shape(corners, canvas.light.shine(pick(rng, URBAN + GREYS), 110), BUILDING, 30)
        else:
            leaf = canvas.light.shine(pick(rng, LEAVES[street.season]), 110)
            canvas.disc(x + width / 2, base - 2 * scale, width * 0.6, 0.45 * height + 3 * scale, leaf, TREE, 90)
        x += width * _between(rng, 0.7, 1.1)


def cast_shadows(view: View, light: Light, plan: Plan) -> np.ndarray:
    """How dark the shadow is on every pixel of the ground, (height, width) float32 in [0, 1]."""
    mask = Image.new("L", (view.width, view.height), 0)
    pen = ImageDraw.Draw(mask)
    dx, dz = light.sun
    for outline in _shadow_outlines(plan, dx, dz):
        corners = [view.project(x, 0, max(z, 1.0)) for x, z in outline]
        pen.polygon([(round(x), round(y)) for x, y in corners], fill=255)
    for car in plan.cars:  # the dark underside, in any weather
        corners = [
            car.place(u, v)
            for u, v in ((-0.1, -0.95), (-0.1, 0.95), (car.length + 0.1, 0.95), (car.length + 0.1, -0.95))
        ]
        pen.polygon([tuple(map(round, view.project(x, 0, z))) for x, z in corners], fill=255)
    for person in plan.people:
        x, y = view.project(person.x, 0, person.z)
        size = 0.3 * view.focal / person.z
        pen.ellipse((round(x - size), round(y - 0.2 * size), round(x + size), round(y + 0.2 * size)), fill=200)
    softness = 1.0 if dx else 2.5
    return np.asarray(mask.filter(ImageFilter.BoxBlur(softness)), np.float32) / 255


def _shadow_outlines(plan: Plan, dx: float, dz: float) -> list[list[tuple[float, float]]]:
    """Ground outlines (x, z) of the shadows that the sun casts; none where it casts none."""
    if not dx:
        return []

    def strip(x: float, z: float, width: float, height: float) -> list[tuple[float, float]]:
        end = (x + dx * height, z + dz * height)
        return [(x - width, z), (x + width, z + width), (end[0] + width, end[1] + width), (end[0] - width, end[1])]

    outlines = []
    for block in plan.buildings:
        if block.side * dx < 0:
            reach, push = dx * block.height, dz * block.height
            outlines.append([(block.x, block.z0), (block.x, block.z1), (block.x + reach, block.z1 + push),
                             (block.x + reach, block.z0 + push)])  # fmt: skip
    for tree in plan.trees:
        outlines.append(strip(tree.x, tree.z, 0.2, 0.6 * tree.height))
        x, z, r = tree.x + 0.66 * dx * tree.height, tree.z + 0.66 * dz * tree.height, 0.3 * tree.height
        outlines.append(
            [
                (x + r * a, z + r * b)
                for a, b in ((1, 0), (0.6, 0.8), (-0.2, 0.9), (-0.9, 0.5), (-0.95, -0.3), (-0.3, -0.8), (0.5, -0.9))
            ]
        )
    outlines += [strip(pole.x, pole.z, 0.09, 5.0 if pole.kind in ("lamp", "utility") else 2.4) for pole in plan.poles]
    outlines += [strip(person.x, person.z, 0.22, person.height) for person in plan.people]
    outlines += [strip(*car.place(car.length / 2, 0), 1.5, 1.4) for car in plan.cars]
    return outlines


def paint_ground(canvas: Canvas, rng: np.random.Generator, street: Street, shadow: np.ndarray) -> None:
    """Road and pavements, computed for every pixel below the horizon from its place on the ground."""
    view, light = canvas.view, canvas.light
    top = max(0, int(view.horizon) + 1)
    rows = np.arange(top, view.height, dtype=np.float32)[:, None] + 0.5
    z = np.float32(view.focal * view.camera) / (rows - np.float32(view.horizon))
    far = np.minimum(z, 140)
    x = (np.arange(view.width, dtype=np.float32) + np.float32(0.5 - view.centre)) * (far / np.float32(view.focal))
    x -= np.float32(view.bend) * far * far
    road = (x > street.left) & (x < street.right)
    if street.side_road:
        road |= (z > street.side_road[0]) & (z < street.side_road[1])
    colour = np.where(road[..., None], *_ground_colours(rng))
    colour = _mark_road(rng, street, colour, road, x, z) * _ground_shade(rng, street, road, x, z)[..., None]
    colour *= np.array(light.ambient, np.float32) * (1 - light.shadow * shadow[top:, :, None])
    haze = (far * light.haze / (1 + far * light.haze))[..., None]
    colour += haze * (np.array(light.sky_low, np.float32) - colour)
    canvas.paste(top, colour.clip(0, 255).astype(np.uint8), np.where(road, np.uint8(ROAD), np.uint8(SIDEWALK)))


def _ground_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours of road and pavement, which may be the same grey."""
    pavings = GREYS + ((172, 120, 96), (190, 178, 156), (128, 120, 110))
    return np.array(pick(rng, GREYS), np.float32), np.array(pick(rng, pavings), np.float32)


def _ground_shade(
    rng: np.random.Generator, street: Street, road: np.ndarray, x: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Brightness of the bare ground: grit, stains, and the joints between paving slabs; it fades with distance."""
    height, width = x.shape
    near = np.minimum(1, 9 / z)
    tile = rng.random((64, 64), dtype=np.float32)
    slab = float(_any(rng, 0.8, 1.2, 2.0))
    ix, iz = np.floor(x * np.float32(1 / slab)), np.floor(z * np.float32(1 / slab))
    slabs = tile[iz.astype(np.int32) & 63, ix.astype(np.int32) & 63]
    joints = ((x * np.float32(1 / slab) - ix) < 0.06) | ((z * np.float32(1 / slab) - iz) < 0.1)
    paving = 0.14 * (slabs - 0.5) - 0.18 * joints * float(rng.random() < 0.6)
    stains = 0.24 * (_smooth_noise(rng, height, width, 7, 3) - 0.5)
    grit = 0.14 * (_smooth_noise(rng, height, width, 2) - 0.5)
    return 1 + np.where(road, stains, near * paving) + grit


def _mark_road(
    rng: np.random.Generator, street: Street, colour: np.ndarray, road: np.ndarray, x: np.ndarray, z: np.ndarray
) -> np.ndarray:
    """Kerb stones, lane lines, a zebra crossing, a coloured lane and patches."""
    kerb_left, kerb_right = (
        (x < street.left) & (x > street.left - 0.25),
        (x > street.right) & (x < street.right + 0.25),
    )
    paint = np.array(pick(rng, ((226, 226, 220), (200, 198, 190), (214, 190, 110))), np.float32)
    colour = np.where(((kerb_left | kerb_right) & ~road)[..., None], colour * 0.6 + 74, colour)
    if rng.random() < 0.25:  # a cycle or bus lane
        lane = road & (x > street.lines[-2]) & (x < street.lines[-1])
        colour[lane] = 0.4 * colour[lane] + 0.6 * np.array(pick(rng, ((150, 84, 70), (90, 120, 96))), np.float32)
    for _ in range(int(rng.integers(0, 4))):
        px, pz, dark = _between(rng, street.left, street.right), _between(rng, 4, 30), _between(rng, 0.75, 1.15)
        colour[road & (np.abs(x - px) < _between(rng, 0.3, 1.2)) & (np.abs(z - pz) < _between(rng, 0.4, 5))] *= dark
    marks = _lane_marks(rng, street, x, z)
    if street.zebra:
        marks |= (z > street.zebra) & (z < street.zebra + 3) & (np.floor(x * 1.8).astype(np.int32) & 1 == 0)
    if street.side_road:
        inside = (z > street.side_road[0]) & (z < street.side_road[1])
        marks &= ~inside
    wear = _between(rng, 0.55, 0.95)
    return np.where((marks & road)[..., None], colour + wear * (paint - colour), colour)


def _lane_marks(rng: np.random.Generator, street: Street, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Solid lines at the sides, broken ones between lanes."""
    half = 0.06 + 0.0012 * np.minimum(z, 80)
    phase, period = _between(rng, 0, 9), _between(rng, 6, 11)
    broken = (z + phase) % np.float32(period) < 0.45 * period
    marks = np.zeros(x.shape, bool)
    for number, line in enumerate(street.lines):
        hit = np.abs(x - np.float32(line)) < half
        marks |= hit if number in (0, len(street.lines) - 1) else hit & broken
    return marks


def paint_things(canvas: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    """Everything that stands on the ground, from far to near; a building counts by its far end."""
    jobs: list[tuple[float, Callable, object]] = [(block.z1, paint_building, block) for block in plan.buildings]
    jobs += [(tree.z, paint_tree, tree) for tree in plan.trees]
    jobs += [(pole.z, paint_pole, pole) for pole in plan.poles]
    jobs += [(car.z, paint_car, car) for car in plan.cars]
    jobs += [(person.z, paint_person, person) for person in plan.people]
    for _, paint, thing in sorted(jobs, key=lambda job: -job[0]):
        paint(canvas, rng, thing)


def paint_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The front of our own car at the lower edge, which data sets ignore."""
    view, colour = canvas.view, pick(rng, URBAN)
    top = view.height * _between(rng, 0.91, 0.96)
    width, lift = view.width, 0.35 * (view.height - top)
    body = [(0, view.height), (0, top + 2 * lift), (0.2 * width, top + 0.5 * lift), (0.5 * width, top),
            (0.8 * width, top + 0.5 * lift), (width, top + 2 * lift), (width, view.height)]  # fmt: skip
    canvas.shape(body, canvas.light.shine(colour, 0, 0.7), VOID, 5)
    shine = [(x, y + 0.5 * (view.height - y)) for x, y in body]
    canvas.shape(shine, canvas.light.shine(colour, 0, 0.9))


# ------------------------------------------------------------------------------------------------------ photographing


def _shrink_label(label: np.ndarray) -> np.ndarray:
    """The commonest class of each 2 x 2 block; of two pairs the lower or right one, so that thin lines survive."""
    a, b, c, d = label[::2, ::2], label[::2, 1::2], label[1::2, ::2], label[1::2, 1::2]
    return np.where((b == c) | (b == d), b, np.where(c == d, c, a))


def _void_borders(label: np.ndarray) -> np.ndarray:
    """Ignore the pixels that touch a car or a person from outside, as where annotators were unsure."""
    thing = (label == CAR) | (label == PERSON)
    near = np.zeros_like(thing)
    near[:, 1:] |= thing[:, :-1]
    near[:, :-1] |= thing[:, 1:]
    near[1:] |= thing[:-1]
    near[:-1] |= thing[1:]
    return np.where(near & ~thing, np.uint8(VOID), label)


def _photograph(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Texture, reflections and lamp light, then half the size with blur, colour cast and noise."""
    view = canvas.view
    picture = np.asarray(canvas.image, np.float32)
    grain = np.asarray(canvas.grain, np.float32) * np.float32(1 / 255)
    texture = 0.6 * _smooth_noise(rng, view.height, view.width, 1.6) + 0.6 * _smooth_noise(
        rng, view.height, view.width, 5
    )
    picture = picture * (1 + grain * (texture - 0.6))[..., None]
    if canvas.light.wet:
        _reflect(canvas, picture)
    if canvas.glows:
        picture += _glow(canvas)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).reduce(2)
    blur = _between(rng, -0.3, 0.7)
    if blur > 0.2:
        image = image.filter(ImageFilter.BoxBlur(0.5 * blur))
    return _expose(rng, np.asarray(image, np.float32))


def _reflect(canvas: Canvas, picture: np.ndarray) -> None:
    """Mirror what is above the horizon in the wet road, in place."""
    height, horizon = canvas.view.height, int(canvas.view.horizon)
    rows = np.arange(horizon + 1, height)
    source = np.clip(2 * horizon - rows, 0, height - 1)
    road = (np.asarray(canvas.label)[horizon + 1 :] == ROAD)[..., None]
    picture[horizon + 1 :] += canvas.light.wet * road * (picture[source] - picture[horizon + 1 :])


def _glow(canvas: Canvas) -> np.ndarray:
    """Light around lamps, (height, width, 3) float32."""
    size = (max(1, canvas.view.width // 4), max(1, canvas.view.height // 4))
    layer = Image.new("RGB", size)
    pen = ImageDraw.Draw(layer)
    for x, y, radius, colour in canvas.glows:
        x, y, radius = x / 4, y / 4, min(radius / 4, 9) + 0.5
        pen.ellipse((round(x - radius), round(y - radius), round(x + radius), round(y + radius)), fill=colour)
    soft = layer.filter(ImageFilter.BoxBlur(2)).filter(ImageFilter.BoxBlur(2))
    soft = soft.resize((canvas.view.width, canvas.view.height), Image.Resampling.BILINEAR)
    return 0.5 * np.asarray(soft, np.float32)


def _expose(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Exposure, contrast, colour cast and sensor noise of a random camera; returns uint8."""
    gain, contrast = _between(rng, 0.82, 1.15), _between(rng, 0.85, 1.15)
    cast = (0.93 + 0.14 * rng.random(3)).astype(np.float32) * np.float32(gain)
    strength = np.float32(_between(rng, 1, 5))
    noise = rng.standard_normal(picture.shape[:2], dtype=np.float32)[..., None]
    speckle = rng.random(picture.shape, dtype=np.float32) - np.float32(0.5)
    picture = (picture * cast - 118) * np.float32(contrast) + 118
    return (picture + strength * (noise + speckle)).clip(0, 255).astype(np.uint8)
