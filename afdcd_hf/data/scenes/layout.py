"""The layout: which buildings, trees, poles, cars and people a scene has, where they stand, and who hides whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .buildings import Building, paint_building
from .canvas import Canvas, View
from .cars import Car, paint_car
from .chance import GREYS, SKINS, URBAN, any_of, between, pick
from .people import HAIRS, Person, paint_person
from .plants import BARKS, LEAVES, Tree, paint_tree
from .poles import Pole, paint_pole
from .setting import Street

FARTHEST = 110.0  # metres; beyond it there is only the skyline


@dataclass(frozen=True)
class Plan:
    """Everything that stands on the ground of one scene."""

    buildings: list[Building]
    trees: list[Tree]
    poles: list[Pole]
    cars: list[Car]
    people: list[Person]


def plan_things(rng: np.random.Generator, view: View, street: Street) -> Plan:
    """Both sides of the street, then traffic and people."""
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
    low, high = any_of(rng, (3.5, 7.0), (4.5, 9.0), (6.0, 14.0), (10.0, 30.0))
    gap_share, z = any_of(rng, 0.1, 0.3, 0.6), between(rng, 0.8, 6)
    blocks, trees = [], []
    while z < FARTHEST:
        length = between(rng, 5, 16)
        if street.side_road and z < street.side_road[1] and z + length > street.side_road[0]:
            length = street.side_road[0] - 1.5 - z
            if length < 3:
                z = street.side_road[1] + 1.5
                continue
        if rng.random() < gap_share:
            trees += [_grow(rng, street, side * (line + between(rng, 1, 6)), z + between(rng, 0, length), True)
                      for _ in range(int(rng.integers(1, 4)))]  # fmt: skip
        else:
            setback = between(rng, 0, 3.5) if rng.random() < 0.3 else 0.0
            blocks.append(_design(rng, side, line + setback, z, length, between(rng, low, high)))
        z += length + (between(rng, 0.5, 3) if rng.random() < 0.3 else 0.0)
    return blocks, trees


def _design(rng: np.random.Generator, side: int, x: float, z: float, length: float, height: float) -> Building:
    windows = any_of(
        rng, "grid", "grid", "tall", "ribbon", "none" if height < 14 else "glass", "glass" if height > 9 else "grid"
    )
    return Building(
        side,
        side * x,
        z,
        z + length,
        height,
        between(rng, 7, 12),
        pick(rng, URBAN + GREYS),
        pick(rng, URBAN),
        pick(rng, ((60, 74, 88), (96, 118, 136), (44, 48, 54), (120, 130, 128))),
        windows,
        any_of(rng, "shop", "doors", "plain"),
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
    return Tree(x, z, between(rng, low, high), kind, pick(rng, LEAVES[season]), pick(rng, BARKS))


def _plan_avenue(rng: np.random.Generator, street: Street, side: int) -> list[Tree]:
    """Trees along the kerb, at even distances, or one or two single ones."""
    x = _edge(street, side) + side * between(rng, 0.8, 1.4)
    if rng.random() < 0.45:
        spots = np.arange(between(rng, 8, 14), 80, between(rng, 7, 13)).tolist()
    else:
        spots = [between(rng, 12, 50) for _ in range(int(rng.integers(0, 3)))]
    return [_grow(rng, street, x, z) for z in spots if not _in_side_road(street, z)]


def _plan_poles(rng: np.random.Generator, view: View, street: Street, side: int) -> list[Pole]:
    """A row of lamps or wires, single signs and lights near the front, and sometimes bollards."""
    x, metal = _edge(street, side) + side * between(rng, 0.3, 0.7), pick(rng, GREYS + URBAN)
    start = _seen_from(view, x)
    kind = any_of(rng, "lamp", "lamp", "utility")
    spots = np.arange(start + between(rng, 0, 8), 70, between(rng, 14, 24)).tolist() if rng.random() < 0.65 else []
    poles = [Pole(x, z, kind, -side, metal) for z in spots]
    poles += [Pole(x, start * between(rng, 1.1, 3), any_of(rng, "sign", "sign", "signal"), -side, pick(rng, GREYS))
              for _ in range(int(rng.integers(0, 3)))]  # fmt: skip
    if street.side_road and rng.random() < 0.6:
        poles.append(Pole(x, street.side_road[0] - 1.0, "signal", -side, pick(rng, GREYS)))
    if rng.random() < 0.25:
        poles += [Pole(x, float(z), "bollard", -side, metal) for z in np.arange(start, 30, 2.5)]
    return [pole for pole in poles if not _in_side_road(street, pole.z)]


def _model(rng: np.random.Generator, x: float, z: float, heading: str) -> Car:
    kind = any_of(rng, "saloon", "saloon", "hatch", "hatch", "suv", "suv", "van", "truck")
    return Car(x, z, kind, heading, pick(rng, URBAN))


def _plan_parked(rng: np.random.Generator, street: Street, side: int) -> list[Car]:
    """Cars along the kerb where there is room for them."""
    lines_end = street.lines[0] if side < 0 else street.lines[-1]
    edge = _edge(street, side)
    if abs(edge - lines_end) < 1 or rng.random() < 0.2:
        return []
    cars, z, share = [], between(rng, 6, 14), between(rng, 0.3, 0.75)
    while z < 70:
        car = _model(rng, edge - side * 1.15, z, any_of(rng, "away", "away", "towards"))
        if rng.random() < share and not any(_in_side_road(street, z + u, 2) for u in (0, 3, 6)):
            cars.append(car)
        z += car.length + between(rng, 0.8, 2)
    return cars


def _plan_traffic(rng: np.random.Generator, street: Street) -> list[Car]:
    """One or two cars a lane: ahead of us, oncoming on the left, and across at the side road."""
    cars = []
    for start, end in zip(street.lines, street.lines[1:], strict=False):
        middle = (start + end) / 2 + between(rng, -0.3, 0.3)
        heading = "towards" if end < 0 and rng.random() < 0.85 else "away"
        z = between(rng, 9 if abs(middle) < 1 else 6, 26)
        for _ in range(int(rng.integers(0, 3))):
            cars.append(_model(rng, middle, z, heading))
            z += between(rng, 8, 25)
    if street.side_road and rng.random() < 0.6:
        cars.append(_model(rng, between(rng, -8, 8), street.side_road[0] + 2, any_of(rng, "left", "right")))
    if not cars:
        cars.append(_model(rng, 0.0, between(rng, 11, 24), "away"))
    return [car for car in cars if car.crosses or not _in_side_road(street, car.z, 0) or rng.random() < 0.3]


def _plan_people(rng: np.random.Generator, view: View, street: Street) -> list[Person]:
    """Single people and small groups on the pavements, on the zebra crossing and now and then in the road."""
    people = []
    for _ in range(int(rng.integers(3, 7))):
        side = any_of(rng, -1, 1)
        x = _edge(street, side) + side * between(rng, 0.5, max(0.8, street.pavements[side > 0] - 0.4))
        z = _seen_from(view, x) * between(rng, 1, 2.4)
        people += [
            _somebody(rng, x + 0.65 * number, z + between(rng, -0.3, 0.3)) for number in range(any_of(rng, 1, 1, 2, 3))
        ]
    if street.zebra:
        people += [
            _somebody(rng, between(rng, street.left, street.right), street.zebra + between(rng, 0.3, 2.5))
            for _ in range(int(rng.integers(1, 5)))
        ]
    elif rng.random() < 0.4:
        people.append(_somebody(rng, between(rng, street.left, street.right), between(rng, 8, 20)))
    return people


def _somebody(rng: np.random.Generator, x: float, z: float) -> Person:
    height = between(rng, 1.55, 1.9) if rng.random() < 0.88 else between(rng, 1.0, 1.4)
    return Person(
        x,
        z,
        height,
        between(rng, -1, 1) if rng.random() < 0.75 else 0.0,
        pick(rng, URBAN),
        pick(rng, URBAN),
        pick(rng, SKINS),
        pick(rng, HAIRS),
        any_of(rng, "plain", "plain", "plain", "coat", "bag", "bag", "umbrella"),
    )


def paint_things(canvas: Canvas, rng: np.random.Generator, plan: Plan) -> None:
    """Everything that stands on the ground, from far to near; a building counts by its far end."""
    jobs: list[tuple[float, Callable, object]] = [(block.z1, paint_building, block) for block in plan.buildings]
    jobs += [(tree.z, paint_tree, tree) for tree in plan.trees]
    jobs += [(pole.z, paint_pole, pole) for pole in plan.poles]
    jobs += [(car.z, paint_car, car) for car in plan.cars]
    jobs += [(person.z, paint_person, person) for person in plan.people]
    for _, paint, thing in sorted(jobs, key=lambda job: -job[0]):
        paint(canvas, rng, thing)
