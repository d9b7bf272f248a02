"""MGDLoss: a hand calculation, equality with Af-DCD's feature term, masks and memory."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from afdcd_hf.features import Activations
from afdcd_hf.losses import AfDcdLoss, MGDLoss
from afdcd_hf.losses.restoration import restoration_error

LOGITS = torch.zeros(2, 3, 4, 4)


def maps(student_channels=3, teacher_channels=8, size=(7, 5)):
    generator = torch.Generator().manual_seed(1)
    student = torch.randn(2, student_channels, *size, generator=generator).requires_grad_()
    return student, torch.randn(2, teacher_channels, *size, generator=generator)


def mgd(loss, student, teacher):
    return loss(Activations(LOGITS, student), Activations(LOGITS, teacher))["mgd"]


def seeded(loss, seed=0):
    loss.generator = torch.Generator().manual_seed(seed)
    return loss


def test_one_pixel_a_map_by_hand():
    # align is the identity, nothing is hidden; both convolutions only double, at their centre
    loss = MGDLoss(1, 1, weight=0.5, mask_ratio=0.0)
    for convolution in (loss.projector[0], loss.projector[2]):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        convolution.weight.data[0, 0, 1, 1] = 2.0
    student = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1)  # restored: 12 and, behind the ReLU, 0
    teacher = torch.tensor([10.0, 4.0]).view(2, 1, 1, 1)
    assert mgd(loss, student, teacher).item() == pytest.approx(0.5 * (2**2 + 4**2) / 2)


@pytest.mark.parametrize("projector", ["plain", "enhanced", "bottleneck", "depthwise"])
def test_it_is_af_dcds_feature_term_to_the_bit(projector):
    student, teacher = maps()
    ours = MGDLoss(3, 8, weight=2e-5, projector=projector)
    theirs = AfDcdLoss(
        3, 8, feature_weight=2e-5, contrast_weight=0.0, projector=projector, pool_size=1, channel_groups=4
    )
    theirs.load_state_dict(ours.state_dict())
    expected = seeded(theirs)(Activations(LOGITS, student), Activations(LOGITS, teacher))["feature"]
    assert torch.equal(mgd(seeded(ours), student, teacher), expected)


def test_hidden_positions_get_no_gradient_but_through_their_neighbours_do_count():
    loss = MGDLoss(3, 8, weight=1.0, mask="center")
    student, teacher = maps(size=(9, 9))
    mgd(loss, student, teacher).backward()
    seen = student.grad.abs().sum(dim=(0, 1)) > 0
    assert not seen[3:6, 3:6].any() and seen[0].all() and seen[8].all()
    moved = teacher.clone()
    moved[:, :, 4, 4] += 1
    assert not torch.equal(mgd(loss, student, moved), mgd(loss, student, teacher))


def test_masks_are_drawn_anew_at_each_call_and_repeat_with_the_generator():
    loss = MGDLoss(3, 8, weight=1.0)
    student, teacher = maps()
    first, second = (mgd(seeded(loss), student, teacher) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(mgd(loss, student, teacher), second)


# Memory


@pytest.mark.parametrize("reduction", ["paper", "mean"])
def test_the_error_and_its_gradient_are_those_of_pytorch(reduction):
    restored, target = (
        torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 5, 7).double(),
    )
    error = restoration_error(restored, target, reduction)
    expected = torch.nn.functional.mse_loss(restored, target, reduction="sum") / (2 if reduction == "paper" else 210)
    torch.testing.assert_close(error, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(3 * each, restored)[0] for each in (error, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda each: restoration_error(each, target, reduction), restored)


def test_the_teachers_map_is_free_before_the_backward_pass():
    restored, target = torch.randn(1, 2, 3, 3, requires_grad=True), torch.randn(1, 2, 3, 3)
    gone = weakref.ref(target)
    error = restoration_error(restored, target)
    del target
    assert gone() is None
    error.backward()
    assert restored.grad is not None
