"""FitNetLoss: a hand calculation, align, gradients and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import FitNetLoss

LOGITS = torch.zeros(1, 2, 1, 2)


def fitnet(loss, student_map, teacher_map):
    return loss(Activations(LOGITS, student_map), Activations(LOGITS, teacher_map))["fitnet"]


def test_two_positions_by_hand():
    student = torch.tensor([[1.0, 2.0], [0.0, -1.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[1.0, 4.0], [3.0, 0.0]]).view(1, 2, 1, 2)
    assert fitnet(FitNetLoss(2, 2, weight=3.0), student, teacher).item() == pytest.approx(3 * (0 + 4 + 9 + 1) / 4)


def test_equal_channels_are_compared_as_they_are():
    loss = FitNetLoss(2, 2)
    assert isinstance(loss.align, nn.Identity) and loss.state_dict() == {}
    feature_map = torch.randn(1, 2, 1, 2, generator=torch.Generator().manual_seed(0))
    assert fitnet(loss, feature_map, feature_map) == 0


def test_other_channels_are_aligned_by_a_convolution_that_trains():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 2, 1, 2, generator=generator).requires_grad_()
    teacher = torch.randn(1, 3, 1, 2, generator=generator).requires_grad_()
    loss = FitNetLoss(2, 3)
    term = fitnet(loss, student, teacher)
    aligned = F.conv2d(student, loss.align.weight, loss.align.bias)
    torch.testing.assert_close(term, (aligned - teacher).square().mean())
    term.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert all(weight.grad.abs().sum() > 0 for weight in loss.parameters())
    assert list(loss.state_dict()) == ["align.weight", "align.bias"]


def test_autocast_does_not_reach_align_nor_the_error():
    loss = FitNetLoss(2, 3)
    student, teacher = torch.randn(1, 2, 1, 2), torch.randn(1, 3, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fitnet(loss, student, teacher)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, fitnet(loss, student, teacher))


@pytest.mark.parametrize(("weight", "message"), [(-1, "must not be negative"), ("1e0", "is text")])
def test_a_bad_weight_is_explained(weight, message):
    with pytest.raises(ValueError, match=message):
        FitNetLoss(2, 3, weight=weight)
