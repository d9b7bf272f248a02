"""DISTLoss: hand calculations, invariances, an independent implementation, precision and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import DISTLoss
from afdcd_hf.losses.dist import pearson_distance, relation_terms


def logits(shape=(2, 5, 3, 4), seed=0, scale=2.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dist(loss, student, teacher):
    return loss(Activations(student), Activations(teacher))


def test_the_distance_of_three_numbers_by_hand():
    # deviations (-1, 0, 1) and (-1, 2, -1) are orthogonal, (-1, 0, 1) and (1, 0, -1) opposite
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    others = torch.tensor([[0.0, 3.0, 0.0], [6.0, 5.0, 4.0], [10.0, 20.0, 30.0]])
    assert pearson_distance(rows, others, dim=1).item() == pytest.approx((1 + 2 + 0) / 3, abs=1e-6)


def test_two_pixels_with_two_classes_by_hand():
    # probabilities of class 0: teacher 3/4 and 1/4, student 1/2 and 3/4. Of two numbers each, all correlations are ±1,
    # and a pixel of the student with equal probabilities correlates with nothing.
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]]).view(1, 2, 1, 2)
    student = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(1, 2, 1, 2)
    terms = dist(DISTLoss(inter_weight=3.0, intra_weight=0.5), student, teacher)
    assert terms["dist_inter"].item() == pytest.approx(3.0 * (1 + 2) / 2, abs=1e-5)
    assert terms["dist_intra"].item() == pytest.approx(0.5 * 2, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_terms_equal_numpys_correlations(temperature):
    student, teacher = logits(seed=0), logits(seed=1)
    rows = [F.softmax(each / temperature, 1).permute(0, 2, 3, 1).reshape(-1, 5).numpy() for each in (student, teacher)]
    inter = np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in zip(*rows, strict=True)])
    intra = np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in zip(rows[0].T, rows[1].T, strict=True)])
    actual = relation_terms(student, teacher, temperature)
    assert [term.item() for term in actual] == pytest.approx([temperature**2 * inter, temperature**2 * intra], rel=1e-5)


def test_equal_logits_give_zero_and_so_does_a_shift_of_all_classes():
    teacher = logits()
    for term in dist(DISTLoss(), teacher + 3, teacher).values():
        assert term.item() == pytest.approx(0, abs=1e-6)


def test_the_inter_class_distance_ignores_scale_and_shift_of_each_pixels_probabilities():
    student, teacher = logits((6, 5)).softmax(1), logits((6, 5), seed=1).softmax(1)
    squeezed = student * torch.linspace(0.1, 0.9, 6).unsqueeze(1) + 0.02
    torch.testing.assert_close(pearson_distance(squeezed, teacher, 1), pearson_distance(student, teacher, 1))
    assert not torch.allclose(pearson_distance(squeezed, teacher, 0), pearson_distance(student, teacher, 0))


def test_the_order_of_images_and_pixels_does_not_matter():
    student, teacher = logits(), logits(seed=1)
    expected = relation_terms(student, teacher)
    actual = relation_terms(student.flip(0, 3), teacher.flip(0, 3))
    torch.testing.assert_close(actual, expected)


def test_the_gradient_passes_gradcheck_in_float64():
    student, teacher = logits((1, 3, 2, 2)).double().requires_grad_(), logits((1, 3, 2, 2), seed=1).double()
    loss = DISTLoss(temperature=2.0)
    assert torch.autograd.gradcheck(lambda seen: tuple(dist(loss, seen, teacher).values()), student)


def test_a_student_that_says_the_same_everywhere_gives_one_without_gradient():
    student = torch.zeros(2, 5, 7, 9, requires_grad=True)
    terms = dist(DISTLoss(), student, logits((2, 5, 7, 9)))
    assert [term.item() for term in terms.values()] == [1.0, 1.0]
    sum(terms.values()).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_extreme_logits_stay_finite():
    student = logits(scale=1e4).requires_grad_()
    sum(dist(DISTLoss(), student, logits(seed=1, scale=1e4)).values()).backward()
    assert torch.isfinite(student.grad).all()


def test_teacher_logits_of_another_size_are_resized():
    student, teacher = logits(), logits((2, 5, 7, 6), seed=1)
    resized = F.interpolate(teacher, size=(3, 4), mode="bilinear", align_corners=False)
    assert dist(DISTLoss(), student, teacher) == dist(DISTLoss(), student, resized)


def test_terms_of_weight_zero_are_left_out():
    student = logits()
    assert list(dist(DISTLoss(intra_weight=0), student, student)) == ["dist_inter"]
    assert list(dist(DISTLoss(inter_weight=0), student, student)) == ["dist_intra"]
    assert dist(DISTLoss(inter_weight=0, intra_weight=0), student, student) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inter_weight": -1}, "inter_weight=-1 must not be negative"),
        ({"intra_weight": "1e0"}, "intra_weight='1e0' is text"),
        ({"temperature": 0}, "temperature=0 must be greater than 0"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        DISTLoss(**options)


def test_logits_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 6; the loss 'dist'"):
        dist(DISTLoss(), torch.zeros(1, 5, 2, 2), torch.zeros(1, 6, 2, 2))
    with pytest.raises(ValueError, match="'dist' .* needs 2 classes; there is 1"):
        dist(DISTLoss(), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
