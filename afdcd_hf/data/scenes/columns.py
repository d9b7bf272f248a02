"""Scenes as columns of a dataset: encoded images and labels, and their names."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from . import generate_scene


def scene_columns(
    split: str, splits: Sequence[str], num_images: int, size: tuple[int, int] = (96, 192), seed: int = 0
) -> dict[str, list[Any]]:
    """PNG-encoded scenes of one split, never the same in two splits or under two seeds.

    Args:
        split: One of `splits`.
        splits: All splits, in their order.
        num_images: How many.
        size: Height and width.
        seed: Which scenes.

    Raises:
        ValueError: If `num_images` or `seed` is out of range.
    """
    if not 1 <= num_images < 2**32 or seed < 0:
        raise ValueError(f"num_images={num_images}, seed={seed}: at least one image and a seed >= 0 are needed.")
    # Every (seed, split) owns a range of 2^32 scene seeds, so that validation scenes can't have been trained on.
    block = seed * len(splits) + list(splits).index(split)
    images, labels = _draw_scenes(block << 32, num_images, tuple(size))
    names = [f"scenes/{split}/{index:06d}" for index in range(num_images)]
    return {"image": images, "label": labels, "name": names}


@lru_cache(maxsize=4)  # drawing takes about 20 ms a scene, and one process often loads the same split again
def _draw_scenes(first_seed: int, count: int, size: tuple[int, int]) -> tuple[list[dict], list[dict]]:
    scenes = [generate_scene(first_seed + index, size) for index in range(count)]
    return [_png(image) for image, _ in scenes], [_png(label) for _, label in scenes]


def _png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}
