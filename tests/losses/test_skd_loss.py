"""SKDLoss: a hand calculation, an independent implementation, what does not change it, gradients and options."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import KDLoss, SKDLoss
from afdcd_hf.losses.skd import pairwise_error, similarities


def seen(channels, seed, size=(5, 4), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, *size), (2, channels, *size))
    return Activations(*(torch.randn(shape, generator=generator).to(dtype) for shape in shapes))


def orthogonal(channels):
    return torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(9)))[0]


def test_two_positions_by_hand():
    # the student's two vectors are at 90°, the teacher's at 60°: two of the four cosines differ by ½
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[2.0, 1.0], [0.0, 3**0.5]]).view(1, 2, 1, 2)
    assert pairwise_error(student, teacher, pool_size=1).item() == pytest.approx(2 * 0.25 / 4)


def test_the_pairwise_term_equals_a_loop_over_all_pairs_of_pooled_positions():
    student, teacher = (seen(channels, seed).feature_map for channels, seed in ((3, 0), (6, 1)))
    columns, rows = [slice(0, 2), slice(2, 4)], [slice(0, 2), slice(2, 4), slice(4, 5)]
    errors = []
    for image in range(2):
        nodes = [
            [each[image, :, row, column].amax((1, 2)) for row in rows for column in columns]
            for each in (student, teacher)
        ]
        cosines = [[F.cosine_similarity(a, b, dim=0) for a in own for b in own] for own in nodes]
        errors += [(a - b) ** 2 for a, b in zip(*cosines, strict=True)]
    assert len(errors) == 2 * 6 * 6
    torch.testing.assert_close(pairwise_error(student, teacher), torch.stack(errors).mean())


def test_rotated_channels_and_scaled_positions_change_no_similarity():
    feature_map = seen(6, 0).feature_map
    scales = torch.rand(2, 1, 5, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    rotated = torch.einsum("dc,bchw->bdhw", orthogonal(6), feature_map) * scales
    torch.testing.assert_close(similarities(rotated), similarities(feature_map))
    assert pairwise_error(rotated, feature_map, pool_size=1).item() == pytest.approx(0, abs=1e-10)


def test_the_pixelwise_term_is_kd_and_both_carry_the_published_weights():
    student, teacher = seen(3, 0), seen(6, 1)
    terms = SKDLoss(3, 6)(student, teacher)
    assert list(terms) == ["skd_pairwise", "skd_pixelwise"]
    torch.testing.assert_close(terms["skd_pairwise"], 10 * pairwise_error(student.feature_map, teacher.feature_map))
    torch.testing.assert_close(terms["skd_pixelwise"], KDLoss()(student, teacher)["kd"])


@pytest.mark.parametrize(("off", "left"), [("pairwise", "pixelwise"), ("pixelwise", "pairwise")])
def test_weight_zero_leaves_a_term_out(off, left):
    terms = SKDLoss(3, 6, **{f"{off}_weight": 0})(seen(3, 0), seen(6, 1))
    assert list(terms) == [f"skd_{left}"]


def test_equal_networks_give_zero():
    teacher = seen(6, 1)
    assert sum(SKDLoss(6, 6)(teacher, teacher).values()).item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_passes_gradcheck_and_reaches_the_student_only():
    student, teacher = seen(3, 0, dtype=torch.float64), seen(6, 1, dtype=torch.float64)
    own, taught = student.feature_map.requires_grad_(), teacher.feature_map.requires_grad_()
    loss = SKDLoss(3, 6)
    assert torch.autograd.gradcheck(lambda each: loss(Activations(student.logits, each), teacher)["skd_pairwise"], own)
    loss(student, teacher)["skd_pairwise"].backward()
    assert taught.grad is None and own.grad.abs().sum() > 0


def test_a_pool_larger_than_the_map_leaves_one_position_and_nothing_to_compare():
    student, teacher = seen(3, 0), seen(6, 1)
    assert SKDLoss(3, 6, pool_size=16)(student, teacher)["skd_pairwise"].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairwise_weight": -1}, "pairwise_weight=-1 must not be negative"),
        ({"pixelwise_weight": float("inf")}, "pixelwise_weight=inf must be a finite number"),
        ({"pool_size": 0}, "pool_size=0 must be a whole number of at least 1"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        SKDLoss(3, 6, **options)
