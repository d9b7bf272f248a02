"""Trees and bushes of the four seasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import TREE, Canvas, Colour

LEAVES = {
    "summer": ((70, 104, 48), (92, 122, 58), (54, 86, 50), (110, 128, 66)),
    "autumn": ((186, 112, 44), (168, 66, 42), (196, 152, 60), (128, 96, 52), (120, 118, 56)),
    "spring": ((128, 152, 74), (214, 172, 182), (226, 214, 210), (98, 132, 66)),
    "winter": ((58, 78, 56), (84, 84, 62), (112, 98, 76)),
}
BARKS = ((92, 76, 60), (70, 62, 56), (120, 110, 98), (58, 48, 42))


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
    column, ground, scale = canvas.view.foot(tree.x, tree.z)
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
