"""MGDLoss: a hand calculation, equality with Af-DCD's feature term, masks, precision and errors."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import AfDcdLoss, MGDLoss
from afdcd_hf.losses.mgd import restoration_error

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


def test_the_mean_divides_the_sum_by_channels_and_positions():
    _, teacher = maps()
    restored = teacher + 2
    assert restoration_error(restored, teacher).item() == pytest.approx(4 * 8 * 7 * 5, rel=1e-5)
    assert restoration_error(restored, teacher, "mean").item() == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("channels", [8, 64])  # 64: only the kept positions are computed
@pytest.mark.parametrize("projector", ["plain", "enhanced", "bottleneck", "depthwise"])
def test_it_is_af_dcds_feature_term_to_the_bit(projector, channels):
    student, teacher = maps(3, channels)
    ours = MGDLoss(3, channels, weight=2e-5, projector=projector)
    theirs = AfDcdLoss(
        3, channels, feature_weight=2e-5, contrast_weight=0.0, projector=projector, pool_size=1, channel_groups=4
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


def test_a_teacher_map_of_another_size_is_resized():
    loss = MGDLoss(3, 8, weight=1.0, mask="center")
    student, _ = maps()
    teacher = torch.randn(2, 8, 3, 9, generator=torch.Generator().manual_seed(3))
    resized = F.interpolate(teacher, (7, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mgd(loss, student, teacher), mgd(loss, student, resized))


def test_weight_zero_leaves_the_term_out_and_trains_nothing():
    loss = MGDLoss(3, 8, weight=0)
    assert loss(Activations(LOGITS), Activations(LOGITS)) == {}
    assert not any(weight.requires_grad for weight in loss.parameters())
    assert all(weight.requires_grad for weight in MGDLoss(3, 8).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "weight=-1 must not be negative"),
        ({"mask": "none"}, "unknown mask='none'; use one of 'random', 'center'"),
        ({"mask_ratio": 1.0}, "mask_ratio=1.0 must be at least 0 and less than 1"),
        ({"projector": "big"}, "unknown projector='big'"),
        ({"reduction": "sum"}, "unknown reduction='sum'; use one of 'paper', 'mean'"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        MGDLoss(3, 8, **options)


def test_missing_and_misfitting_maps_are_named():
    student, teacher = maps()
    with pytest.raises(ValueError, match="'mgd' compares feature maps and got none of the teacher.*teacher_layer"):
        MGDLoss(3, 8)(Activations(LOGITS, student), Activations(LOGITS))
    with pytest.raises(ValueError, match="the student's map has shape .2, 8, 7, 5.; expected .B, 3, h, w."):
        MGDLoss(3, 8)(Activations(LOGITS, teacher), Activations(LOGITS, teacher))


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
