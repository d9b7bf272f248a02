"""AttentionTransferLoss: a hand calculation, what does not change it, gradients."""

from __future__ import annotations

import pytest
import torch

from afdcd_hf.features import Activations
from afdcd_hf.losses import AttentionTransferLoss
from afdcd_hf.losses.attention_transfer import attention, attention_error

LOGITS = torch.zeros(2, 3, 3, 4)


def maps(student_channels=5, teacher_channels=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, channels, 3, 4) for channels in (student_channels, teacher_channels))
    student, teacher = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return student.requires_grad_(), teacher


def test_two_positions_by_hand():
    # means of squares 3 and 4, so (0.6, 0.8); the teacher is active at the first position only
    student = torch.tensor([[2.0, 2.0], [2.0**0.5, -2.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[-3.0, 0.0]]).view(1, 1, 1, 2)
    torch.testing.assert_close(attention(student), torch.tensor([[0.6, 0.8]]))
    loss = AttentionTransferLoss(2, 1, weight=10)
    term = loss(Activations(LOGITS[:1], student), Activations(LOGITS[:1], teacher))["at"]
    assert term.item() == pytest.approx(10 * (0.4**2 + 0.8**2) / 2)


def test_each_image_is_normalised_by_itself():
    student, teacher = maps()
    scaled = teacher * torch.tensor([0.1, 30.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(attention_error(student, scaled), attention_error(student, teacher))
    halves = [attention_error(student[i : i + 1], teacher[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(attention_error(student, teacher), sum(halves) / 2)


def test_signs_order_and_number_of_channels_do_not_matter():
    _, teacher = maps()
    twin = torch.cat([-teacher.flip(1), teacher], dim=1)
    assert attention_error(twin, teacher).item() == pytest.approx(0, abs=1e-12)


def test_the_order_of_positions_does_matter():
    _, teacher = maps()
    assert attention_error(teacher.flip(3), teacher) > 1e-3


def test_the_term_stays_below_the_bound_that_the_docstring_states():
    student, teacher = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    student[..., 0, 0], teacher[..., 2, 3] = 5.0, 0.1
    assert attention_error(student, teacher).item() == pytest.approx(2 / 12)


def test_the_default_is_the_published_weight():
    student, teacher = maps()
    term = AttentionTransferLoss(5, 7)(Activations(LOGITS, student), Activations(LOGITS, teacher))["at"]
    torch.testing.assert_close(term, 10_000 * attention_error(student, teacher))


def test_the_gradient_passes_gradcheck_and_reaches_the_student_only():
    student, teacher = maps(dtype=torch.float64)
    teacher.requires_grad_()
    loss = AttentionTransferLoss(5, 7, weight=100)
    assert torch.autograd.gradcheck(
        lambda own: loss(Activations(LOGITS, own), Activations(LOGITS, teacher))["at"], student
    )
    loss(Activations(LOGITS, student), Activations(LOGITS, teacher))["at"].backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_a_map_of_zeros_gives_a_finite_term_and_no_gradient():
    student = torch.zeros(2, 5, 3, 4).requires_grad_()
    error = attention_error(student, maps()[1])
    error.backward()
    assert error.item() == pytest.approx(1 / 12) and student.grad.eq(0).all()


def test_a_bad_weight_is_explained():
    with pytest.raises(ValueError, match="weight=-1 must not be negative"):
        AttentionTransferLoss(5, 7, weight=-1)
