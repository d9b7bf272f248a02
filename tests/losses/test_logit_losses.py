"""KD and LSKD, DIST and BPKD: golden values, hand calculations and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import BPKDLoss, CWDLoss, DISTLoss, KDLoss

TEMPERATURES = pytest.mark.parametrize("temperature", [1.0, 4.0])


def logits(shape=(2, 5, 3, 4), seed=0, scale=2.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(loss, student, teacher, labels=None):
    return loss(Activations(student), Activations(teacher), labels)


def divergence(teacher, student):
    """Compute the KL divergence of two lists of probabilities."""
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


# KD


def test_value_and_gradient_of_kd_equal_the_released_code(golden):
    student = golden["kd.student"].requires_grad_()
    loss = call(KDLoss(temperature=2.0), student, golden["kd.teacher"])["kd"]
    loss.backward()
    torch.testing.assert_close(loss, golden["kd.loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(student.grad, golden["kd.grad"], rtol=1e-4, atol=1e-9)


@TEMPERATURES
def test_kd_of_two_pixels_with_two_classes_by_hand(temperature):
    # pixel 0: the teacher has 3:1, the student 1:1; pixel 1: both have 1:1
    teacher = temperature * torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    term = call(KDLoss(weight=0.5, temperature=temperature), torch.zeros(1, 2, 1, 2), teacher)["kd"]
    expected = 0.5 * temperature**2 * divergence([0.75, 0.25], [0.5, 0.5]) / 2
    assert term.item() == pytest.approx(expected, rel=1e-6)


def test_logits_far_apart_stay_finite():
    student = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss = call(KDLoss(), student, -student.detach())["kd"]
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(student.grad).all()
    student = logits(scale=1e4).requires_grad_()
    sum(call(DISTLoss(), student, logits(seed=1, scale=1e4)).values()).backward()
    assert torch.isfinite(student.grad).all()


# LSKD


def test_standardized_kd_equals_a_loop_over_pixels_in_numpy():
    student, teacher = logits(), logits(seed=1, scale=20.0)
    total = 0.0
    for image in range(2):
        for place in range(12):
            probabilities = []
            for each in (teacher, student):
                values = each[image].flatten(1)[:, place].double().numpy()
                values = (values - values.mean()) / (values.std(ddof=1) + 1e-7) / 2.0
                probabilities.append(np.exp(values) / np.exp(values).sum())
            total += divergence(*probabilities)
    term = call(KDLoss(standardize=True), student, teacher)["kd"]
    assert term.item() == pytest.approx(2.0**2 * total / 24, rel=1e-5)


def test_the_temperature_of_standardized_kd_is_2_unless_it_is_given():
    assert KDLoss().temperature == 1.0 and KDLoss(standardize=True).temperature == 2.0
    assert KDLoss(standardize=True, temperature=3).get_config_dict()["temperature"] == 3
    assert [len(KDLoss(standardize=each).citations) for each in (False, True)] == [1, 2]


@pytest.mark.parametrize(("loss", "name"), [(KDLoss(standardize=True), "kd.standardize"), (DISTLoss(), "'dist'")])
def test_correlations_need_two_classes(loss, name):
    with pytest.raises(ValueError, match=f"{name} .* needs 2 classes; there is 1"):
        call(loss, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))


# DIST


def test_dist_of_two_pixels_with_two_classes_by_hand():
    # probabilities of class 0: teacher 3/4 and 1/4, student 1/2 and 3/4. With two numbers each, all correlations are
    # ±1, and a student's pixel with equal probabilities has none.
    teacher = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]]).view(1, 2, 1, 2)
    student = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]).view(1, 2, 1, 2)
    terms = call(DISTLoss(inter_weight=3.0, intra_weight=0.5), student, teacher)
    assert terms["dist_inter"].item() == pytest.approx(3.0 * (1 + 2) / 2, abs=1e-5)
    assert terms["dist_intra"].item() == pytest.approx(0.5 * 2, abs=1e-5)


@TEMPERATURES
def test_both_terms_of_dist_equal_numpys_correlations(temperature):
    student, teacher = logits(seed=0), logits(seed=1)
    rows = [F.softmax(each / temperature, 1).permute(0, 2, 3, 1).reshape(-1, 5).numpy() for each in (student, teacher)]
    terms = call(DISTLoss(temperature=temperature), student, teacher)
    for name, pairs in (
        ("dist_inter", zip(*rows, strict=True)),
        ("dist_intra", zip(rows[0].T, rows[1].T, strict=True)),
    ):
        expected = temperature**2 * np.mean([1 - np.corrcoef(s, t)[0, 1] for s, t in pairs])
        assert terms[name].item() == pytest.approx(expected, rel=1e-5)


def test_a_constant_student_gives_one_without_gradient():
    student = torch.zeros(2, 5, 7, 9, requires_grad=True)
    terms = call(DISTLoss(), student, logits((2, 5, 7, 9)))
    assert [term.item() for term in terms.values()] == [1.0, 1.0]
    sum(terms.values()).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


# BPKD


def edge_and_body(labels, width):
    """Return dilation minus erosion of each class, and the other labelled positions, one by one."""
    edge, body = torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool)
    for image, row, column in (labels != 255).nonzero().tolist():
        top, left = max(0, row - width), max(0, column - width)
        window = labels[image, top : row + width + 1, left : column + width + 1]
        (edge if len(window[window != 255].unique()) > 1 else body)[image, row, column] = True
    assert edge.any() and body.any()
    return edge, body


@pytest.mark.parametrize("width", [1, 2])
def test_both_terms_of_bpkd_equal_loops(width):
    labels = torch.zeros(3, 8, 9, dtype=torch.int64)
    labels[0, 4:] = 1
    labels[0, :2, :2] = 3
    labels[1, :, 5:] = 2
    labels[1, 6:, :3] = labels[2] = 255  # an image without any label does not count
    student, teacher = logits((3, 4, 8, 9)), logits((3, 4, 8, 9), seed=1)
    edge, body = edge_and_body(labels, width)
    inside = [
        divergence(*(each[image, :, row, column].softmax(0).tolist() for each in (teacher, student)))
        for image, row, column in edge.nonzero().tolist()
    ]
    channels = [
        16 * divergence(*((each[image, label][body[image]] / 4).softmax(0).tolist() for each in (teacher, student)))
        for image in range(2)
        for label in range(4)
    ]
    loss = BPKDLoss(edge_weight=2.0, body_weight=0.5, edge_width=width)
    terms = call(loss, student, teacher, labels)
    assert terms["bpkd_edge"].item() == pytest.approx(2.0 * np.mean(inside), rel=1e-5)
    assert terms["bpkd_body"].item() == pytest.approx(0.5 * np.mean(channels), rel=1e-4)


def test_bpkd_without_borders_is_cwd_and_with_only_borders_is_kd():
    student, teacher = logits((2, 4, 8, 9)), logits((2, 4, 8, 9), seed=1)
    terms = call(BPKDLoss(body_weight=3.0), student, teacher, torch.ones(2, 8, 9, dtype=torch.int64))
    cwd = call(CWDLoss(None, None, map_weight=0, logits_weight=3.0), student, teacher)["cwd_logits"]
    torch.testing.assert_close(terms["bpkd_body"], cwd)
    assert terms["bpkd_edge"] == 0
    checks = (torch.arange(8)[:, None] + torch.arange(9)) % 2
    terms = call(BPKDLoss(), student, teacher, checks.expand(2, 8, 9))
    torch.testing.assert_close(terms["bpkd_edge"], call(KDLoss(), student, teacher)["kd"])
    assert terms["bpkd_body"] == 0
