from __future__ import annotations

import numpy as np
import pytest

from afdcd_hf.data.resizing import resize_bilinear, resize_nearest, resized_side

SCALES = [k / 10 for k in range(5, 21)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def whole(pixels, scale, resize=resize_bilinear):
    rows, columns = (np.arange(resized_side(side, scale)) for side in pixels.shape[:2])
    return resize(pixels, scale, rows, columns)


def bilinear_by_hand(pixels, scale):
    """Each axis by linear interpolation between pixel centres, at (x + 1/2) / scale - 1/2, in floating point."""
    result = pixels.astype(np.float64)
    for axis in (0, 1):
        wanted = (np.arange(resized_side(pixels.shape[axis], scale)) + 0.5) / scale - 0.5
        centres = np.arange(pixels.shape[axis])
        result = np.apply_along_axis(lambda line, x=wanted, c=centres: np.interp(x, c, line), axis, result)
    return result


LINE = [10, 50, 210, 90, 170, 0, 255]
OPENCV = {  # cv2.resize(..., None, fx=scale, fy=scale) of OpenCV 5.0: INTER_LINEAR, INTER_NEAREST
    0.5: ([30, 150, 85, 255], [10, 210, 170, 255]),
    0.7: ([18, 153, 96, 85, 237], [10, 50, 210, 170, 0]),
    0.9: ([12, 77, 177, 121, 85, 156], [10, 50, 210, 90, 170, 0]),
    1.1: ([10, 45, 174, 128, 137, 85, 104, 255], [10, 10, 50, 210, 90, 170, 0, 255]),
    1.3: ([10, 36, 118, 187, 94, 148, 85, 68, 255], [10, 10, 50, 210, 90, 90, 170, 0, 255]),
}


@pytest.mark.parametrize("scale", OPENCV)
def test_sampling_positions_are_opencv_s_also_where_the_side_is_rounded(scale):
    linear, nearest = OPENCV[scale]
    pixels = np.broadcast_to(np.uint8(LINE)[None, :, None], (4, 7, 3))
    found = whole(pixels, scale).astype(int)
    assert np.abs(found - np.array(linear)[None, :, None]).max() <= 1
    assert np.abs(whole(pixels.swapaxes(0, 1), scale).astype(int) - np.array(linear)[:, None, None]).max() <= 1
    assert whole(pixels[..., 0], scale, resize_nearest).tolist() == [nearest] * resized_side(4, scale)


def random_case(rng):
    """Source size, scale, and the rows and columns of a crop, often larger than what it is cut from."""
    source, scale, kept = rng.integers(1, 80, 2), float(rng.choice(SCALES)), []
    for side in (resized_side(int(side), scale) for side in source):
        crop = int(rng.integers(1, 100))
        start = int(rng.integers(max(side - crop, 0) + 1))
        kept.append(np.arange(start, min(start + crop, side)))
    return tuple(source), scale, *kept


def test_the_whole_is_bilinear_and_a_part_of_it_is_that_part_bit_by_bit():
    rng = np.random.default_rng(1)
    for seed in range(150):
        source, scale, rows, columns = random_case(rng)
        pixels = noise(*source, seed)
        result = whole(pixels, scale)
        assert np.abs(result - bilinear_by_hand(pixels, scale)).max() < 0.75, (source, scale)  # rounded once, 11 bits
        part = resize_bilinear(pixels, scale, rows, columns)
        assert np.array_equal(part, result[rows][:, columns]), (source, scale)
        assert np.array_equal(resize_bilinear(pixels, scale, rows, columns[::-1]), part[:, ::-1]), (source, scale)


def test_values_by_hand():
    pixels = np.array([[[0] * 3, [100] * 3]], np.uint8)  # at twice the width: 0, a quarter, three quarters, 100
    assert whole(pixels, 2.0)[0, :, 0].tolist() == [0, 25, 75, 100]
    assert whole(pixels, 0.5).tolist() == [[[50] * 3]]
    assert whole(pixels.swapaxes(0, 1), 2.0)[:, 0, 0].tolist() == [0, 25, 75, 100]
    assert whole(np.array([[[9, 8, 7]]], np.uint8), 3.0).tolist() == [[[9, 8, 7]] * 3] * 3
    same = noise(5, 7)
    assert np.array_equal(whole(same, 1.0), same)


def test_labels_show_the_pixel_that_nearest_neighbour_interpolation_picks():
    rng = np.random.default_rng(3)
    for _ in range(100):
        source, scale, rows, columns = random_case(rng)
        ids = rng.integers(0, 200, source, dtype=np.uint8)
        step = 1 / scale
        below, right = (
            [min(int(position * step), side - 1) for position in kept]
            for kept, side in zip((rows, columns), source, strict=True)
        )
        expected = [[ids[y, x] for x in right] for y in below]
        assert np.array_equal(resize_nearest(ids, scale, rows, columns), expected)
