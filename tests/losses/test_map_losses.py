"""AT, FitNet and NFD, CWD, SKD, IFVD: hand calculations, independent implementations, and invariances."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import (
    AttentionTransferLoss,
    CWDLoss,
    FitNetLoss,
    IFVDLoss,
    KDLoss,
    SKDLoss,
    build_loss,
    needs_feature_map,
)
from afdcd_hf.losses.base import class_members
from afdcd_hf.losses.map_losses import channel_wise_divergence

CLASSES = 4


def seen(channels, seed=0, size=(3, 4)):
    generator = torch.Generator().manual_seed(seed)
    return Activations(*(torch.randn(2, count, *size, generator=generator) for count in (CLASSES, channels)))


def map_of(channels, seed=0, size=(3, 4)):
    return seen(channels, seed, size).feature_map


def on_maps(loss, student_map, teacher_map, labels=None):
    zeros = torch.zeros(len(student_map), CLASSES, *student_map.shape[2:])
    (term,) = loss(Activations(zeros, student_map), Activations(zeros, teacher_map), labels).values()
    return term


@pytest.mark.parametrize(
    ("loss", "student", "teacher", "expected"),
    [  # maps of one image: the numbers of each channel
        # means of squares 3 and 4, so (0.6, 0.8); the teacher is active at the first position only
        (AttentionTransferLoss(2, 1, weight=10), [[2, 2], [2**0.5, -2]], [[-3, 0]], 10 * (0.4**2 + 0.8**2) / 2),
        (FitNetLoss(2, 2, weight=3.0), [[1, 2], [0, -1]], [[1, 4], [3, 0]], 3 * (0 + 4 + 9 + 1) / 4),
        # channel 0: the teacher has 3:1, the student 1:1; channel 1: both have 1:1
        (CWDLoss(2, 2, map_weight=1.0, logits_weight=0, map_temperature=4.0), [[0, 0], [0, 0]],
         [[4 * math.log(3), 0], [5, 5]], 4**2 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2),
        # the student's two vectors are at 90°, the teacher's at 60°: two of the four cosines differ by ½
        (SKDLoss(2, 2, pairwise_weight=1.0, pixelwise_weight=0, pool_size=1), [[1, 0], [0, 2]],
         [[2, 1], [0, 3**0.5]], 2 * 0.25 / 4),
        # class 0 at two positions, whose student vectors are at 90°: 45° from their mean; class 1 is its own centre
        (IFVDLoss(2, 1, weight=6), [[2, 0, 7], [0, 2, 1]], [[1, 3, -2]], 6 * 2 * (1 - 0.5**0.5) ** 2 / 3),
    ],
)  # fmt: skip
def test_two_or_three_positions_by_hand(loss, student, teacher, expected):
    student, teacher = (torch.tensor(each, dtype=torch.float32)[None, :, None] for each in (student, teacher))
    assert on_maps(loss, student, teacher, torch.tensor([[[0, 0, 1]]])).item() == pytest.approx(expected, rel=1e-5)


# FitNet and NFD, CWD


@pytest.mark.parametrize("normalize", [False, True])
def test_other_channels_are_aligned_before_the_hint_is_compared(normalize):
    student, teacher, loss = map_of(2), map_of(3, 1), FitNetLoss(2, 3, normalize=normalize)
    aligned = F.conv2d(student, loss.align.weight, loss.align.bias)
    if normalize:
        aligned, teacher = (F.instance_norm(each) for each in (aligned, teacher))
    torch.testing.assert_close(on_maps(loss, student, map_of(3, 1)), (aligned - teacher).square().mean())
    assert list(loss.state_dict()) == ["align.weight", "align.bias"] and not FitNetLoss(2, 2).state_dict()


def test_normalized_hints_ignore_scale_and_shift_of_each_channel_and_constant_ones():
    teacher, loss = map_of(5), FitNetLoss(5, 5, normalize=True)
    other = (torch.rand(2, 5, 1, 1) + 0.5) * teacher + torch.randn(2, 5, 1, 1)
    assert on_maps(loss, other, teacher).item() == pytest.approx(0, abs=1e-6)
    assert on_maps(FitNetLoss(5, 5), other, teacher) > 0.01
    constant = torch.full((2, 5, 3, 4), 7.0, requires_grad=True)
    on_maps(loss, constant, teacher).backward()
    assert torch.isfinite(constant.grad).all() and len(loss.citations) == 2


def test_cwd_has_separate_weights_and_temperatures_for_maps_and_logits():
    student, teacher = seen(5), seen(7, 1)
    loss = CWDLoss(5, 7, map_weight=2, logits_weight=7, map_temperature=0.5, logits_temperature=3)
    aligned = F.conv2d(student.feature_map, loss.align.weight, loss.align.bias)
    terms = loss(student, teacher)
    torch.testing.assert_close(terms["cwd_map"], 2 * channel_wise_divergence(aligned, teacher.feature_map, 0.5))
    torch.testing.assert_close(terms["cwd_logits"], 7 * channel_wise_divergence(student.logits, teacher.logits, 3.0))


# SKD


def test_skd_equals_a_loop_over_all_pairs_of_pooled_positions_and_kd_with_the_published_weights():
    student, teacher = seen(3, 0, (5, 4)), seen(6, 1, (5, 4))
    columns, rows = [slice(0, 2), slice(2, 4)], [slice(0, 2), slice(2, 4), slice(4, 5)]
    errors = []
    for image in range(2):
        nodes = [
            [each.feature_map[image, :, row, column].amax((1, 2)) for row in rows for column in columns]
            for each in (student, teacher)
        ]
        cosines = [[F.cosine_similarity(a, b, dim=0) for a in own for b in own] for own in nodes]
        errors += [(a - b) ** 2 for a, b in zip(*cosines, strict=True)]
    assert len(errors) == 2 * 6 * 6
    terms = SKDLoss(3, 6)(student, teacher)
    torch.testing.assert_close(terms["skd_pairwise"], 10 * torch.stack(errors).mean())
    torch.testing.assert_close(terms["skd_pixelwise"], KDLoss()(student, teacher)["kd"])
    one_position = SKDLoss(3, 6, pool_size=16)(student, teacher)["skd_pairwise"]
    assert one_position.item() == pytest.approx(0, abs=1e-6)


# IFVD


def similarity_by_loops(feature_map, labels):
    """Compute similarities, zero for positions without a class."""
    result = torch.zeros(labels.shape, dtype=feature_map.dtype)
    for image, row, column in labels.ne(255).nonzero().tolist():
        of_class = feature_map[image][:, labels[image] == labels[image, row, column]]
        centre = of_class.mean(dim=1)
        result[image, row, column] = F.cosine_similarity(feature_map[image, :, row, column], centre, dim=0)
    return result


def test_ifvd_equals_loops_over_positions_whatever_the_size_of_the_labels():
    student, teacher = map_of(5), map_of(7, 1)
    labels = torch.randint(0, CLASSES - 1, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    labels[0, 0, :2] = 255
    difference = similarity_by_loops(student, labels) - similarity_by_loops(teacher, labels)
    term = on_maps(IFVDLoss(5, 7), student, teacher, labels)
    torch.testing.assert_close(term, 20 * difference.square().mean())
    fine = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(on_maps(IFVDLoss(5, 7), student, teacher, fine), term)


@pytest.mark.parametrize(
    ("labels", "size", "ignored", "members"),
    [
        ([0, 1, 2, 3, 0], (1, 2), 255, [[0, 0], [2, 1]]),  # another aspect ratio: the pixel at the cell's upper left
        ([0, 1, 255], (1, 3), 0, [[1, 1], [255, 2]]),
        ([0, 1, 255], (1, 3), None, [[0, 0], [1, 1], [255, 2]]),
    ],
)
def test_labels_are_resized_to_the_maps_size_without_the_ignored_class(labels, size, ignored, members):
    assert class_members(torch.tensor([[labels]]), 300, size, ignored)[0].nonzero().tolist() == members


# Losses that may need no map


@pytest.mark.parametrize(("name", "off"), [("skd", "pairwise_weight"), ("cwd", "map_weight"), ("fitnet", "weight")])
def test_without_its_term_on_maps_a_loss_needs_no_map(name, off):
    assert needs_feature_map(name, None) and needs_feature_map(f"kd+{name}", {name: {off: 0.5}})
    assert not needs_feature_map(name, {name: {off: 0}}) and not needs_feature_map("kd", None)
    logits = Activations(torch.zeros(2, 3, 4, 6))
    assert len(build_loss(name, {name: {off: 0.0}})(logits, logits)) == (0 if name == "fitnet" else 1)


def test_distilling_logits_alone_needs_no_layer_of_a_foreign_teacher(tmp_path):
    options = {"loss": "cwd", "loss_kwargs": {"cwd": {"map_weight": 0, "logits_weight": 3.0}}}
    # not one of our models, so it has no default layer to distil
    trainer = tiny.distilling(tmp_path, teacher=tiny.segformer(), max_steps=1, **options)
    trainer.train()
    assert len(tiny.logged(trainer, "loss_cwd_logits")) == 1
