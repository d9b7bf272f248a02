"""CIRKDLoss and its memory: hand calculations, an independent implementation, queues, labels, precision and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import CIRKDLoss, build_loss
from afdcd_hf.losses.base import kl_divergences
from afdcd_hf.losses.cirkd import (
    ClassQueues,
    cross_image_divergence,
    pixels_of_classes,
    queue_names,
    regions_of_classes,
)

SMALL = {"num_classes": 3, "pixel_queue": 5, "region_queue": 4, "pixels_per_image": 2, "pixel_draws": 6}
SMALL |= {"region_draws": 4}


def small_loss(student_channels=3, teacher_channels=4, **options):
    torch.manual_seed(0)
    loss = CIRKDLoss(student_channels, teacher_channels, **{**SMALL, **options})
    loss.generator = torch.Generator().manual_seed(5)
    return loss


def some(channels, seed, batch=2, size=(5, 7)):
    generator = torch.Generator().manual_seed(seed)
    feature_map = torch.randn(batch, channels, *size, generator=generator)
    return Activations(torch.zeros(batch, 3, *size), feature_map)


def some_labels(batch=2, size=(5, 7)):
    labels = torch.randint(0, 3, (batch, *size), generator=torch.Generator().manual_seed(9))
    labels[:, 0] = 255
    return labels


def only(name, value=1.0):
    return {f"{each}_weight": value if each == name else 0 for each in ("minibatch", "pixel", "region")}


# Relations


def test_the_divergence_of_rows_by_hand():
    # at τ = 0.5 the teacher says 3:1 where the student says 1:1, and 1:1 in the second row
    teacher = torch.tensor([[0.5 * math.log(3), 0.0], [0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert kl_divergences(torch.zeros(2, 2), teacher, 0.5, dim=-1).tolist() == pytest.approx([expected, 0], rel=1e-5)


def test_the_minibatch_term_equals_loops_over_images_and_pixels():
    student, teacher = some(3, 0, batch=3), some(4, 1, batch=3)
    loss = small_loss(**only("minibatch", 2.0), pool_size=1)
    actual = loss(student, teacher)["cirkd_minibatch"]
    pixels = [F.normalize(seen.feature_map.flatten(2), dim=1).double() for seen in (student, teacher)]
    total = 0.0
    for i in range(3):
        for j in range(3):
            for a in range(35):
                s, t = ((each[i, :, a] @ each[j] / 0.1).softmax(0) for each in pixels)
                total += (t * (t / s).log()).sum().item()
    assert actual.item() == pytest.approx(2.0 * total / (3 * 3 * 35), rel=1e-5)


def test_the_memory_terms_equal_loops_over_what_was_drawn():
    loss = small_loss(pixel_weight=0.5, region_weight=2.0, minibatch_weight=0)
    student, teacher = some(3, 0), some(4, 1)
    terms = loss(student, teacher, some_labels())
    # the same draws again: two of the memory's own after one to choose pixels
    generator = torch.Generator().manual_seed(5)
    torch.rand(2, 35, generator=generator)
    drawn = [
        loss.pixels.draw(torch.rand(6, generator=generator)),
        loss.regions.draw(torch.rand(4, generator=generator)),
    ]
    projected = F.normalize(loss.head(student.feature_map).detach(), dim=1)
    taught = F.normalize(teacher.feature_map, dim=1)
    anchors = (some_labels() != 255).nonzero().tolist()
    assert len(anchors) == 56  # of 70
    for name, weight, memory in (("pixel", 0.5, drawn[0]), ("region", 2.0, drawn[1])):
        total = 0.0
        for image, row, column in anchors:
            s, t = ((memory @ each[image, :, row, column] / 0.1).softmax(0) for each in (projected, taught))
            total += (t * (t / s).log()).sum().item()
        assert terms[f"cirkd_{name}"].item() == pytest.approx(weight * total / len(anchors), rel=1e-4)


@pytest.mark.parametrize("size", [(5, 7), (4, 6), (1, 1)])
def test_maps_are_averaged_over_cells_before_the_minibatch_term_whatever_their_size(size):
    student, teacher = some(3, 0, size=size), some(4, 1, size=size)
    loss = small_loss(**only("minibatch"), pool_size=2)
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)

    def cells(feature_map):
        means = [
            feature_map[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((2, 3))
            for row in range(rows)
            for column in range(columns)
        ]
        return F.normalize(torch.stack(means, 1), dim=2)

    s, t = cells(student.feature_map), cells(teacher.feature_map)
    torch.testing.assert_close(loss(student, teacher)["cirkd_minibatch"], cross_image_divergence(s, t, s, t, 0.1))


# Labels


def test_a_fully_ignored_batch_leaves_the_memory_empty_and_gives_zero():
    loss, student = small_loss(minibatch_weight=0), some(3, 0)
    student.feature_map.requires_grad_()
    terms = loss(student, some(4, 1), torch.full((2, 5, 7), 255))
    sum(terms.values()).backward()
    assert [term.item() for term in terms.values()] == [0, 0]
    assert loss.pixels.appended.tolist() == loss.regions.appended.tolist() == [0, 0, 0]
    gradients = [student.feature_map.grad, *(weight.grad for weight in loss.parameters())]
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)  # there, and zero


@pytest.mark.parametrize("unknown", [255, -100, 3])
def test_pixels_without_a_class_are_no_anchors_of_the_memory_terms(unknown):
    student, teacher, labels = some(3, 0), some(4, 1), some_labels()
    labels[labels == 255] = unknown
    moved = student.feature_map.clone()
    moved[:, :, 0] = -moved[:, :, 0] * 5  # the row whose labels are ignored
    terms = []
    for feature_map in (student.feature_map, moved):
        loss = small_loss(minibatch_weight=0).eval()  # batch norm would mix the pixels
        loss.pixels.append(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)
        loss.regions.append(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3)
        feature_map.requires_grad_()
        terms.append(loss(student._replace(feature_map=feature_map), teacher, labels))
        sum(terms[-1].values()).backward()
        assert feature_map.grad[:, :, 0].eq(0).all() and feature_map.grad[:, :, 1:].ne(0).any()
    assert all(torch.equal(terms[0][name], terms[1][name]) and terms[0][name] > 0 for name in terms[0])


def test_labels_are_taken_at_the_maps_size_and_only_known_classes_enter():
    loss = small_loss()
    labels = torch.tensor([[0, 255], [2, 7]]).repeat_interleave(10, 0).repeat_interleave(14, 1)
    loss(some(3, 0, size=(10, 14)), some(4, 1, size=(10, 14)), torch.stack([labels, labels]))
    assert loss.pixels.appended.tolist() == [4, 0, 4]  # two pixels an image
    assert loss.regions.appended.tolist() == [2, 0, 2]
    for ignored, expected in ((0, [0, 0, 2]), (None, [2, 0, 2])):
        loss = small_loss(ignore_index=ignored)
        loss(some(3, 0, size=(10, 14)), some(4, 1, size=(10, 14)), torch.stack([labels, labels]))
        assert loss.regions.appended.tolist() == expected


# Memory


def test_a_queue_keeps_the_newest_vectors_of_each_class():
    queues = ClassQueues(num_classes=3, size=2, channels=1)
    queues.append(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 0]))
    queues.append(torch.tensor([[4.0], [5.0], [math.nan]]), torch.tensor([0, -1, 1]))  # neither no class nor NaN
    assert queues.vectors.squeeze(2).tolist() == [[4, 3], [0, 0], [2, 0]]
    assert queues.appended.tolist() == [3, 0, 1]
    queues.append(torch.arange(8.0).unsqueeze(1), torch.full((8,), 1))  # more at once than fit: the last ones stay
    assert sorted(queues.vectors[1].flatten().tolist()) == [6, 7] and queues.appended[1] == 8


def test_draws_are_shared_equally_by_the_classes_that_have_vectors():
    queues = ClassQueues(num_classes=4, size=3, channels=1)
    queues.append(torch.tensor([[1.0], [2.0], [7.0]]), torch.tensor([1, 1, 3]))
    drawn = queues.draw(torch.tensor([0.0, 0.5, 0.49, 0.9, 1 - 2**-24, 0.2])).flatten().tolist()
    assert drawn == [1, 7, 1, 7, 2, 7]
    assert ClassQueues(2, 3, 4).draw(torch.rand(5)).tolist() == [[0.0] * 4] * 5


def test_a_step_done_again_with_the_count_restored_leaves_the_same_queues():
    queues, rows = ClassQueues(2, 3, 2), torch.randn(4, 2)
    classes = torch.tensor([0, 1, 0, 0])
    queues.append(torch.randn(5, 2), torch.tensor([0, 0, 0, 1, 1]))
    before = queues.appended.clone()
    queues.append(rows, classes)
    expected = queues.vectors.clone()
    queues.appended.copy_(before)
    queues.append(rows, classes)
    assert torch.equal(queues.vectors, expected)


def test_pixels_are_chosen_by_their_random_numbers_within_class_and_image():
    labels = torch.tensor([[0, 1, 0, 0, 9], [1, 1, 1, 9, 9]])
    members = labels.unsqueeze(1) == torch.arange(2).unsqueeze(1)
    vectors = torch.arange(10.0).view(2, 5, 1)
    uniform = torch.tensor([[0.9, 0.5, 0.1, 0.2, 0.0], [0.3, 0.2, 0.1, 0.0, 0.0]])
    rows, classes = pixels_of_classes(vectors, members, 2, uniform)
    assert rows.shape == (8, 1) and classes.shape == (8,)
    chosen = sorted(zip(classes.tolist(), rows.flatten().tolist(), strict=True))[-5:]
    assert chosen == [(0, 2), (0, 3), (1, 1), (1, 6), (1, 7)]
    assert (classes == -1).sum() == 3


def test_a_region_is_the_mean_of_its_class_in_one_image_and_has_length_one():
    vectors = torch.tensor([[[3.0, 0.0], [0.0, 8.0], [3.0, 0.0], [9.0, 9.0]]])
    members = torch.tensor([[[True, True, True, False], [False] * 4]])
    rows, classes = regions_of_classes(vectors, members)
    assert rows[0].tolist() == pytest.approx([0.6, 0.8]) and classes.tolist() == [0, -1]


def test_what_the_memory_holds_are_the_teachers_pixels_of_length_one():
    loss, teacher = small_loss(), some(4, 1)
    loss(some(3, 0), teacher, some_labels())
    pixels = F.normalize(teacher.feature_map, dim=1).movedim(1, -1).reshape(-1, 4)
    for label in range(3):
        for vector in loss.pixels.vectors[label, : int(loss.pixels.appended[label])]:
            (place,) = ((pixels - vector).abs().amax(1) < 1e-6).nonzero().flatten().tolist()
            assert some_labels().flatten()[place] == label


def test_a_pass_without_gradients_leaves_the_memory_as_it_is():
    loss = small_loss()
    with torch.no_grad():
        terms = loss(some(3, 0), some(4, 1), some_labels())
    assert terms["cirkd_pixel"] == 0 and loss.pixels.appended.sum() == 0


def test_only_what_the_weights_ask_for_is_made():
    assert small_loss(**only("minibatch"), num_classes=None).state_dict() == {}
    assert queue_names(small_loss(**only("pixel"))) == ["pixels.vectors"]
    assert queue_names(small_loss(**only("region"))) == ["regions.vectors"]
    assert queue_names(small_loss()) == ["pixels.vectors", "regions.vectors"]


# Errors


def test_a_memory_needs_the_models_number_of_classes():
    with pytest.raises(ValueError, match=r"missing cirkd\.num_classes.*pixel_weight=0 and region_weight=0"):
        small_loss(num_classes=None)
    with pytest.raises(ValueError, match="the models have 3 classes and cirkd.num_classes is 4; give num_classes=3"):
        small_loss(num_classes=4)(some(3, 0), some(4, 1), some_labels())


def test_a_recipe_need_not_say_how_many_classes_there_are():
    loss = build_loss("cirkd", {"cirkd": {"pixel_queue": 5, "region_queue": 4}}, 4, 6, num_classes=7)
    assert loss.num_classes == 7 and build_loss("cirkd", {"cirkd": SMALL}, 4, 6, num_classes=7).num_classes == 3
