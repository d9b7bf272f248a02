"""What a scene's things stand on and before: the sky, the skyline, road and pavements, and the shadows on them."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import BUILDING, ROAD, SIDEWALK, TREE, Canvas, Light, View
from .chance import GREYS, URBAN, any_of, between, pick, smooth_noise
from .layout import Plan
from .plants import LEAVES
from .setting import Street


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """A gradient down to the horizon with clouds."""
    view, light = canvas.view, canvas.light
    rows = min(view.height, int(view.horizon) + 2)
    height = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    top, low = (np.array(colour, np.float32) for colour in (light.sky_top, light.sky_low))
    picture = top + (low - top) * height * height
    cell = rows / 5
    puffs = 0.65 * smooth_noise(rng, rows, view.width, cell, 2.5) + 0.35 * smooth_noise(
        rng, rows, view.width, cell / 3, 2
    )
    cover = np.clip((puffs - 0.75 + 0.45 * light.clouds) * 3, 0, 0.8)[..., None]
    bright = 0.5 * low + 0.5 * np.array((250, 246, 242), np.float32) * min(1.0, light.ambient[2])
    shade = 1 - 0.25 * smooth_noise(rng, rows, view.width, cell / 2, 2)[..., None]
    picture = picture + cover * (bright * shade - picture)
    canvas.paste(0, picture.clip(0, 255).astype(np.uint8))


def paint_skyline(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """Distant buildings and trees along the horizon."""
    view = canvas.view
    _, scale = view.post(0, 140)
    x, base, tall = 0.0, view.horizon + scale * view.camera + 2, any_of(rng, 9, 16, 30)
    while x < view.width:
        width, height = between(rng, 7, 22) * scale, between(rng, 0.35, 1) * tall * scale
        if rng.random() < 0.65:
            corners = [(x, base), (x, base - height), (x + width, base - height), (x + width, base)]
            canvas.shape(corners, canvas.light.shine(pick(rng, URBAN + GREYS), 110), BUILDING, 30)
        else:
            leaf = canvas.light.shine(pick(rng, LEAVES[street.season]), 110)
            canvas.disc(x + width / 2, base - 2 * scale, width * 0.6, 0.45 * height + 3 * scale, leaf, TREE, 90)
        x += width * between(rng, 0.7, 1.1)


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
    slab = float(any_of(rng, 0.8, 1.2, 2.0))
    ix, iz = np.floor(x * np.float32(1 / slab)), np.floor(z * np.float32(1 / slab))
    slabs = tile[iz.astype(np.int32) & 63, ix.astype(np.int32) & 63]
    joints = ((x * np.float32(1 / slab) - ix) < 0.06) | ((z * np.float32(1 / slab) - iz) < 0.1)
    paving = 0.14 * (slabs - 0.5) - 0.18 * joints * float(rng.random() < 0.6)
    stains = 0.24 * (smooth_noise(rng, height, width, 7, 3) - 0.5)
    grit = 0.14 * (smooth_noise(rng, height, width, 2) - 0.5)
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
        px, pz, dark = between(rng, street.left, street.right), between(rng, 4, 30), between(rng, 0.75, 1.15)
        colour[road & (np.abs(x - px) < between(rng, 0.3, 1.2)) & (np.abs(z - pz) < between(rng, 0.4, 5))] *= dark
    marks = _lane_marks(rng, street, x, z)
    if street.zebra:
        marks |= (z > street.zebra) & (z < street.zebra + 3) & (np.floor(x * 1.8).astype(np.int32) & 1 == 0)
    if street.side_road:
        inside = (z > street.side_road[0]) & (z < street.side_road[1])
        marks &= ~inside
    wear = between(rng, 0.55, 0.95)
    return np.where((marks & road)[..., None], colour + wear * (paint - colour), colour)


def _lane_marks(rng: np.random.Generator, street: Street, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Solid lines at the sides, broken ones between lanes."""
    half = 0.06 + 0.0012 * np.minimum(z, 80)
    phase, period = between(rng, 0, 9), between(rng, 6, 11)
    broken = (z + phase) % np.float32(period) < 0.45 * period
    marks = np.zeros(x.shape, bool)
    for number, line in enumerate(street.lines):
        hit = np.abs(x - np.float32(line)) < half
        marks |= hit if number in (0, len(street.lines) - 1) else hit & broken
    return marks
