"""The generated street scenes: reproducible, well formed, and the same everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.data.scene_canvas import Label
from afdcd_hf.data.scenes import generate_scene


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [generate_scene(seed) for seed in range(30)]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 300)])
def test_scenes_of_any_size_from_32_pixels_ignore_the_global_random_state(size):
    np.random.seed(1)
    (image, label), state = generate_scene(5, size), np.random.get_state()[1].copy()
    np.random.seed(2)
    again = generate_scene(np.int64(5), list(size))
    np.random.seed(1)
    assert np.array_equal(state, np.random.get_state()[1])
    assert np.array_equal(image, again[0]) and np.array_equal(label, again[1])
    assert image.shape == (*size, 3) and label.shape == size and image.dtype == label.dtype == np.uint8
    classes = [getattr(Label, name.upper()) for name in BENCHMARKS["scenes"].classes]
    assert classes == [*range(8)] and set(np.unique(label)) <= {*classes, Label.VOID}
    assert all(array.flags.writeable and array.flags.c_contiguous for array in (image, label))


def test_bad_seeds_and_sizes_are_named():
    for seed, size in ((-1, (96, 96)), (0, (31, 96))):
        with pytest.raises(ValueError, match=rf"seed={seed}, size=\({size[0]}, 96\): .* at least 32"):
            generate_scene(seed, size)


def test_scenes_are_the_same_on_every_platform(scenes):
    """Compare with pixels drawn on x86-64 Linux with Python 3.11, numpy 2.4 and Pillow 13."""
    image, label = scenes[11]
    assert hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:16] == "22562a1a02038119"
    drawn = b"".join(array.tobytes() for scene in scenes for array in scene)
    assert hashlib.sha256(drawn).hexdigest()[:16] == "f773c0f8ec53e430"
