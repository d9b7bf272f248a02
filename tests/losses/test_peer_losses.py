"""What holds for every loss of the registry, whatever it compares."""

from __future__ import annotations

import inspect
import json
import math

import paths
import pytest
import torch
from tiny import distilling, logged

from afdcd_hf.features import Activations
from afdcd_hf.losses import LOSSES, LossPerPair, LossSum, build_loss

DOCS = paths.DOCS / "losses.md"
CLASSES = 4

# options with which each loss runs on maps of 8x8 and 8 channels; a new loss has to be entered here
OPTIONS = {
    "af_dcd": {"feature_weight": 0.1, "contrast_weight": 0.1, "pool_size": 1, "channel_groups": 4},
    "kd": {},
    "fitnet": {},
    "at": {},
    "skd": {},
    "ifvd": {},
    "cwd": {},
    "mgd": {"weight": 0.1},
    "cirkd": {"num_classes": CLASSES, "pixel_queue": 20, "region_queue": 6, "pixel_draws": 16, "region_draws": 8},
    "dist": {},
}
# where a student equal to the teacher is left alone; the others send it through layers of their own first
ZERO_AT_EQUALITY = {name: OPTIONS[name] for name in ("kd", "fitnet", "at", "skd", "ifvd", "cwd", "dist")}
ZERO_AT_EQUALITY["cirkd"] = {"pixel_weight": 0, "region_weight": 0}

every_loss = pytest.mark.parametrize("name", list(OPTIONS))


def make(name, student_channels=6, teacher_channels=8, seed=0, **options):
    torch.manual_seed(seed)
    loss = build_loss(name, {name: {**OPTIONS[name], **options}}, student_channels, teacher_channels)
    loss.generator = torch.Generator().manual_seed(3)
    return loss


def seen(channels, seed, batch=2, size=(8, 8)):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, CLASSES, *size, generator=generator)
    return Activations(logits, torch.randn(batch, channels, *size, generator=generator))


def pair(batch=2, size=(8, 8)):
    """Student and teacher; both ask for gradients."""
    both = seen(6, 0, batch, size), seen(8, 1, batch, size)
    for activations in both:
        activations.logits.requires_grad_()
        activations.feature_map.requires_grad_()
    return both


def labels(batch=2, size=(16, 16)):
    drawn = torch.randint(0, CLASSES, (batch, *size), generator=torch.Generator().manual_seed(2))
    drawn[:, :3] = 255
    return drawn


def gradients(activations):
    return [tensor.grad for tensor in activations[:2] if tensor.grad is not None]


def without_gradient(activations, convert=lambda tensor: tensor):
    return Activations(*(convert(tensor.detach()) for tensor in activations[:2]))


def test_every_loss_of_the_registry_is_tested_here_and_described_in_the_docs():
    assert set(OPTIONS) == set(LOSSES)
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert set(rows) >= {f"`{name}`" for name in LOSSES}


@every_loss
def test_docstrings_say_what_the_loss_is_related_to_and_whom_to_cite(name):
    loss_class = LOSSES[name]
    assert "Relations:" in loss_class.__doc__ and "Raises:" in loss_class.__doc__
    for part in ("title", "author", "year"):
        assert part in loss_class.citation


@pytest.mark.parametrize("name", list(ZERO_AT_EQUALITY))
def test_a_student_that_agrees_with_the_teacher_gets_zero_and_no_gradient(name):
    torch.manual_seed(0)
    loss = build_loss(name, {name: ZERO_AT_EQUALITY[name]}, 8, 8)
    teacher = seen(8, 1)
    student = Activations(*(tensor.clone().requires_grad_() for tensor in teacher[:2]))
    terms = loss(student, teacher, labels())
    for term in terms.values():
        assert term.item() == pytest.approx(0, abs=1e-5)
    sum(terms.values()).backward()
    other = seen(8, 2)
    other = Activations(other.logits.requires_grad_(), other.feature_map.requires_grad_())
    sum(loss(other, teacher, labels()).values()).backward()
    for at_equality, elsewhere in zip(gradients(student), gradients(other), strict=True):
        assert at_equality.norm() < 1e-3 * elsewhere.norm()


MAPS_ONLY = ("af_dcd", "fitnet", "at", "ifvd", "mgd", "cirkd")
BOTH = {"cwd": "logits_weight", "skd": "pixelwise_weight"}


@every_loss
def test_a_loss_says_whether_it_reads_the_teachers_logits(name):
    assert make(name).reads_teacher_logits is (name not in MAPS_ONLY)
    if name in BOTH:
        assert not make(name, **{BOTH[name]: 0}).reads_teacher_logits


@pytest.mark.parametrize("name", [*MAPS_ONLY, *BOTH])
def test_without_the_teachers_logits_losses_on_maps_are_the_same_to_the_bit(name):
    options = {BOTH[name]: 0} if name in BOTH else {}
    student, teacher = (without_gradient(each) for each in pair())
    terms = [
        make(name, **options)(student, Activations(logits, teacher.feature_map), labels())
        for logits in (teacher.logits, None)
    ]
    assert terms[0] and all(torch.equal(terms[0][key], terms[1][key]) for key in terms[0])


@pytest.mark.parametrize(("spec", "reads"), [("af_dcd+fitnet", False), ("af_dcd+kd", True), ("mgd+dist", True)])
@pytest.mark.parametrize("pairs", [1, 2])
def test_several_losses_read_the_teachers_logits_where_one_does(spec, reads, pairs):
    options = {name: OPTIONS[name] for name in spec.split("+")}
    channels = ([6] * pairs, [8] * pairs)
    assert build_loss(spec, options, *channels).reads_teacher_logits is reads


@every_loss
def test_the_gradient_reaches_the_student_and_all_own_weights_but_not_the_teacher(name):
    loss, (student, teacher) = make(name), pair()
    terms = loss(student, teacher, labels())
    assert terms and all(term.ndim == 0 and term.requires_grad for term in terms.values())
    sum(terms.values()).backward()
    assert gradients(teacher) == []
    assert gradients(student) and all(gradient.abs().sum() > 0 for gradient in gradients(student))
    assert all(weight.grad is not None for weight in loss.parameters())


@every_loss
def test_bf16_under_autocast_is_computed_in_float32(name):
    rounded = [without_gradient(each, torch.Tensor.bfloat16) for each in pair()]
    with torch.autocast("cpu", torch.bfloat16):
        actual = make(name)(*rounded, labels())
    expected = make(name)(*(without_gradient(each, torch.Tensor.float) for each in rounded), labels())
    for term, value in actual.items():
        assert value.dtype == torch.float32 and torch.isfinite(value)
        torch.testing.assert_close(value, expected[term], rtol=1e-5, atol=1e-7)


@every_loss
def test_weights_and_memory_survive_the_state_dict(name):
    loss, student, teacher = make(name), *pair()
    sum(loss(student, teacher, labels()).values()).backward()  # fills memories, moves statistics
    other = make(name, seed=1)
    other.load_state_dict(loss.state_dict())
    for each in (loss, other):
        each.generator = torch.Generator().manual_seed(4)
    first, second = (each(student, teacher, labels()) for each in (loss, other))
    assert all(torch.equal(first[term], second[term]) for term in first)


@every_loss
def test_the_config_is_json_and_builds_the_same_loss(name):
    config = make(name).get_config_dict()
    again = LOSSES[name](**json.loads(json.dumps(config)))
    assert again.get_config_dict() == config
    assert set(config) == set(inspect.signature(LOSSES[name]).parameters)


@every_loss
@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "1e-2", None])
def test_no_weight_may_be_negative_infinite_or_text(name, wrong):
    for option in (each for each in make(name).get_config_dict() if each.endswith("weight")):
        with pytest.raises(ValueError, match=option):
            make(name, **{option: wrong})


@every_loss
def test_terms_of_weight_zero_are_left_out_and_the_others_stay_in_proportion(name):
    loss, (student, teacher) = make(name), pair()
    weights = {option: value for option, value in loss.get_config_dict().items() if option.endswith("weight")}
    nothing = make(name, **dict.fromkeys(weights, 0))
    assert nothing(student, teacher, labels()) == {}
    assert not any(parameter.requires_grad for parameter in nothing.parameters()) or name == "af_dcd"
    twice = make(name, **{option: 2 * value for option, value in weights.items()})
    single, double = loss(student, teacher, labels()), twice(student, teacher, labels())
    assert single.keys() == double.keys()
    for term, value in single.items():
        torch.testing.assert_close(double[term], 2 * value)


@every_loss
@pytest.mark.parametrize("size", [(5, 7), (4, 9)])
def test_one_image_of_odd_size_whose_labels_are_all_ignored_gives_finite_numbers(name, size):
    loss, (student, teacher) = make(name), pair(batch=1, size=size)
    terms = loss(student, teacher, torch.full((1, 33, 50), 255))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(student))


@every_loss
def test_maps_and_logits_of_zeros_give_finite_gradients(name):
    student = Activations(torch.zeros(2, CLASSES, 8, 8), torch.zeros(2, 6, 8, 8))
    for tensor in student[:2]:
        tensor.requires_grad_()
    terms = make(name)(student, seen(8, 1), labels())
    sum(terms.values()).backward()
    largest = max(gradient.abs().max().item() for gradient in gradients(student))
    assert largest < 1e4  # no division by something tiny


@every_loss
def test_a_teacher_with_another_map_size_can_teach(name):
    student, _ = pair()
    for size in ((5, 11), (16, 16)):
        terms = make(name)(student, seen(8, 1, size=size), labels())
        assert terms and all(torch.isfinite(term) for term in terms.values())


def test_all_losses_in_one_sum_give_each_their_terms():
    together = build_loss("+".join(OPTIONS), OPTIONS, 6, 8)
    assert isinstance(together, LossSum)
    together.generator = torch.Generator().manual_seed(3)
    terms = together(*pair(), labels())
    counts = {name: len(make(name)(*pair(), labels())) for name in OPTIONS}
    assert len(terms) == sum(counts.values())
    # alone, so that random numbers come in the same order
    for name in ("kd", "fitnet", "at", "skd", "ifvd", "cwd", "dist"):
        alone = together.losses[name](*pair(), labels())
        assert all(torch.equal(terms[term], value) for term, value in alone.items())


@pytest.mark.parametrize("name", [name for name in OPTIONS if LOSSES[name].needs_feature_map])
def test_several_pairs_of_maps_have_a_loss_each(name):
    torch.manual_seed(0)
    loss = build_loss(name, {name: OPTIONS[name]}, [6, 8], [8, 12])
    assert isinstance(loss, LossPerPair)
    student, teacher = (Activations(a.logits, a.feature_map, (b.feature_map,)) for a, b in _two_layers())
    terms = loss(student, teacher, labels())
    assert {term.rsplit("_", 1)[1] for term in terms} == {"1", "2"}
    sum(terms.values()).backward()
    assert all(weight.grad is not None for weight in loss.parameters())


def _two_layers():
    student = seen(6, 0), seen(8, 2, size=(4, 4))
    teacher = seen(8, 1), seen(12, 3, size=(4, 4))
    for activations in student:
        activations.feature_map.requires_grad_()
        activations.logits.requires_grad_()
    return student, teacher


def test_a_training_with_all_losses_runs_and_logs_their_terms(tmp_path):
    options = {**OPTIONS, **{name: {**OPTIONS[name], "reduction": "mean"} for name in ("af_dcd", "mgd")}}
    trainer = distilling(tmp_path, loss="+".join(options), loss_kwargs=options, max_steps=2)
    trainer.train()
    names = build_loss("+".join(OPTIONS), OPTIONS, 6, 8)(*pair(), labels())
    for term in ("loss", "loss_task", *(f"loss_{name}" for name in names)):
        values = logged(trainer, term)
        assert len(values) == 2 and all(map(math.isfinite, values)), term
