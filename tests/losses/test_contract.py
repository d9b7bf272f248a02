"""Properties that every loss of the registry must have, whatever it compares."""

from __future__ import annotations

import inspect
import json
import math

import paths
import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged
from torch import nn
from torch.nn import functional as F

from afdcd_hf.features import Activations
from afdcd_hf.losses import LOSSES, DistillationLoss, LossPerPair, build_loss, option_defaults

CLASSES = 4

# options for each loss on maps of 8x8 and 8 channels; add new losses here
OPTIONS: dict = {
    "af_dcd": {"feature_weight": 0.1, "contrast_weight": 0.1, "pool_size": 1, "channel_groups": 4},
    **{"kd": {}, "fitnet": {}, "at": {}, "skd": {}, "ifvd": {}, "cwd": {}, "dist": {}, "bpkd": {}},
    "mgd": {"weight": 0.1},
    "cirkd": {"num_classes": CLASSES, "pixel_queue": 20, "region_queue": 6, "pixel_draws": 16, "region_draws": 8},
}
ON_MAPS = [name for name in OPTIONS if LOSSES[name].needs_feature_map]
ON_LOGITS = [name for name in OPTIONS if LOSSES[name].logits_terms]
WITH_LABELS = ("ifvd", "cirkd", "bpkd")
WITH_LAYERS = ("af_dcd", "fitnet", "cwd", "mgd", "cirkd")
# losses that leave a student equal to the teacher alone; mgd and af_dcd put it through their own layers first
AT_EQUALITY = {name: OPTIONS[name] for name in OPTIONS if name not in ("af_dcd", "mgd")}
AT_EQUALITY |= {"cirkd": {"pixel_weight": 0, "region_weight": 0}}
AT_EQUALITY |= {"kd, standardized": {"standardize": True}, "fitnet, normalized": {"normalize": True}}

every_loss = pytest.mark.parametrize("name", list(OPTIONS))
on_maps = pytest.mark.parametrize("name", ON_MAPS)


def make(name, student_channels=6, teacher_channels=8, seed=0, **options):
    torch.manual_seed(seed)
    loss = build_loss(name, {name: {**OPTIONS[name], **options}}, student_channels, teacher_channels)
    torch.manual_seed(3)  # for masks and draws
    return loss


def seen(channels, seed, batch=2, size=(8, 8), classes=CLASSES):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, *size, generator=generator)
    return Activations(logits, torch.randn(batch, channels, *size, generator=generator))


def converted(activations, convert):
    return Activations(*(convert(tensor.detach()) for tensor in activations[:2]))


def asking_for_gradients(activations):
    return converted(activations, lambda tensor: tensor.clone().requires_grad_())


def pair(batch=2, size=(8, 8)):
    """Return student and teacher, both requiring gradients."""
    return asking_for_gradients(seen(6, 0, batch, size)), asking_for_gradients(seen(8, 1, batch, size))


def labels():
    drawn = torch.randint(0, CLASSES, (2, 16, 16), generator=torch.Generator().manual_seed(2))
    drawn[:, :3] = 255
    return drawn


def gradients(activations):
    return [tensor.grad for tensor in activations[:2] if tensor.grad is not None]


# Registry and docs


def test_every_registered_loss_is_tested_here_documented_and_cited():
    assert set(OPTIONS) == set(LOSSES)
    text = (paths.DOCS / "losses.md").read_text()
    for name, loss_class in LOSSES.items():
        assert f"\n| `{name}` |" in text
        assert issubclass(loss_class, DistillationLoss) and loss_class.name == name
        assert "Relations:" in loss_class.__doc__
        assert all(part in loss_class.citation for part in ("@", "title", "author", "year"))


# Values


@pytest.mark.parametrize("case", list(AT_EQUALITY))
def test_a_student_equal_to_the_teacher_gets_zero_and_no_gradient(case):
    torch.manual_seed(0)
    name = case.split(",")[0]
    loss = build_loss(name, {name: AT_EQUALITY[case]}, 8, 8)
    teacher = seen(8, 1)
    student, other = asking_for_gradients(teacher), asking_for_gradients(seen(8, 2))
    terms = loss(student, teacher, labels())
    for term in terms.values():
        assert term.item() == pytest.approx(0, abs=1e-5)
    sum(terms.values()).backward()
    sum(loss(other, teacher, labels()).values()).backward()
    for at_equality, elsewhere in zip(gradients(student), gradients(other), strict=True):
        assert at_equality.norm() < 1e-3 * elsewhere.norm()


@every_loss
@pytest.mark.parametrize("size", [(5, 11), (16, 16)])
def test_the_teachers_map_and_logits_are_resized_to_the_students(name, size):
    student, teacher = seen(6, 0), seen(8, 1, size=size)
    resized = converted(teacher, lambda each: F.interpolate(each, (8, 8), mode="bilinear", align_corners=False))
    terms, expected = make(name)(student, teacher, labels()), make(name)(student, resized, labels())
    assert terms and all(torch.equal(terms[term], expected[term]) for term in terms)


@every_loss
def test_terms_of_weight_zero_are_left_out_and_the_others_stay_in_proportion(name):
    given = (*pair(), labels())
    weights = {option: value for option, value in make(name).get_config_dict().items() if option.endswith("weight")}
    nothing = make(name, **dict.fromkeys(weights, 0))
    assert nothing(*given) == {} and not list(nothing.parameters())
    single = make(name)(*given)
    double = make(name, **{option: 2 * value for option, value in weights.items()})(*given)
    assert single.keys() == double.keys()
    for term, value in single.items():
        torch.testing.assert_close(double[term], 2 * value)
    for term, option in {**LOSSES[name].map_terms, **LOSSES[name].logits_terms}.items():
        assert make(name, **{option: 0})(*given).keys() == single.keys() - {term}


@every_loss
@pytest.mark.parametrize("size", [(5, 7), (4, 9)])
def test_one_image_of_odd_size_whose_labels_are_all_ignored_gives_finite_numbers(name, size):
    loss, (student, teacher) = make(name), pair(batch=1, size=size)
    terms = loss(student, teacher, torch.full((1, 33, 50), 255))
    sum(terms.values()).backward()
    assert all(torch.isfinite(term) for term in terms.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients(student))
    if name in WITH_LABELS:  # comparisons by labels have nothing to compare
        assert all(value == 0 for term, value in terms.items() if term != "cirkd_minibatch")


@every_loss
def test_maps_and_logits_of_zeros_give_finite_gradients(name):
    zeros = Activations(torch.zeros(2, CLASSES, 8, 8), torch.zeros(2, 6, 8, 8))
    student = asking_for_gradients(zeros)
    sum(make(name)(student, seen(8, 1), labels()).values()).backward()
    largest = max(gradient.abs().max().item() for gradient in gradients(student))
    assert largest < 1e4  # no division by a tiny number


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "af_dcd"])  # whose contrast tests/ops checks
def test_the_gradient_passes_gradcheck_in_float64(name):
    options = {"cirkd": {"pixel_weight": 0, "region_weight": 0}, "mgd": {"mask": "center", "weight": 0.1}}.get(name, {})
    torch.manual_seed(0)
    loss = build_loss(name, {name: options}, 3, 4).double()
    student, teacher = (converted(seen(c, c, 1, (4, 3), 3), torch.Tensor.double) for c in (3, 4))
    known = torch.randint(0, 3, (1, 4, 3), generator=torch.Generator().manual_seed(4))

    def terms(logits, feature_map):
        return tuple(loss(Activations(logits, feature_map), teacher, known).values())

    assert all(term.dtype == torch.float64 for term in terms(*student[:2]))
    assert torch.autograd.gradcheck(terms, [tensor.requires_grad_() for tensor in student[:2]])


# Gradients, precision, state


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
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_applies_to_layers_only_and_gradients_are_finite(name, dtype):
    rounded = [converted(each, lambda tensor: tensor.to(dtype)) for each in pair()]
    expected = make(name)(*(converted(each, torch.Tensor.float) for each in rounded), labels())
    loss, dtypes = make(name), set()
    for module in loss.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    student, teacher = asking_for_gradients(rounded[0]), rounded[1]
    with torch.autocast("cpu", dtype):
        actual = loss(student, teacher, labels())
    assert dtypes == ({dtype} if name in WITH_LAYERS else set())
    for term, value in actual.items():
        assert value.dtype == torch.float32
        tolerance = {"rtol": 0.03, "atol": 1e-7} if name in WITH_LAYERS else {"rtol": 0, "atol": 0}  # bfloat16: 8 bits
        torch.testing.assert_close(value, expected[term], **tolerance)
    sum(actual.values()).backward()
    of_weights = [weight.grad for weight in loss.parameters()]
    assert all(gradient.dtype == torch.float32 for gradient in of_weights)
    assert all(gradient.isfinite().all() for gradient in (*gradients(student), *of_weights))


@every_loss
def test_weights_and_memory_survive_the_state_dict(name):
    loss, student, teacher = make(name), *pair()
    sum(loss(student, teacher, labels()).values()).backward()  # fills memories, moves statistics
    other = make(name, seed=1)
    other.load_state_dict(loss.state_dict())
    results = []
    for each in (loss, other):
        torch.manual_seed(4)
        results.append(each(student, teacher, labels()))
    assert all(torch.equal(results[0][term], results[1][term]) for term in results[0])


# Options


@every_loss
def test_the_config_is_json_and_builds_the_same_loss(name):
    config = make(name).get_config_dict()
    again = LOSSES[name](**json.loads(json.dumps(config)))
    assert again.get_config_dict() == config
    assert set(config) == set(inspect.signature(LOSSES[name]).parameters)


WRONG = {  # by the option, or by the last word of its name
    "weight": [-1, math.nan, math.inf, "1e-2", None],
    "temperature": [0, -4, math.nan, "2"],
    **dict.fromkeys(("size", "queue", "draws", "image", "classes", "width", "groups"), [0, 2.5]),
    **{"index": [1.5, "255"], "ratio": [1.0, -0.1], "mask": ["none"], "projector": ["big"], "reduction": ["sum"]},
    **{"standardize": ["yes"], "normalize": [2], "contrast": ["pixel"], "distance": ["l3"], "negatives": ["some"]},
    "backend": ["cuda"],
}


@every_loss
def test_bad_option_values_are_rejected_by_name_before_any_model_is_built(name):
    for option in option_defaults(LOSSES[name]):
        for wrong in WRONG[option.rsplit("_", 1)[-1]]:
            with pytest.raises(ValueError, match=option):
                build_loss(name, {name: {**OPTIONS[name], option: wrong}})


# Inputs that do not fit


@every_loss
def test_maps_logits_and_labels_that_are_missing_or_do_not_fit_are_explained(name):
    loss, (student, teacher), known = make(name), pair(), labels()
    needed, cases = f"'{name}' compares feature maps and got none from the ", []
    if name in ON_MAPS:
        cases += [
            (loss, Activations(student.logits), teacher, known, f"{needed}student.*student_layer"),
            (loss, student, Activations(None), known, f"{needed}teacher.*teacher_layer"),
            (loss, teacher, teacher, known, r"student's map has shape \(2, 8, 8, 8\); expected \(B, 6, h, w\)"),
            (loss, student, student, known, r"teacher's map has shape \(2, 6, 8, 8\); expected \(B, 8, h, w\)"),
            (loss, student, converted(teacher, lambda each: each[:1]), known, "batch size 2 and the teacher's 1"),
        ]
    if name in ON_LOGITS:
        on_logits = make(name, **dict.fromkeys(LOSSES[name].map_terms.values(), 0))
        for shape, message in (
            ((2, 5, 8, 8), f"student has 4 classes and the teacher 5; the loss '{name}' .*leave '{name}'"),
            ((1, 4, 8, 8), r"must both be \(B, K, h, w\) with the same batch"),
            ((2, 4, 8), r"must both be \(B, K, h, w\) with the same batch"),
        ):
            cases.append((on_logits, student, Activations(torch.zeros(shape)), known, message))
    if name in WITH_LABELS:
        for given, shape in ((None, "None"), (known[:, None], r"\(2, 1, 16, 16\)"), (known[:1], r"\(1, 16, 16\)")):
            message = rf"'{name}' reads labels .*got labels {shape} and logits \(2, 4, 8, 8\)"
            cases.append((loss, student, teacher, given, message))
        cases.append((loss, student._replace(logits=None), teacher, known, "logits None"))
    for loss, *given, message in cases:
        with pytest.raises(ValueError, match=message):
            loss(*given)


@on_maps
def test_missing_or_fractional_channels_are_explained(name):
    for channels, message in (
        ((0, 8), "student_channels=0 must be a whole number"),
        ((8, 2.5), "teacher_channels=2.5 must be a whole number"),
        ((3, None), f"'{name}' compares feature maps .*=3 and teacher_channels=None"),
    ):
        with pytest.raises(ValueError, match=message):
            make(name, *channels)


@every_loss
def test_a_loss_says_whether_it_reads_the_teachers_logits(name):
    assert make(name).reads_teacher_logits is (name in ON_LOGITS)
    if name in ON_MAPS:
        options = dict.fromkeys(LOSSES[name].logits_terms.values(), 0)
        assert not make(name, **options).reads_teacher_logits
        student, teacher = seen(6, 0), seen(8, 1)
        with_logits, without = (
            make(name, **options)(student, each, labels()) for each in (teacher, teacher._replace(logits=None))
        )
        assert with_logits and all(torch.equal(with_logits[key], without[key]) for key in with_logits)


def test_a_sum_reads_the_teachers_logits_if_one_of_its_losses_does():
    for spec, pairs, reads in (("af_dcd+fitnet", 1, False), ("af_dcd+kd", 2, True)):
        options = {each: OPTIONS[each] for each in spec.split("+")}
        assert build_loss(spec, options, [6] * pairs, [8] * pairs).reads_teacher_logits is reads


@on_maps
def test_several_pairs_of_maps_have_a_loss_each_and_logits_are_compared_once(name):
    torch.manual_seed(0)
    loss = build_loss(name, {name: OPTIONS[name]}, [6, 8], [8, 12])
    assert isinstance(loss, LossPerPair)
    layers = (
        (asking_for_gradients(seen(first, 0)), asking_for_gradients(seen(second, 1, size=(4, 4))))
        for first, second in ((6, 8), (8, 12))
    )
    student, teacher = (Activations(a.logits, a.feature_map, (b.feature_map,)) for a, b in layers)
    terms = loss(student, teacher, labels())
    expected = {f"{term}_{number}" for term in LOSSES[name].map_terms for number in (1, 2)}
    assert set(terms) == expected | {f"{term}_1" for term in LOSSES[name].logits_terms}
    sum(terms.values()).backward()
    assert all(weight.grad is not None for weight in loss.parameters())


def test_training_with_all_losses_runs_and_logs_their_terms(tmp_path):
    options = {**OPTIONS, **{name: {**OPTIONS[name], "reduction": "mean"} for name in ("af_dcd", "mgd")}}
    trainer = distilling(tmp_path, loss="+".join(options), loss_kwargs=options, max_steps=2)
    trainer.train()
    names = build_loss("+".join(OPTIONS), OPTIONS, 6, 8)(*pair(), labels())
    for term in ("loss", "loss_task", *(f"loss_{name}" for name in names)):
        values = logged(trainer, term)
        assert len(values) == 2 and all(map(math.isfinite, values)), term


# Values and gradients of public implementations, stored beside the checkout

FOLDER = paths.GOLDEN / "public"
CASES = json.loads((FOLDER / "losses.json").read_text()) if (FOLDER / "losses.json").is_file() else []
INPUTS = ("student_logits", "student_map", "teacher_logits", "teacher_map", "labels")


@pytest.mark.skipif(not CASES, reason=f"needs {FOLDER}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_terms_and_gradients_equal_the_public_code(case):
    tensors = load_file(FOLDER / "losses.safetensors")
    loss = LOSSES[case["loss"]](*(case["channels"] or ()), **case["options"]).double()
    # the case's weights and queues; ours may have more (biases), which are set to zero
    loss.load_state_dict(loss.state_dict() | {name: tensors[key] for name, key in case["weights"].items()})
    given = {name: tensors[case[name]] for name in INPUTS if name in case}
    leaves = {name: given[name].requires_grad_() for name in given if name.startswith("student")}
    seen = (Activations(given[f"{role}_logits"], given.get(f"{role}_map")) for role in ("student", "teacher"))
    with torch.set_grad_enabled("memory" not in case["name"]):  # otherwise the memory would take in the batch
        terms = loss(*seen, given.get("labels"))
    values = {name: term.item() for name, term in terms.items()}
    if "SUM" in case["terms"]:
        values = {"SUM": sum(values.values())}
    assert values == pytest.approx(case["terms"], rel=1e-6 if case["loss"] == "cirkd" else 1e-9)
    if not case["grads"]:
        return
    sum(terms.values()).backward()
    ours = {name: leaf.grad for name, leaf in leaves.items()} | {n: w.grad for n, w in loss.named_parameters()}
    for name, key in case["grads"].items():
        assert (ours[name] - tensors[key]).abs().max() <= 1e-6 * tensors[key].abs().max(), name
