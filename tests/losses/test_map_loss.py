"""What losses compare: maps and logits made comparable, unit vectors, and the maps of our networks' heads."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations, LayerTap, run_tapped
from afdcd_hf.losses import (
    AttentionTransferLoss,
    CWDLoss,
    FitNetLoss,
    IFVDLoss,
    LossPerPair,
    SKDLoss,
    build_loss,
    needs_feature_map,
)
from afdcd_hf.losses.map_loss import MapLoss, comparable_logits, unit_vectors

LOGITS = torch.zeros(2, 3, 4, 6)
LABELS = torch.zeros(2, 32, 48, dtype=torch.int64)
NAMES = {"fitnet": FitNetLoss, "at": AttentionTransferLoss, "skd": SKDLoss, "ifvd": IFVDLoss, "cwd": CWDLoss}


def seen(channels, size=(4, 6), seed=0, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return Activations(
        torch.randn(batch, 3, *size, generator=generator), torch.randn(batch, channels, *size, generator=generator)
    )


def test_maps_come_in_float32_without_the_teachers_gradient():
    student, teacher = seen(5), seen(7, seed=1)
    half = [Activations(each.logits, each.feature_map.bfloat16().requires_grad_()) for each in (student, teacher)]
    own, taught = MapLoss(5, 7).maps("some", *half)
    assert own.dtype == taught.dtype == torch.float32
    assert own.requires_grad and not taught.requires_grad


def test_a_teacher_map_of_another_size_is_resized_to_the_students():
    student, teacher = seen(5), seen(7, size=(9, 5))
    own, taught = MapLoss(5, 7).maps("some", student, teacher)
    assert torch.equal(own, student.feature_map)
    assert torch.equal(taught, F.interpolate(teacher.feature_map, (4, 6), mode="bilinear", align_corners=False))


def test_float64_maps_and_logits_stay_float64():
    student = Activations(LOGITS.double(), torch.zeros(2, 5, 4, 6, dtype=torch.float64))
    assert all(each.dtype == torch.float64 for each in MapLoss(5, 5).maps("some", student, student))
    assert comparable_logits("some", student.logits, student.logits)[0].dtype == torch.float64


@pytest.mark.parametrize(("name", "loss_class"), NAMES.items())
@pytest.mark.parametrize("missing", ["student", "teacher"])
def test_a_missing_map_says_which_layer_to_name(name, loss_class, missing):
    maps = {"student": seen(5), "teacher": seen(5), missing: Activations(LOGITS)}
    with pytest.raises(
        ValueError, match=f"'{name}' compares feature maps and got none of the {missing}.*{missing}_layer"
    ):
        loss_class(5, 5)(maps["student"], maps["teacher"], LABELS)


@pytest.mark.parametrize(("name", "loss_class"), NAMES.items())
def test_maps_of_other_channels_or_batch_are_refused(name, loss_class):
    loss = loss_class(5, 7)
    with pytest.raises(ValueError, match=r"student's map has shape \(2, 7, 4, 6\); expected \(B, 5, h, w\)"):
        loss(seen(7), seen(7), LABELS)
    with pytest.raises(ValueError, match=r"teacher's map has shape \(2, 5, 4, 6\); expected \(B, 7, h, w\)"):
        loss(seen(5), seen(5), LABELS)
    with pytest.raises(ValueError, match="student's map has batch size 2 and the teacher's 1"):
        loss(seen(5), seen(7, batch=1), LABELS)


@pytest.mark.parametrize(("name", "loss_class"), NAMES.items())
def test_channels_that_are_no_whole_number_are_refused(name, loss_class):
    with pytest.raises(ValueError, match="student_channels=0 must be a whole number"):
        loss_class(0, 5)
    with pytest.raises(ValueError, match="teacher_channels=None must be a whole number"):
        loss_class(5, None)


@pytest.mark.parametrize(("name", "loss_class"), NAMES.items())
def test_all_weights_zero_give_no_terms_and_train_nothing(name, loss_class):
    weights = {option: 0 for option in loss_class(5, 5).get_config_dict() if option.endswith("weight")}
    loss = loss_class(5, 7, **weights)
    assert loss(seen(5), seen(7), LABELS) == {}
    assert not list(loss.parameters())


@pytest.mark.parametrize(("name", "loss_class"), NAMES.items())
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_one_image_and_odd_sizes_give_finite_terms_and_gradients(name, loss_class, size):
    student = Activations(*(each.requires_grad_() for each in seen(5, size, batch=1)[:2]))
    terms = loss_class(5, 7)(student, seen(7, size, seed=1, batch=1), LABELS[:1])
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert torch.isfinite(student.feature_map.grad).all()


def test_logits_of_other_classes_name_the_loss():
    with pytest.raises(ValueError, match="student has 3 classes and the teacher 4; the loss 'cwd' needs"):
        comparable_logits("cwd", LOGITS, torch.zeros(2, 4, 4, 6))


# Unit vectors


def test_unit_vectors_have_length_one_and_the_direction_they_had():
    vectors = torch.tensor([[3.0, 4.0], [-5.0, 12.0]])
    torch.testing.assert_close(unit_vectors(vectors, 1), torch.tensor([[0.6, 0.8], [-5 / 13, 12 / 13]]))
    torch.testing.assert_close(unit_vectors(vectors, 0), F.normalize(vectors, dim=0))


def test_a_zero_vector_stays_zero_and_its_gradient_stays_small():
    vectors = torch.zeros(1, 4).requires_grad_()
    units = unit_vectors(vectors, 1)
    (units * torch.arange(4.0)).sum().backward()
    assert units.eq(0).all()
    assert torch.equal(vectors.grad, torch.arange(4.0)[None])


@pytest.mark.parametrize("loss_class", [AttentionTransferLoss, SKDLoss, IFVDLoss])
def test_dead_positions_of_a_map_do_not_blow_up_the_gradient(loss_class):
    student, teacher = seen(5), seen(7, seed=1)
    dead = student.feature_map.clone()
    dead[0, :, :2, :2] = 0
    dead[1] = 0
    dead.requires_grad_()
    sum(loss_class(5, 7)(Activations(student.logits, dead), teacher, LABELS).values()).backward()
    alive = student.feature_map.clone().requires_grad_()
    sum(loss_class(5, 7)(Activations(student.logits, alive), teacher, LABELS).values()).backward()
    assert dead.grad.abs().max() < 100 * alive.grad.abs().max()


# Losses with a term on maps and one on logits


@pytest.mark.parametrize(("name", "off"), [("skd", "pairwise_weight"), ("cwd", "map_weight")])
def test_without_its_term_on_maps_a_loss_needs_no_map(name, off):
    assert needs_feature_map(name, None) and needs_feature_map(f"kd+{name}", {name: {off: 0.5}})
    assert not needs_feature_map(name, {name: {off: 0}}) and not needs_feature_map("kd", None)
    loss = build_loss(name, {name: {off: 0.0}})
    assert len(loss(Activations(LOGITS), Activations(LOGITS))) == 1


@pytest.mark.parametrize(("name", "on_maps", "on_logits"), [("skd", "pairwise", "pixelwise"), ("cwd", "map", "logits")])
def test_with_two_pairs_of_maps_the_logits_are_compared_once(name, on_maps, on_logits):
    loss = build_loss(name, None, [5, 5], [7, 7])
    assert isinstance(loss, LossPerPair)
    student, teacher = (each._replace(further_maps=(each.feature_map,)) for each in (seen(5), seen(7, seed=1)))
    assert list(loss(student, teacher)) == [f"{name}_{on_maps}_1", f"{name}_{on_logits}_1", f"{name}_{on_maps}_2"]


def test_a_distillation_on_logits_alone_asks_a_foreign_teacher_for_no_layer(tmp_path):
    options = {"loss": "cwd", "loss_kwargs": {"cwd": {"map_weight": 0, "logits_weight": 3.0}}}
    foreign = Foreign()
    trainer = tiny.distilling(tmp_path, teacher=foreign, max_steps=1, **options)
    trainer.train()
    assert len(tiny.logged(trainer, "loss_cwd_logits")) == 1


class Foreign(nn.Module):
    """A teacher that is none of our networks, so that it has no layer to distil by default."""

    def __init__(self):
        super().__init__()
        self.inner = tiny.segmenter(1)

    def forward(self, pixel_values):
        return self.inner(pixel_values=pixel_values)


# The head's last map, to which the published weights belong


@pytest.mark.parametrize("head", ["deeplabv3", "pspnet", "fcn"])
def test_the_heads_last_map_is_what_the_classifier_reads(head):
    network = tiny.segmenter(head=head).eval()
    tap = LayerTap(network, "head.features")
    outputs, activations = run_tapped(network, torch.randn(2, 3, 32, 48), [tap])
    assert activations.feature_map.shape[1] == 8  # head_channels
    torch.testing.assert_close(network.head.classifier(activations.feature_map), outputs.logits)


def test_the_heads_last_maps_can_be_distilled_by_name(tmp_path):
    layers = {"student_layer": "head.features", "teacher_layer": "head.features"}
    trainer = tiny.distilling(
        tmp_path, teacher=tiny.segmenter(1, head_channels=12), loss="kd+fitnet", loss_kwargs={}, max_steps=1, **layers
    )
    align = trainer.model.loss.losses["fitnet"].align
    before = align.weight.detach().clone()
    trainer.train()
    assert align.weight.shape == (12, 8, 1, 1) and not torch.equal(align.weight, before)
