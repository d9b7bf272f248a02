from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from afdcd_hf.data.resizing import BLOCK_PIXELS, bilinear_taps, resize_bilinear, resize_nearest


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(pixels, size):
    return resize_bilinear(Image.fromarray(pixels), size, np.arange(size[0]), np.arange(size[1]))


def interpolated(pixels, size):
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(batch, size=size, mode="bilinear", align_corners=False, antialias=False)
    return resized[0].permute(1, 2, 0).numpy()


def random_case(rng):
    """Source and target size, and the rows and columns of a crop, often larger than what it is cut from."""
    height, width = rng.integers(1, 80, 2)
    scale = rng.choice([0.1, 0.5, 0.7, 1.0, 1.3, 1.5, 2.0, rng.uniform(0.2, 3.0)])
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if rng.random() < 0.3:
        size = tuple(int(side) for side in rng.integers(1, 150, 2))
    kept = []
    for side in size:
        crop = int(rng.integers(1, 100))
        start = int(rng.integers(max(side - crop, 0) + 1))
        kept.append(np.arange(start, min(start + crop, side)))
    return (height, width), size, *kept


def test_a_part_of_the_resized_image_equals_that_part_of_the_whole_bit_by_bit():
    rng = np.random.default_rng(1)
    for seed in range(300):
        source, size, rows, columns = random_case(rng)
        pixels = noise(*source, seed)
        part = resize_bilinear(Image.fromarray(pixels), size, rows, columns)
        assert np.array_equal(part, whole(pixels, size)[rows][:, columns]), (source, size)
        mirrored = resize_bilinear(Image.fromarray(pixels), size, rows, columns[::-1])
        assert np.array_equal(mirrored, part[:, ::-1]), (source, size)


def test_the_whole_is_what_pytorch_computes_on_uint8():
    rng = np.random.default_rng(2)
    exact = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    for seed in range(300):
        source, size, _, _ = random_case(rng)
        pixels = noise(*source, seed)
        difference = whole(pixels, size).astype(int) - interpolated(pixels, size)
        assert np.abs(difference).max() <= (0 if exact else 1), (source, size)


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.0, 1.9])
def test_blocks_of_rows_leave_no_seams(scale):
    pixels = noise(200, 400)
    size = (round(200 * scale), round(400 * scale))
    assert size[0] * size[1] > BLOCK_PIXELS
    assert np.abs(whole(pixels, size).astype(int) - interpolated(pixels, size)).max() <= 1


def test_values_by_hand():
    pixels = np.array([[[0] * 3, [100] * 3]], np.uint8)  # at twice the width: 0, a quarter, three quarters, 100
    assert whole(pixels, (1, 4))[0, :, 0].tolist() == [0, 25, 75, 100]
    assert whole(pixels, (1, 1)).tolist() == [[[50] * 3]]
    assert whole(pixels.transpose(1, 0, 2), (4, 1))[:, 0, 0].tolist() == [0, 25, 75, 100]
    assert whole(np.array([[[9, 8, 7]]], np.uint8), (3, 2)).tolist() == [[[9, 8, 7]] * 2] * 3


def test_an_axis_that_keeps_its_size_has_weights_of_one():
    taps = bilinear_taps(7, 7, np.arange(7))
    assert taps.low.tolist() == taps.high.tolist() == list(range(7))
    assert (taps.low_weight == 1 << taps.bits).all() and not taps.high_weight.any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_modes_are_read_as_rgb(mode):
    image = Image.fromarray(noise(9, 11)).convert(mode)
    expected = whole(np.asarray(image.convert("RGB")), (13, 8))
    assert np.array_equal(resize_bilinear(image, (13, 8), np.arange(13), np.arange(8)), expected)


def test_labels_show_the_pixel_that_nearest_neighbour_interpolation_picks():
    rng = np.random.default_rng(3)
    for _ in range(100):
        source, size, rows, columns = random_case(rng)
        ids = rng.integers(0, 200, source, dtype=np.uint8)
        expected = [[ids[y * source[0] // size[0], x * source[1] // size[1]] for x in columns] for y in rows]
        assert np.array_equal(resize_nearest(ids, size, rows, columns), expected)
