"""The generated street scenes: reproducible, well formed, balanced, and labelled where they are painted."""

from __future__ import annotations

import numpy as np
import pytest

from afdcd_hf.data.scenes import SCENE_CLASSES, SCENE_PALETTE, generate_scene
from afdcd_hf.data.scenes.camera import shrink_label, void_borders
from afdcd_hf.data.scenes.canvas import CAR, PERSON, POLE, SKY, VOID, Canvas, Light, View

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
    return [generate_scene(seed) for seed in range(40)]


@pytest.fixture
def canvas() -> Canvas:
    view = View(width=64, height=48, horizon=20.0, centre=32.0, focal=40.0, camera=1.5, bend=0.0)
    light = Light((90, 90, 90), (200, 200, 200), (1, 1, 1), 0.0, (0, 0), 0.0, 0.0, 0.0, 0.0)
    return Canvas(view, light)


def _gradient(image: np.ndarray) -> np.ndarray:
    """Largest colour step of each pixel to its right and lower neighbour, without the last row and column."""
    values = image.astype(float)
    right = np.abs(np.diff(values, axis=1)).sum(-1)[:-1]
    down = np.abs(np.diff(values, axis=0)).sum(-1)[:, :-1]
    return np.maximum(right, down)


def _borders(label: np.ndarray) -> np.ndarray:
    return (np.diff(label.astype(int), axis=1) != 0)[:-1] | (np.diff(label.astype(int), axis=0) != 0)[:, :-1]


def test_the_same_seed_and_size_give_the_same_bytes():
    for size in ((96, 192), (50, 71)):
        first, second = generate_scene(5, size), generate_scene(np.int64(5), list(size))
        assert first[0].tobytes() == second[0].tobytes()
        assert first[1].tobytes() == second[1].tobytes()


def test_neighbouring_seeds_give_different_scenes(scenes):
    assert len({image.tobytes() for image, _ in scenes}) == len(scenes)
    assert len({label.tobytes() for _, label in scenes}) == len(scenes)


def test_the_global_random_state_is_neither_read_nor_moved():
    np.random.seed(1)
    before = generate_scene(3)[0]
    state = np.random.get_state()[1].copy()
    np.random.seed(2)
    assert np.array_equal(before, generate_scene(3)[0])
    np.random.seed(1)
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("size", [(96, 192), (32, 32), (33, 47), (32, 300), (220, 32), (129, 257)])
def test_any_size_from_32_pixels_on_works(size):
    for seed in range(3):
        image, label = generate_scene(seed, size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert label.shape == size and label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(len(SCENE_CLASSES)), VOID}


def test_arrays_are_writable_and_contiguous():
    for array in generate_scene(0):
        assert array.flags.writeable and array.flags.c_contiguous


def test_classes_and_palette_go_together():
    assert SCENE_CLASSES == ("sky", "building", "road", "sidewalk", "tree", "pole", "car", "person")
    assert len(SCENE_PALETTE) == len(SCENE_CLASSES)
    colours = np.array(SCENE_PALETTE)
    steps = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(colours), dtype=int)
    assert steps.min() >= 60


def test_class_shares_stay_in_their_bounds(scenes):
    counts = sum(np.bincount(label.ravel(), minlength=256) for _, label in scenes)
    shares = counts[: len(SCENE_CLASSES)] / counts[: len(SCENE_CLASSES)].sum()
    for name, share in zip(SCENE_CLASSES, shares, strict=True):
        assert SHARES[name][0] <= share <= SHARES[name][1], f"{name} covers {share:.2%}"
    assert 0.002 < counts[VOID] / counts.sum() < 0.06


def test_every_class_appears_within_20_scenes_and_in_most_of_them(scenes):
    for class_id, name in enumerate(SCENE_CLASSES):
        share = np.mean([(label == class_id).any() for _, label in scenes[:20]])
        assert share >= 0.8, f"{name} appears in {share:.0%} of the scenes"


def test_label_borders_lie_on_picture_edges(scenes):
    on, off, moved = [], [], []
    for image, label in scenes:
        gradient, borders = _gradient(image), _borders(label)
        on.append(gradient[borders].mean())
        off.append(gradient[~borders].mean())
        moved.append(gradient[_borders(np.roll(label, 3, axis=1))].mean())
    assert np.mean(on) > 1.8 * np.mean(off)
    assert np.mean(on) > 1.25 * np.mean(moved)


def test_the_colour_of_a_pixel_does_not_give_its_class_away(scenes):
    """A lookup table from coarse colour to class, learned on half the scenes, is poor on the other half."""
    table = np.zeros((16**3, len(SCENE_CLASSES)))
    keys = [((image >> 4).astype(int) @ np.array([256, 16, 1])).ravel() for image, _ in scenes]
    labels = [label.ravel() for _, label in scenes]
    for key, label in zip(keys[::2], labels[::2], strict=True):
        np.add.at(table, (key[label != VOID], label[label != VOID]), 1)
    guess, truth = table.argmax(1)[np.concatenate(keys[1::2])], np.concatenate(labels[1::2])
    kept = truth != VOID
    hits = np.array([np.sum(kept & (guess == k) & (truth == k)) for k in range(8)])
    unions = np.array([np.sum(kept & ((guess == k) | (truth == k))) for k in range(8)])
    assert (hits / unions).mean() < 0.35


@pytest.mark.parametrize("seed", [-1, 1.5, "1", None, True])
def test_a_bad_seed_is_named(seed):
    with pytest.raises(ValueError, match=r"seed=.*whole number of at least 0"):
        generate_scene(seed)


@pytest.mark.parametrize("size", [(31, 96), (96, 16), (96,), (96, 96, 3), 96, None, (96.0, 96), (True, 96), "ab"])
def test_a_bad_size_is_named(size):
    with pytest.raises(ValueError, match=r"size=.*\(height, width\).*at least 32"):
        generate_scene(0, size)


def test_a_thing_covers_picture_and_label_with_the_same_pixels(canvas):
    canvas.shape([(5, 5), (30, 8), (12, 25)], (10, 200, 30), CAR, grain=9)
    canvas.disc(45, 20, 7, 4, (10, 200, 30), PERSON)
    canvas.bar(55, 5, 40, 3, (10, 200, 30), POLE)
    canvas.stroke((2, 45), (40, 30), 2, (10, 200, 30), POLE)
    painted = (np.asarray(canvas.image) == (10, 200, 30)).all(-1)
    assert painted.sum() > 300
    assert np.array_equal(painted, np.asarray(canvas.label) != SKY)


def test_a_detail_changes_the_picture_only(canvas):
    canvas.shape([(5, 5), (30, 5), (30, 30), (5, 30)], (1, 2, 3), CAR)
    before = np.asarray(canvas.label).copy()
    canvas.disc(15, 15, 4, 4, (250, 250, 250))
    assert np.array_equal(before, np.asarray(canvas.label))
    assert (np.asarray(canvas.image) == 250).any()


def test_a_point_projects_as_through_a_pinhole(canvas):
    assert canvas.view.project(0, 1.5, 10) == (32.0, 20.0)  # eye level is on the horizon
    assert canvas.view.project(2, 0, 4) == (32 + 40 * 2 / 4, 20 + 40 * 1.5 / 4)


def test_haze_and_the_hour_change_colours_but_lamps_keep_theirs():
    light = Light((0, 0, 0), (200, 100, 0), (0.5, 0.5, 0.5), 0.1, (0, 0), 0.0, 0.0, 0.0, 0.0)
    assert light.shine((100, 100, 100), 0) == (50, 50, 50)
    assert light.shine((100, 100, 100), 0, glowing=True) == (100, 100, 100)
    assert light.shine((100, 100, 100), 10) == (125, 75, 25)  # half haze at 10 m


@pytest.mark.parametrize("column", [2, 3])
def test_a_line_two_canvas_pixels_wide_is_one_label_pixel_wide(column):
    enlarged = np.zeros((8, 8), np.uint8)
    enlarged[:, column : column + 2] = POLE
    for label in (shrink_label(enlarged), shrink_label(enlarged.T.copy()).T):
        assert ((label == POLE).sum(1) == 1).all()


def test_void_borders_surround_a_car_and_leave_it_whole():
    label = np.zeros((5, 6), np.uint8)
    label[2, 2:4] = CAR
    label[0, 5] = POLE
    expected = label.copy()
    expected[[1, 1, 3, 3, 2, 2], [2, 3, 2, 3, 1, 4]] = VOID
    assert np.array_equal(void_borders(label), expected)
