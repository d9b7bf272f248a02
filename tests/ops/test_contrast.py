"""The contrastive terms against loops over vectors, hand calculations and the released code; their checks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.ops import channel_contrast, omni_contrast, spatial_contrast

# small N and M, so that the loops stay short; each with its meaning for the loops below
MODES = {
    "omni, other groups": (omni_contrast, {"patch_size": 2, "channel_groups": 3}, (2, 3, "other_groups")),
    "omni, all": (omni_contrast, {"patch_size": 2, "channel_groups": 3, "negatives": "all"}, (2, 3, "all")),
    "spatial": (spatial_contrast, {"patch_size": 2}, (2, 1, "all")),
    "channel": (channel_contrast, {"channel_groups": 3}, (1, 3, "all")),
}
on_both_distances = pytest.mark.parametrize("distance", ["l1", "l2"])


on_every_backend = pytest.mark.parametrize("backend", ["reference", "torch", "auto"])  # auto: native if it runs


def random_maps(shape=(2, 6, 4, 4), dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return student, torch.randn(shape, generator=generator, dtype=dtype)


def contrast_by_loops(student, teacher, patch, groups, negatives, temperature, distance):
    """Compute value and gradient, vector by vector in float64, with the gradient formula of method.md for L1."""
    student, teacher = (tensor.detach().double().numpy() for tensor in (student, teacher))
    batch, channels, height, width = student.shape
    rows, columns = height // patch, width // patch
    norm, size = {"l1": 1, "l2": 2}[distance], channels // groups
    total, gradient = 0.0, np.zeros_like(student)
    for b, row, column in np.ndindex(batch, rows, columns):
        places = {  # position and group -> where the vector lies
            (i, j, k): (b, slice(k * size, (k + 1) * size), row * patch + i, column * patch + j)
            for i, j, k in np.ndindex(patch, patch, groups)
        }
        for anchor, place in places.items():
            kept = [other for other in places if other == anchor or negatives == "all" or other[2] != anchor[2]]
            differences = [student[place] - teacher[places[other]] for other in kept]
            weights = np.exp([-np.linalg.norm(each, ord=norm) / temperature for each in differences])
            weights /= weights.sum()
            positive = [other == anchor for other in kept]
            total -= math.log(weights[positive.index(True)])
            gradient[place] += (positive - weights) @ np.sign(differences) / temperature
    positions = batch * rows * patch * columns * patch
    return total / positions, torch.from_numpy(gradient / positions)


@on_both_distances
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (1, 3, 5, 7)])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_equals_loops_over_vectors(mode, shape, distance):
    function, options, loop_options = MODES[mode]
    student, teacher = random_maps(shape)
    value, gradient = contrast_by_loops(student, teacher, *loop_options, temperature=0.5, distance=distance)
    options = {**options, "temperature": 0.5, "distance": distance, "backend": "reference"}
    actual = function(student, teacher.requires_grad_(), **options)
    assert actual.shape == () and actual.dtype == torch.float32
    assert actual.item() == pytest.approx(value, rel=1e-5)
    (3 * actual).backward()
    assert teacher.grad is None
    if distance == "l1":
        torch.testing.assert_close(student.grad, 3 * gradient.float(), rtol=1e-4, atol=1e-6)


@on_both_distances
@pytest.mark.parametrize("mode", MODES)
def test_gradients_pass_gradcheck_in_float64(mode, distance):
    function, options, _ = MODES[mode]
    student, teacher = random_maps((1, 6, 2, 4), dtype=torch.float64)
    options = {**options, "temperature": 0.5, "distance": distance, "backend": "reference"}
    assert function(student, teacher, **options).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda tensor: function(tensor, teacher, **options), student)


@pytest.mark.parametrize(
    ("student", "teacher", "distance", "lengths"),
    [  # two groups at one pixel; lengths: to the positive and to the negative, of either anchor
        ([0.0, 1.0], [0.0, 3.0], "l1", ((0, 3), (2, 1))),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0], "l1", ((0, 7), (7, 0))),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0], "l2", ((0, 5), (5, 0))),  # the norm, not its square
    ],
)
def test_a_pixel_with_two_groups_by_hand(student, teacher, distance, lengths):
    maps = (torch.tensor(each).view(1, -1, 1, 1) for each in (student, teacher))
    actual = channel_contrast(*maps, channel_groups=2, temperature=1.0, distance=distance)
    expected = sum(math.log(1 + math.exp(positive - negative)) for positive, negative in lengths)
    assert actual.item() == pytest.approx(expected, rel=1e-6)


@on_every_backend
@on_both_distances
def test_equal_vectors_count_the_negatives_and_get_no_gradient(distance, backend):
    ones, student = torch.ones(2, 32, 8, 4), torch.ones(2, 32, 8, 4, requires_grad=True)
    for function, options, factor, negatives in (
        (omni_contrast, {}, 16, 240),
        (omni_contrast, {"negatives": "all"}, 16, 255),
        (spatial_contrast, {}, 1, 15),
        (channel_contrast, {}, 16, 15),
    ):
        value = function(student, ones, **options, distance=distance, backend=backend)
        assert value.item() == pytest.approx(factor * math.log(1 + negatives), rel=1e-5)
        value.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@on_every_backend
def test_a_student_equal_to_the_teacher_has_almost_no_loss_and_large_distances_do_not_overflow(backend):
    student, teacher = random_maps((1, 256, 4, 4))
    assert 0 <= omni_contrast(teacher, teacher, backend=backend).item() < 1e-6
    loss = omni_contrast(1e4 * student, 1e4 * teacher, backend=backend)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


@on_every_backend
def test_value_and_gradient_equal_the_released_code(golden, backend):
    student = golden["citys.raw"].requires_grad_()
    loss = omni_contrast(F.max_pool2d(student, 4), F.max_pool2d(golden["citys.teacher"], 4), backend=backend)
    loss.backward()
    torch.testing.assert_close(loss, golden["citys.raw_ctr"], rtol=1e-4, atol=0)
    torch.testing.assert_close(student.grad, golden["citys.raw_grad"], rtol=1e-4, atol=1e-6)


@on_every_backend
def test_half_precision_maps_are_computed_in_float32_even_under_autocast(backend):
    student, teacher = (maps.detach().bfloat16() for maps in random_maps((1, 32, 4, 4)))
    for distance in ("l1", "l2"):
        options = {"distance": distance, "backend": backend}
        expected = omni_contrast(student.float(), teacher.float(), **options)
        assert expected.dtype == torch.float32
        assert torch.equal(omni_contrast(student, teacher, **options), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(omni_contrast(student, teacher, **options), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_groups": 16}, "channel_groups=16 does not divide the 30 channels of the maps; .* 6, 10 or 15"),
        ({"patch_size": 0}, "patch_size=0 must be a whole number of at least 1"),
        ({"distance": "cosine"}, "unknown distance='cosine'; use one of 'l1', 'l2'"),
        ({"negatives": "none"}, "unknown negatives='none'; use one of 'other_groups', 'all'"),
        ({"backend": "cuda"}, "unknown backend='cuda'; use one of 'auto', 'reference', 'torch', 'native', 'triton'"),
        ({"channel_groups": 1}, "leave an anchor no negatives"),
        ({"channel_groups": 1, "patch_size": 1, "negatives": "all"}, "leave an anchor no negatives"),
        ({"patch_size": 8}, r"\(1, 30, 4, 4\) hold no patch of 8x8"),
    ],
)
def test_bad_settings_are_explained(options, message):
    student, teacher = random_maps((1, 30, 4, 4))
    with pytest.raises(ValueError, match=message):
        omni_contrast(student, teacher, **{"channel_groups": 3, **options})


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((6, 4, 4), (6, 4, 4), "must be maps .B, C, H, W. of the same shape"),
        ((1, 6, 4, 4), (1, 6, 4, 8), "must be maps .B, C, H, W. of the same shape"),
        ((0, 6, 4, 4), (0, 6, 4, 4), "hold no patch"),
    ],
)
def test_maps_that_are_empty_or_not_of_one_4d_shape_are_rejected(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        spatial_contrast(torch.zeros(student), torch.zeros(teacher))
