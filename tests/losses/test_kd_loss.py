"""KDLoss: golden values, a hand calculation, other sizes, precision and errors."""

from __future__ import annotations

import math

import paths
import pytest
import torch
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import KDLoss
from afdcd_hf.losses.kd import kd_divergence

GOLDEN = paths.GOLDEN / "losses.safetensors"


def random_logits(shape=(2, 5, 3, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator).requires_grad_()
    return student, torch.randn(shape, generator=generator)


def kd(loss, student, teacher):
    return loss(Activations(student), Activations(teacher))["kd"]


def test_value_and_gradient_equal_the_released_code():
    if not GOLDEN.exists():
        pytest.skip("needs ../shared/golden")
    golden = pytest.importorskip("safetensors.torch").load_file(GOLDEN)
    student = golden["kd.student"].requires_grad_()
    loss = kd(KDLoss(temperature=2.0), student, golden["kd.teacher"])
    loss.backward()
    torch.testing.assert_close(loss, golden["kd.loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(student.grad, golden["kd.grad"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_two_pixels_with_two_classes_by_hand(temperature):
    # pixel 0: the teacher says 3:1 where the student says 1:1; pixel 1: both say 1:1
    teacher = temperature * torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    student = torch.zeros(1, 2, 1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = temperature**2 * divergence / 2
    assert kd(KDLoss(temperature=temperature), student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_the_weight_scales_the_term():
    student, teacher = random_logits()
    torch.testing.assert_close(
        kd(KDLoss(weight=0.5), student, teacher), 0.5 * kd_divergence(student, teacher, temperature=1.0)
    )


def test_equal_logits_give_zero_and_so_does_a_shift_of_all_classes():
    _, teacher = random_logits()
    assert kd(KDLoss(), teacher, teacher + 3).item() == pytest.approx(0, abs=1e-6)


def test_weight_zero_leaves_the_term_out():
    student, teacher = random_logits()
    assert KDLoss(weight=0)(Activations(student), Activations(teacher)) == {}


def test_the_gradient_reaches_the_student_only():
    student, teacher = random_logits()
    teacher.requires_grad_()
    kd(KDLoss(), student, teacher).backward()
    expected = (student.softmax(1) - teacher.softmax(1)).detach() / (2 * 3 * 4)
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None


def test_the_gradient_passes_gradcheck_in_float64():
    student, teacher = random_logits((1, 3, 2, 2))
    student, teacher = student.detach().double().requires_grad_(), teacher.double()
    assert torch.autograd.gradcheck(lambda logits: kd(KDLoss(temperature=2.0), logits, teacher), student)


def test_teacher_logits_of_another_size_are_resized():
    student, _ = random_logits((2, 5, 3, 4))
    teacher = torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(1))
    resized = F.interpolate(teacher, size=(3, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(kd(KDLoss(), student, teacher), kd(KDLoss(), student, resized))


def test_bf16_autocast_and_bf16_logits_are_computed_in_float32():
    student, teacher = (logits.detach().bfloat16() for logits in random_logits())
    with torch.autocast("cpu", torch.bfloat16):
        actual = kd(KDLoss(), student, teacher)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, kd(KDLoss(), student.float(), teacher.float()))


def test_logits_far_apart_stay_finite():
    student = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss = kd(KDLoss(), student, -student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(2e4) and torch.isfinite(student.grad).all()


def test_different_classes_are_refused_with_both_counts():
    with pytest.raises(ValueError, match="student has 5 classes and the teacher 6.*leave 'kd' out"):
        kd(KDLoss(), torch.zeros(1, 5, 2, 2), torch.zeros(1, 6, 2, 2))


@pytest.mark.parametrize("shape", [(2, 5, 2, 2), (1, 5, 2)])
def test_logits_of_another_batch_or_rank_are_refused(shape):
    with pytest.raises(ValueError, match="must both be .B, K, h, w. of the same batch"):
        kd(KDLoss(), torch.zeros(1, 5, 2, 2), torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": -1}, "weight=-1 must not be negative"),
        ({"weight": "1e0"}, "weight='1e0' is text"),
        ({"temperature": 0}, "temperature=0 must be greater than 0"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
    ],
)
def test_bad_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        KDLoss(**options)


def test_the_config_lists_the_arguments():
    assert KDLoss(weight=0.5).get_config_dict() == {"weight": 0.5, "temperature": 1.0}
    assert "Hinton" in KDLoss.citation and not KDLoss.needs_feature_map
