"""IFVDLoss: a hand calculation, an independent implementation, ignored labels, gradients and options."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import IFVDLoss
from afdcd_hf.losses.ifvd import centre_similarity, variation_error
from afdcd_hf.losses.label_maps import class_members

CLASSES = 4
LOGITS = torch.zeros(2, CLASSES, 3, 4)


def maps(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, channels, 3, 4, generator=generator).to(dtype) for channels in (5, 7))
    return student.requires_grad_(), teacher


def some_labels(size=(3, 4)):
    labels = torch.randint(0, CLASSES - 1, (2, *size), generator=torch.Generator().manual_seed(1))
    labels[0, 0, :2] = 255
    return labels


def ifvd(loss, student, teacher, labels):
    return loss(Activations(LOGITS, student), Activations(LOGITS, teacher), labels)["ifvd"]


def similarity_by_loops(feature_map, labels):
    """Zero where a position has no class."""
    result = torch.zeros(labels.shape, dtype=feature_map.dtype)
    for image, row, column in labels.ne(255).nonzero().tolist():
        of_class = feature_map[image][:, labels[image] == labels[image, row, column]]
        centre = of_class.mean(dim=1)
        result[image, row, column] = F.cosine_similarity(feature_map[image, :, row, column], centre, dim=0)
    return result


def test_three_positions_by_hand():
    # class 0 at two positions, whose student vectors are at 90°: 45° from their mean; class 1 is its own centre
    student = torch.tensor([[2.0, 0.0, 7.0], [0.0, 2.0, 1.0]]).view(1, 2, 1, 3)
    teacher = torch.tensor([[1.0, 3.0, -2.0]]).view(1, 1, 1, 3)
    labels = torch.tensor([[[0, 0, 1]]])
    loss = IFVDLoss(2, 1, weight=6)
    term = loss(Activations(torch.zeros(1, 2, 1, 3), student), Activations(torch.zeros(1, 2, 1, 3), teacher), labels)
    assert term["ifvd"].item() == pytest.approx(6 * 2 * (1 - 0.5**0.5) ** 2 / 3)


def test_the_term_equals_loops_over_positions():
    student, teacher = maps()
    labels = some_labels()
    difference = similarity_by_loops(student, labels) - similarity_by_loops(teacher, labels)
    torch.testing.assert_close(ifvd(IFVDLoss(5, 7), student, teacher, labels), 20 * difference.square().mean())


def test_labels_are_brought_to_the_maps_size_by_the_nearest():
    labels = some_labels()
    fine = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    student, teacher = maps()
    assert torch.equal(ifvd(IFVDLoss(5, 7), student, teacher, fine), ifvd(IFVDLoss(5, 7), student, teacher, labels))


def test_labels_of_another_aspect_take_the_pixel_at_the_cells_upper_left():
    members = class_members(torch.tensor([[[0, 1, 2, 3, 0]]]), 4, (1, 2))
    assert members[0].nonzero().tolist() == [[0, 0], [2, 1]]


@pytest.mark.parametrize("ignored", [255, -100, CLASSES])
def test_a_fully_ignored_batch_gives_zero_and_no_gradient(ignored):
    student, teacher = maps()
    term = ifvd(IFVDLoss(5, 7), student, teacher, torch.full((2, 3, 4), ignored))
    term.backward()
    assert term == 0 and student.grad.eq(0).all()


def test_ignored_positions_neither_add_nor_move_a_centre():
    student, teacher = maps()
    labels = some_labels()
    moved = student.detach().clone()
    moved[0, :, 0, :2] = 100.0
    assert torch.equal(ifvd(IFVDLoss(5, 7), student, teacher, labels), ifvd(IFVDLoss(5, 7), moved, teacher, labels))


def test_an_ignore_index_among_the_classes_is_ignored_and_none_ignores_no_class():
    labels = torch.tensor([[[0, 1, 255]]])
    assert class_members(labels, 300, (1, 3), ignore_index=0)[0].nonzero().tolist() == [[1, 1], [255, 2]]
    assert class_members(labels, 300, (1, 3), ignore_index=None)[0].nonzero().tolist() == [[0, 0], [1, 1], [255, 2]]
    student, teacher = maps()
    zeros = torch.zeros(2, 3, 4, dtype=torch.int64)
    assert ifvd(IFVDLoss(5, 7, ignore_index=0), student, teacher, zeros) == 0
    assert ifvd(IFVDLoss(5, 7), student, teacher, zeros) > 0


def test_every_image_has_its_own_centres():
    student, teacher = maps()
    members = class_members(some_labels(), CLASSES, (3, 4))
    halves = [variation_error(student[i : i + 1], teacher[i : i + 1], members[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(variation_error(student, teacher, members), sum(halves) / 2)


def test_a_rotation_of_the_channels_and_a_common_factor_change_nothing():
    student = maps()[0].detach()
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2)))[0]
    members = class_members(some_labels(), CLASSES, (3, 4)).float()
    rotated = 3 * torch.einsum("dc,bchw->bdhw", rotation, student)
    torch.testing.assert_close(centre_similarity(rotated, members), centre_similarity(student, members))


def test_the_gradient_passes_gradcheck_and_reaches_the_student_only():
    student, teacher = maps(torch.float64)
    teacher.requires_grad_()
    labels = some_labels()
    loss = IFVDLoss(5, 7)
    assert torch.autograd.gradcheck(lambda own: ifvd(loss, own, teacher, labels), student)
    ifvd(loss, student, teacher, labels).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "'ifvd' reads the labels and got none"),
        (torch.zeros(2, 1, 3, 4), r"labels have shape \(2, 1, 3, 4\); expected \(2, H, W\)"),
        (torch.zeros(1, 3, 4), r"labels have shape \(1, 3, 4\); expected \(2, H, W\)"),
    ],
)
def test_missing_or_misshapen_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ifvd(IFVDLoss(5, 7), *maps(), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "weight=-1 must not be negative"),
        ({"ignore_index": 1.5}, "ignore_index=1.5 must be a whole number, or None"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        IFVDLoss(5, 7, **options)
