"""Generated street scenes with exact labels: a small stand-in for a driving data set, with nothing to download.

A scene is laid out in metres (street, buildings, trees, poles, cars, people), painted from far to near at twice the
size on a canvas that draws picture and label together, then photographed: texture, wet road, lamp light, blur, noise.
Colours are shared between classes on purpose, so that shape and context have to be learned.
"""

from __future__ import annotations

import numpy as np

from .camera import paint_bonnet, photograph, shrink_label, void_borders
from .canvas import Canvas
from .ground import cast_shadows, paint_ground, paint_sky, paint_skyline
from .layout import paint_things, plan_things
from .setting import choose_light, choose_street, choose_view

SCENE_CLASSES: tuple[str, ...] = ("sky", "building", "road", "sidewalk", "tree", "pole", "car", "person")
SCENE_PALETTE: tuple[tuple[int, int, int], ...] = (
    (92, 170, 230), (110, 84, 70), (128, 64, 128), (244, 150, 200), (60, 140, 50), (250, 215, 40), (20, 30, 160),
    (225, 30, 50),
)  # fmt: skip


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
    view, light = choose_view(rng, height, width), choose_light(rng)
    street = choose_street(rng)
    plan = plan_things(rng, view, street)
    canvas = Canvas(view, light)
    paint_sky(canvas, rng)
    paint_skyline(canvas, rng, street)
    paint_ground(canvas, rng, street, cast_shadows(view, light, plan))
    paint_things(canvas, rng, plan)
    if rng.random() < 0.35:
        paint_bonnet(canvas, rng)
    label = shrink_label(np.asarray(canvas.label))
    if rng.random() < 0.3:
        label = void_borders(label)
    return photograph(canvas, rng), label


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
