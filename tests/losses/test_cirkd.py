"""CIRKDLoss and its memory: loops over pixels, queues, labels and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import CIRKDLoss, build_loss
from afdcd_hf.losses.cirkd import ClassQueues, queue_names

SMALL = {"num_classes": 3, "pixel_queue": 5, "region_queue": 4, "pixels_per_image": 2, "pixel_draws": 6}
SMALL |= {"region_draws": 4}


def small_loss(**options):
    torch.manual_seed(0)
    loss = CIRKDLoss(3, 4, **{**SMALL, **options})
    torch.manual_seed(5)  # for its draws
    return loss


def pair(batch=2, size=(5, 7)):
    """Return activations of student and teacher, with maps of 3 and 4 channels."""
    logits, generator = torch.zeros(batch, 3, *size), torch.Generator().manual_seed(0)
    return [Activations(logits, torch.randn(batch, count, *size, generator=generator)) for count in (3, 4)]


def some_labels():
    labels = torch.randint(0, 3, (2, 5, 7), generator=torch.Generator().manual_seed(9))
    labels[:, 0] = 255
    return labels


def only(name):
    return {f"{each}_weight": 2.0 if each == name else 0 for each in ("minibatch", "pixel", "region")}


def divergence(student, teacher):
    s, t = ((similarities / 0.1).softmax(0) for similarities in (student, teacher))
    return (t * (t / s).log()).sum().item()


# Terms


@pytest.mark.parametrize(("size", "pool"), [((5, 7), 1), ((5, 7), 2), ((4, 6), 2), ((1, 1), 2)])
def test_the_minibatch_term_equals_loops_over_images_and_cells(size, pool):
    maps = pair(batch=3, size=size)
    actual = small_loss(**only("minibatch"), pool_size=pool)(*maps)["cirkd_minibatch"]
    corners = [(row, column) for row in range(0, size[0], pool) for column in range(0, size[1], pool)]
    student, teacher = (
        torch.stack([each.feature_map[:, :, y : y + pool, x : x + pool].double().mean((2, 3)) for y, x in corners], 2)
        for each in maps
    )
    student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)  # (3, C, cells)
    total = 0.0
    for own in range(3):
        for other in range(3):
            for cell in range(len(corners)):
                total += divergence(*(each[own, :, cell] @ each[other] for each in (student, teacher)))
    assert actual.item() == pytest.approx(2.0 * total / (3 * 3 * len(corners)), rel=1e-5, abs=1e-9)


def test_the_memory_terms_equal_loops_over_what_was_drawn():
    loss = small_loss(pixel_weight=0.5, region_weight=2.0, minibatch_weight=0)
    student, teacher = pair()
    terms = loss(student, teacher, some_labels())
    # the same draws again: two of the memory's own after one to choose pixels
    generator = torch.Generator().manual_seed(5)
    torch.rand(2, 35, generator=generator)
    pixels = loss.pixels.draw(torch.rand(6, generator=generator))
    regions = loss.regions.draw(torch.rand(4, generator=generator))
    projected = F.normalize(loss.head(student.feature_map).detach(), dim=1)
    taught = F.normalize(teacher.feature_map, dim=1)
    anchors = (some_labels() != 255).nonzero().tolist()
    assert len(anchors) == 56  # of 70
    for name, weight, memory in (("pixel", 0.5, pixels), ("region", 2.0, regions)):
        total = sum(divergence(*(memory @ each[b, :, y, x] for each in (projected, taught))) for b, y, x in anchors)
        assert terms[f"cirkd_{name}"].item() == pytest.approx(weight * total / len(anchors), rel=1e-4)


def test_a_fully_ignored_batch_leaves_the_memory_empty_and_gives_zero():
    loss, (student, teacher) = small_loss(minibatch_weight=0), pair()
    student.feature_map.requires_grad_()
    terms = loss(student, teacher, torch.full((2, 5, 7), 255))
    sum(terms.values()).backward()
    assert [term.item() for term in terms.values()] == [0, 0]
    assert loss.pixels.appended.tolist() == loss.regions.appended.tolist() == [0, 0, 0]
    gradients = [student.feature_map.grad, *(weight.grad for weight in loss.parameters())]
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)  # present, and zero


@pytest.mark.parametrize("unknown", [255, -100, 3])
def test_pixels_without_a_class_are_not_anchors_of_the_memory_terms(unknown):
    (student, teacher), labels = pair(), some_labels()
    labels[labels == 255] = unknown
    moved = student.feature_map.clone()
    moved[:, :, 0] *= -5  # the row whose labels are ignored
    terms = []
    for feature_map in (student.feature_map, moved):
        loss = small_loss(minibatch_weight=0).eval()  # batch norm would mix the pixels
        for seed, queues in enumerate((loss.pixels, loss.regions)):
            queues.append(torch.randn(12, 4, generator=torch.Generator().manual_seed(seed)), torch.arange(12) % 3)
        feature_map.requires_grad_()
        terms.append(loss(student._replace(feature_map=feature_map), teacher, labels))
        sum(terms[-1].values()).backward()
        assert feature_map.grad[:, :, 0].eq(0).all() and feature_map.grad[:, :, 1:].ne(0).any()
    assert all(torch.equal(terms[0][name], terms[1][name]) and terms[0][name] > 0 for name in terms[0])


@pytest.mark.parametrize(("ignored", "classes"), [(255, [1, 0, 1]), (0, [0, 0, 1]), (None, [1, 0, 1])])
def test_labels_are_resized_to_the_map_and_only_known_classes_enter(ignored, classes):
    loss = small_loss(ignore_index=ignored)
    labels = torch.tensor([[0, 255], [2, 7]]).repeat_interleave(10, 0).repeat_interleave(14, 1)
    loss(*pair(size=(10, 14)), labels.expand(2, -1, -1))
    assert loss.pixels.appended.tolist() == [4 * number for number in classes]  # two pixels per image
    assert loss.regions.appended.tolist() == [2 * number for number in classes]


# Memory


def test_a_queue_keeps_the_newest_vectors_of_each_class():
    queues = ClassQueues(num_classes=3, size=2, channels=1)
    queues.append(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 2, 0]))
    before = queues.appended.clone()
    for _ in range(2):  # repeating a step with the count restored gives the same
        queues.appended.copy_(before)
        queues.append(torch.tensor([[4.0], [5.0], [math.nan]]), torch.tensor([0, -1, 1]))  # skips no class and NaN
        assert queues.vectors.squeeze(2).tolist() == [[4, 3], [0, 0], [2, 0]]
        assert queues.appended.tolist() == [3, 0, 1]
    queues.append(torch.arange(8.0).unsqueeze(1), torch.full((8,), 1))  # more at once than fit: the last ones are kept
    assert sorted(queues.vectors[1].flatten().tolist()) == [6, 7] and queues.appended[1] == 8


def test_draws_are_shared_equally_by_the_classes_that_have_vectors():
    queues = ClassQueues(num_classes=4, size=3, channels=1)
    queues.append(torch.tensor([[1.0], [2.0], [7.0]]), torch.tensor([1, 1, 3]))
    drawn = queues.draw(torch.tensor([0.0, 0.5, 0.49, 0.9, 1 - 2**-24, 0.2])).flatten().tolist()
    assert drawn == [1, 7, 1, 7, 2, 7]
    assert ClassQueues(2, 3, 4).draw(torch.rand(5)).tolist() == [[0.0] * 4] * 5


def test_the_memory_takes_the_teachers_pixels_and_the_means_of_classes_of_length_one():
    loss, (student, teacher), labels = small_loss(region_queue=2, minibatch_weight=0), pair(), some_labels()
    loss(student, teacher, labels)
    with torch.no_grad():  # such a pass does not change the memory
        loss(student, teacher, labels)
    pixels = F.normalize(teacher.feature_map, dim=1).movedim(1, -1)  # (B, h, w, C)
    numbers = torch.rand(2, 35, generator=torch.Generator().manual_seed(5)).view(2, 5, 7)
    for label in range(3):
        for image in range(2):
            inside = labels[image] == label
            of_class = pixels[image][inside]
            chosen = of_class[numbers[image][inside].argsort()[:2]]  # those with the smallest random numbers
            torch.testing.assert_close(loss.pixels.vectors[label, 2 * image : 2 * image + 2], chosen)
            torch.testing.assert_close(loss.regions.vectors[label, image], F.normalize(of_class.mean(0), dim=0))
        assert loss.pixels.appended[label] == 4 and loss.regions.appended[label] == 2


def test_only_layers_and_queues_with_weight_are_built():
    assert small_loss(**only("minibatch"), num_classes=None).state_dict() == {}
    assert queue_names(small_loss(**only("pixel"))) == ["pixels.vectors"]
    assert queue_names(small_loss(**only("region"))) == ["regions.vectors"]
    assert queue_names(small_loss()) == ["pixels.vectors", "regions.vectors"]


def test_a_memory_needs_the_number_of_classes_which_recipes_may_omit():
    with pytest.raises(ValueError, match=r"missing cirkd\.num_classes.*pixel_weight=0 and region_weight=0"):
        small_loss(num_classes=None)
    with pytest.raises(ValueError, match="the models have 3 classes and cirkd.num_classes is 4; give num_classes=3"):
        small_loss(num_classes=4)(*pair(), some_labels())
    for options, expected in (({**SMALL, "num_classes": None}, 7), (SMALL, 3)):
        assert build_loss("cirkd", {"cirkd": options}, 4, 6, num_classes=7).num_classes == expected
