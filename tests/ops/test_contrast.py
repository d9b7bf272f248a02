"""The contrastive terms against loops over vectors, hand calculations and the released code's numbers.

Every test runs with each backend for CPUs.
"""

from __future__ import annotations

import math

import numpy as np
import paths
import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.ops import channel_contrast, contrast, contrast_reference, omni_contrast, spatial_contrast
from afdcd_hf.ops.contrast_native import native_unavailable

GOLDEN = paths.GOLDEN / "losses.safetensors"

# small N and M, so that the loops stay short; each with what it means for the loops below
MODES = {
    "omni, other groups": (omni_contrast, {"patch_size": 2, "channel_groups": 3}, (2, 3, "other_groups")),
    "omni, all": (omni_contrast, {"patch_size": 2, "channel_groups": 3, "negatives": "all"}, (2, 3, "all")),
    "spatial": (spatial_contrast, {"patch_size": 2}, (2, 1, "all")),
    "channel": (channel_contrast, {"channel_groups": 3}, (1, 3, "all")),
}


@pytest.fixture(autouse=True, params=["reference", "torch", "native"])
def backend(request, monkeypatch):
    """What backend="auto", the default, stands for."""
    reason = native_unavailable(torch.zeros(1), torch.zeros(1)) if request.param == "native" else None
    if reason is not None:
        pytest.skip(reason)
    compute = contrast._contrast

    def chosen(student, teacher, settings, backend):
        return compute(student, teacher, settings, request.param if backend == "auto" else backend)

    monkeypatch.setattr(contrast, "_contrast", chosen)
    return request.param


def random_maps(shape=(2, 6, 4, 4), seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()
    return student, torch.randn(shape, generator=generator, dtype=dtype)


def vectors_of_patch(array, top, left, patch, groups):
    """{(i, j, k): vector} of one patch of one image (C, H, W)."""
    size = array.shape[0] // groups
    return {
        (i, j, k): array[k * size : (k + 1) * size, top + i, left + j]
        for i in range(patch)
        for j in range(patch)
        for k in range(groups)
    }


def contrast_by_loops(student, teacher, patch, groups, negatives, temperature=0.07, distance="l1"):
    """Value and gradient, vector by vector in float64, with the gradient formula of method.md for L1."""
    student, teacher = (tensor.detach().double().numpy() for tensor in (student, teacher))
    batch, channels, height, width = student.shape
    rows, columns = height // patch, width // patch
    norm, size = {"l1": 1, "l2": 2}[distance], channels // groups
    total, gradient = 0.0, np.zeros_like(student)
    for b, row, column in np.ndindex(batch, rows, columns):
        place = (row * patch, column * patch, patch, groups)
        anchors, candidates = vectors_of_patch(student[b], *place), vectors_of_patch(teacher[b], *place)
        for anchor, vector in anchors.items():
            kept = [other for other in candidates if other == anchor or negatives == "all" or other[2] != anchor[2]]
            similarity = [-np.linalg.norm(vector - candidates[other], ord=norm) / temperature for other in kept]
            weights = np.exp(similarity - np.max(similarity))
            weights /= weights.sum()
            total -= math.log(weights[kept.index(anchor)])
            i, j, k = anchor
            slope = sum(
                ((other == anchor) - weight) * np.sign(vector - candidates[other]) / temperature
                for other, weight in zip(kept, weights, strict=True)
            )
            gradient[b, k * size : (k + 1) * size, row * patch + i, column * patch + j] += slope
    positions = batch * rows * patch * columns * patch
    return total / positions, torch.from_numpy(gradient / positions)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(2, 6, 4, 4), (1, 6, 2, 2), (1, 3, 5, 7)])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_equals_loops_over_vectors(mode, shape, distance):
    function, options, loop_options = MODES[mode]
    student, teacher = random_maps(shape)
    expected, _ = contrast_by_loops(student, teacher, *loop_options, temperature=0.5, distance=distance)
    actual = function(student, teacher, **options, temperature=0.5, distance=distance)
    assert actual.shape == () and actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_follows_the_formula_of_the_paper(mode):
    function, options, loop_options = MODES[mode]
    student, teacher = random_maps((2, 6, 4, 5))
    _, expected = contrast_by_loops(student, teacher, *loop_options, temperature=0.5)
    (3 * function(student, teacher, **options, temperature=0.5)).backward()
    torch.testing.assert_close(student.grad, 3 * expected.float(), rtol=1e-4, atol=1e-6)


def test_a_pixel_with_two_groups_by_hand():
    student = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    teacher = torch.tensor([0.0, 3.0]).view(1, 2, 1, 1)
    # anchor 0: distance 0 to its positive, 3 to its negative; anchor 1: 2 and 1
    expected = math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1))
    assert channel_contrast(student, teacher, channel_groups=2, temperature=1.0).item() == pytest.approx(expected)


def test_the_distance_is_the_norm_and_not_its_square():
    student = torch.zeros(1, 4, 1, 1)
    teacher = torch.tensor([0.0, 0.0, 3.0, 4.0]).view(1, 4, 1, 1)
    options = {"channel_groups": 2, "temperature": 1.0}
    by_norm = {"l1": 7.0, "l2": 5.0}
    for distance, length in by_norm.items():
        expected = math.log(1 + math.exp(-length)) + math.log(1 + math.exp(length))
        actual = channel_contrast(student, teacher, **options, distance=distance)
        assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_equal_vectors_count_the_negatives():
    ones = torch.ones(2, 32, 8, 4)
    assert omni_contrast(ones, ones).item() == pytest.approx(16 * math.log(1 + 240), rel=1e-5)
    assert omni_contrast(ones, ones, negatives="all").item() == pytest.approx(16 * math.log(1 + 255), rel=1e-5)
    assert spatial_contrast(ones, ones).item() == pytest.approx(math.log(1 + 15), rel=1e-5)
    assert channel_contrast(ones, ones).item() == pytest.approx(16 * math.log(1 + 15), rel=1e-5)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_equal_vectors_give_a_zero_gradient_and_no_nan(distance):
    student = torch.ones(1, 32, 4, 4, requires_grad=True)
    omni_contrast(student, torch.ones(1, 32, 4, 4), distance=distance).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_a_student_equal_to_a_varied_teacher_has_almost_no_loss():
    _, teacher = random_maps((1, 256, 4, 4))
    assert 0 <= omni_contrast(teacher, teacher).item() < 1e-6


def test_large_distances_do_not_overflow():
    student, teacher = random_maps((1, 32, 4, 4))
    loss = omni_contrast(1e4 * student, 1e4 * teacher)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_value_and_gradient_equal_the_released_code():
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden")
    golden = pytest.importorskip("safetensors.torch").load_file(GOLDEN)
    student = golden["citys.raw"].requires_grad_()
    loss = omni_contrast(F.max_pool2d(student, 4), F.max_pool2d(golden["citys.teacher"], 4))
    loss.backward()
    torch.testing.assert_close(loss, golden["citys.raw_ctr"], rtol=1e-4, atol=0)
    torch.testing.assert_close(student.grad, golden["citys.raw_grad"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", ["l1", "l2"])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_pass_gradcheck_in_float64(mode, distance):
    function, options, _ = MODES[mode]
    student, teacher = random_maps((1, 6, 2, 4), dtype=torch.float64)
    assert function(student, teacher, **options).dtype == torch.float64
    assert torch.autograd.gradcheck(
        lambda tensor: function(tensor, teacher, **options, temperature=0.5, distance=distance), student
    )


def test_maps_are_cropped_at_the_right_and_bottom():
    student, teacher = random_maps((2, 6, 5, 7))
    options = {"patch_size": 4, "channel_groups": 3}
    loss = omni_contrast(student, teacher, **options)
    loss.backward()
    assert torch.equal(loss, omni_contrast(student[..., :4, :4], teacher[..., :4, :4], **options))
    assert student.grad[..., 4:, :].abs().sum() == 0 and student.grad[..., 4:].abs().sum() == 0
    assert (student.grad[..., :4, :4] != 0).any()


def test_channel_contrast_uses_every_pixel_of_an_odd_map():
    student, teacher = random_maps((1, 6, 3, 5))
    channel_contrast(student, teacher, channel_groups=3).backward()
    assert (student.grad != 0).any(dim=1).all()


def test_the_value_is_a_mean_over_images_and_positions():
    student, teacher = random_maps((3, 6, 4, 4))
    options = {"patch_size": 2, "channel_groups": 3}
    alone = [omni_contrast(student[i : i + 1], teacher[i : i + 1], **options) for i in range(3)]
    torch.testing.assert_close(omni_contrast(student, teacher, **options), torch.stack(alone).mean())


def test_the_teacher_gets_no_gradient():
    student, teacher = random_maps()
    teacher.requires_grad_()
    omni_contrast(student, teacher, patch_size=2, channel_groups=3).backward()
    assert teacher.grad is None and (student.grad != 0).any()


def test_half_precision_maps_are_computed_in_float32():
    student, teacher = random_maps((1, 32, 4, 4))
    student, teacher = student.detach().bfloat16(), teacher.bfloat16()
    loss = omni_contrast(student, teacher)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, omni_contrast(student.float(), teacher.float()))


def test_autocast_does_not_change_the_value():
    student, teacher = random_maps((1, 32, 4, 4))
    for distance in ("l1", "l2"):
        expected = omni_contrast(student, teacher, distance=distance)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(omni_contrast(student, teacher, distance=distance), expected)


def test_the_reference_may_take_patches_in_portions(monkeypatch):
    student, teacher = random_maps((3, 6, 4, 4))
    options = {"patch_size": 2, "channel_groups": 3, "backend": "reference"}
    whole = omni_contrast(student, teacher, **options)
    monkeypatch.setattr(contrast_reference, "BUFFER_NUMBERS", 5 * 12 * 12 * 2)  # 5 of the 12 patches at a time
    torch.testing.assert_close(omni_contrast(student, teacher, **options), whole)


def test_another_backend_receives_the_checked_and_cropped_maps(monkeypatch):
    received = {}

    def fake(student, teacher, gradient, settings):
        received.update(settings._asdict(), shape=tuple(student.shape), dtype=teacher.dtype)
        received["autocast"] = torch.is_autocast_enabled("cpu")
        return student.sum() * 0

    monkeypatch.setitem(contrast.BACKENDS, "fake", contrast.Backend(fake, lambda student, teacher: None))
    student, teacher = random_maps((2, 6, 5, 5))
    with torch.autocast("cpu", torch.bfloat16):
        channel_contrast(student.bfloat16(), teacher.bfloat16(), channel_groups=2, backend="fake")
    assert received["shape"] == (2, 6, 5, 5) and received["dtype"] == torch.float32
    assert received["autocast"] is False
    spatial_contrast(student, teacher, patch_size=2, temperature=0.3, distance="l2", backend="fake")
    assert received == {
        "patch_size": 2,
        "channel_groups": 1,
        "temperature": 0.3,
        "distance": "l2",
        "negatives": "all",
        "shape": (2, 6, 4, 4),
        "dtype": torch.float32,
        "autocast": False,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_groups": 16}, "channel_groups=16 does not divide the 30 channels of the maps; .* 6, 10 or 15"),
        ({"channel_groups": 2.0}, "channel_groups=2.0 must be a whole number"),
        ({"patch_size": 0}, "patch_size=0 must be a whole number of at least 1"),
        ({"patch_size": True}, "patch_size=True must be a whole number"),
        ({"temperature": 0}, "temperature=0 must be greater than 0"),
        ({"temperature": -0.07}, "temperature=-0.07 must be greater than 0"),
        ({"temperature": math.nan}, "temperature=nan must be a finite number"),
        ({"temperature": "7e-2"}, "temperature='7e-2' is text, not a number"),
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


def test_spatial_and_channel_refuse_sizes_without_negatives():
    student, teacher = random_maps()
    with pytest.raises(ValueError, match="no negatives"):
        spatial_contrast(student, teacher, patch_size=1)
    with pytest.raises(ValueError, match="no negatives"):
        channel_contrast(student, teacher, channel_groups=1)


def test_omni_with_one_group_and_all_negatives_is_spatial():
    student, teacher = random_maps()
    omni = omni_contrast(student, teacher, patch_size=2, channel_groups=1, negatives="all")
    assert torch.equal(omni, spatial_contrast(student, teacher, patch_size=2))


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((6, 4, 4), (6, 4, 4)), ((1, 6, 4, 4), (1, 6, 4, 8)), ((1, 6, 4), (1, 6, 4, 4))],
)
def test_maps_that_are_not_of_one_4d_shape_are_refused(student_shape, teacher_shape):
    with pytest.raises(ValueError, match="must be maps .B, C, H, W. of the same shape"):
        spatial_contrast(torch.zeros(student_shape), torch.zeros(teacher_shape))


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="hold no patch"):
        spatial_contrast(torch.zeros(0, 6, 4, 4), torch.zeros(0, 6, 4, 4))
