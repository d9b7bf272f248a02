"""The generated street scenes: reproducible, well formed, balanced, and labelled where they are painted."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from afdcd_hf.data.scene_canvas import Label
from afdcd_hf.data.scenes import SCENE_CLASSES, SCENE_PALETTE, generate_scene

# Share of the labelled pixels, averaged over scenes: (least, most). Rare classes must stay learnable.
SHARES = {
    "sky": (0.08, 0.25),
    "building": (0.15, 0.35),
    "road": (0.18, 0.38),
    "sidewalk": (0.04, 0.15),
    "tree": (0.06, 0.20),
    "pole": (0.007, 0.04),
    "car": (0.045, 0.12),
    "person": (0.01, 0.05),
}


@pytest.fixture(scope="module")
def scenes() -> list[tuple[np.ndarray, np.ndarray]]:
    return [generate_scene(seed) for seed in range(30)]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (32, 300)])
def test_any_size_from_32_pixels_on_gives_the_same_scene_again_whatever_the_global_random_state(size):
    np.random.seed(1)
    (image, label), state = generate_scene(5, size), np.random.get_state()[1].copy()
    np.random.seed(2)
    again = generate_scene(np.int64(5), list(size))
    np.random.seed(1)
    assert np.array_equal(state, np.random.get_state()[1])
    assert np.array_equal(image, again[0]) and np.array_equal(label, again[1])
    assert image.shape == (*size, 3) and label.shape == size and image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {*range(len(SCENE_CLASSES)), Label.VOID}
    assert all(array.flags.writeable and array.flags.c_contiguous for array in (image, label))


def test_classes_and_palette_go_together():
    assert SCENE_CLASSES == tuple(SHARES) and len(SCENE_PALETTE) == len(SCENE_CLASSES)
    colours = np.array(SCENE_PALETTE)
    steps = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(colours), dtype=int)
    assert steps.min() >= 60


def test_scenes_differ_and_class_shares_stay_in_their_bounds(scenes):
    assert len({image.tobytes() for image, _ in scenes}) == len({label.tobytes() for _, label in scenes}) == len(scenes)
    counts = sum(np.bincount(label.ravel(), minlength=256) for _, label in scenes)
    shares = counts[: len(SCENE_CLASSES)] / counts[: len(SCENE_CLASSES)].sum()
    for name, share in zip(SCENE_CLASSES, shares, strict=True):
        assert SHARES[name][0] <= share <= SHARES[name][1], f"{name} covers {share:.2%}"
    assert 0.002 < counts[Label.VOID] / counts.sum() < 0.06
    for class_id, name in enumerate(SCENE_CLASSES):
        share = np.mean([(label == class_id).any() for _, label in scenes[:20]])
        assert share >= 0.8, f"{name} appears in {share:.0%} of the scenes"


def test_bad_seeds_and_sizes_are_named():
    for seed in (-1, 1.5, True):
        with pytest.raises(ValueError, match=r"seed=.*whole number of at least 0"):
            generate_scene(seed)
    for size in ((31, 96), (96,), 96, None, (96.0, 96), (True, 96)):
        with pytest.raises(ValueError, match=r"size=.*\(height, width\).*at least 32"):
            generate_scene(0, size)


def test_scenes_are_the_same_on_every_platform(scenes):
    """Pixels drawn on x86-64 Linux with Python 3.11, numpy 2.4 and Pillow 13."""
    image, label = scenes[11]
    assert hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:16] == "22562a1a02038119"
    drawn = b"".join(array.tobytes() for scene in scenes for array in scene)
    assert hashlib.sha256(drawn).hexdigest()[:16] == "f773c0f8ec53e430"
