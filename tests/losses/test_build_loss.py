"""build_loss, validate_loss_spec, LossSum, and custom losses, with the example from the docs."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint

import paths
import pytest
import torch
from tiny import distilling, logged

from afdcd_hf import losses
from afdcd_hf.features import Activations
from afdcd_hf.losses import AfDcdLoss, FitNetLoss, KDLoss, LossSum, build_loss, needs_feature_map, validate_loss_spec
from afdcd_hf.losses.base import DistillationLoss, option
from afdcd_hf.training.recipe_arguments import parse_arguments

AF_DCD = {"feature_weight": 2e-6, "contrast_weight": 5e-3, "pool_size": 1, "channel_groups": 4, "mask": "center"}
BOTH = {"kd": {"weight": 0.5}, "af_dcd": AF_DCD}


def activations(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 8, 8, generator=generator)
    return Activations(logits, torch.randn(2, channels, 8, 8, generator=generator))


def test_a_sum_merges_terms_configs_citations_and_weights_of_its_parts():
    assert validate_loss_spec(" kd + af_dcd ", BOTH) == ["kd", "af_dcd"]
    both = build_loss(" kd + af_dcd ", BOTH, 3, 8)
    student, teacher = activations(3, seed=0), activations(8, seed=1)
    terms = both(student, teacher)
    expected = KDLoss(weight=0.5)(student, teacher) | both.losses["af_dcd"](student, teacher)
    assert list(terms) == ["kd", "feature", "contrast"]
    assert all(torch.equal(terms[name], expected[name]) for name in terms)
    config = json.loads(json.dumps(both.get_config_dict()))
    assert config["kd"] == {"weight": 0.5, "temperature": 1.0, "standardize": False}
    assert config["af_dcd"]["contrast_weight"] == 5e-3 and config["af_dcd"]["teacher_channels"] == 8
    assert both.citations == [KDLoss.citation, AfDcdLoss.citation]
    assert "losses.af_dcd.projector.0.weight" in both.state_dict()
    with pytest.raises(ValueError, match="'two' returns the term 'kd', which another loss returns, too"):
        LossSum({"one": KDLoss(), "two": KDLoss()})(student, student)


# Custom losses

OWN = """
from torch import Tensor

from afdcd_hf import Activations, DistillationLoss


class Bare(DistillationLoss):
    def __init__(self, *, weight: float, power: int = 2) -> None:
        super().__init__(weight=weight, power=power)

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        return {"bare": self.weight * (student.logits - teacher.logits.detach()).abs().pow(self.power).mean()}


class Stranger:
    pass
"""
(EXAMPLE,) = re.findall(r"^```python\n# my_loss\.py\n(.*?)^```", (paths.DOCS / "losses.md").read_text(), re.M | re.S)


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("own.py", OWN), ("my_loss.py", EXAMPLE), ("broken.py", "1 / 0")):
        (tmp_path / name).write_text(text)


def test_a_class_in_a_file_is_built_with_others_under_its_own_name(own):
    options = {"Bare": {"weight": 3.0}, "Cosine": {"weight": 2.0}}
    loss = build_loss("kd + own.py:Bare + ./my_loss.py:Cosine", options, 3, 8)
    student, teacher = activations(3, seed=0), activations(8, seed=1)
    terms = loss(student, teacher)
    assert list(terms) == ["kd", "bare", "cosine"]
    torch.testing.assert_close(terms["bare"], 3 * (student.logits - teacher.logits).square().mean())
    assert loss.get_config_dict()["Bare"] == {"weight": 3.0, "power": 2} and len(loss.citations) == 1
    mapped = [needs_feature_map("my_loss.py:Cosine", options) for options in (None, {"Cosine": {"weight": 0}})]
    assert mapped == [True, False] and not needs_feature_map("own.py:Bare", {"Bare": {"weight": 1}})
    with pytest.raises(ValueError, match="the loss 'Cosine' compares feature maps and got none from the teacher"):
        loss(student, teacher._replace(feature_map=None))


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("vid", {}, "unknown loss 'vid' in loss='vid'; known: af_dcd, kd"),
        ("kd+", {}, "unknown loss ''"),
        ("kd+kd", {}, "'kd' appears more than once"),
        ("kd", {"af_dcd": AF_DCD}, "options for 'af_dcd', which is not in loss='kd'"),
        ("kd", {"weight": 1.0}, "options for 'weight', which is not in loss='kd'.*under the name of a loss: kd"),
        ("kd", {"kd": 1.0}, "expected option names with values"),
        ("kd", {"kd": {"tau": 1.0}}, "unknown option kd.tau; kd accepts weight, temperature"),
        ("kd", {"kd": {"temperature": 0}}, "temperature=0 must be greater than 0"),
        ("af_dcd", {"af_dcd": {**AF_DCD, "student_channels": 3}}, "unknown option af_dcd.student_channels"),
        ("af_dcd", {"af_dcd": {"contrast_weight": 1.0}}, "missing af_dcd.feature_weight;"),
        ("kd+af_dcd", None, "missing af_dcd.feature_weight and af_dcd.contrast_weight;"),
        ("own.py:Bare", {}, "missing Bare.weight;"),
        ("own.py:Bare", {"Bare": {"weight": 1, "tau": 2}}, "unknown option Bare.tau; Bare accepts weight, power"),
        ("my_loss.py:Cosine", {"Cosine": {"weight": -1}}, "weight=-1 must not be negative"),
        ("own.py:Bare+own.py:Bare", {"Bare": {"weight": 1}}, "'Bare' appears more than once"),
        ("own.py:Missing", {}, "own.py defines no 'Missing'"),
        ("own.py:Stranger", {}, "expected a subclass of afdcd_hf.DistillationLoss"),
        ("nowhere.py:Bare", {}, "'nowhere.py' is not a file in"),
        ("broken.py:Bare", {}, "the loss file broken.py fails with ZeroDivisionError: division by zero"),
        ("os:path", {}, "unknown loss 'os:path'.*my_file.py:MyLoss"),
    ],
)
def test_bad_specs_are_explained_equally_with_and_without_channels(own, spec, options, message):
    with pytest.raises(ValueError, match=message):
        validate_loss_spec(spec, options)
    with pytest.raises(ValueError, match=message):
        build_loss(spec, options, 3, 8)


def test_terms_that_are_not_declared_or_not_returned_are_named():
    class Own(DistillationLoss):
        weight: float = option(default=1.0)

        def compute(self, student, teacher, labels):
            return {"mine": student.logits.mean()}

    outputs = activations(3, seed=0)
    for names, named in (((), "none"), (("theirs",), "'theirs'"), (("mine", "theirs"), "'mine', 'theirs'")):
        Own.logits_terms = dict.fromkeys(names, "weight")
        with pytest.raises(ValueError, match=f"'Own' declares the terms {named} in .* returns 'mine': declare each"):
            Own()(outputs, outputs)
    Own.logits_terms = {"mine": "weight"}
    assert Own(weight=2.0)(outputs, outputs) == {"mine": 2 * outputs.logits.mean()}


def test_an_installed_package_can_provide_a_loss_by_entry_point(monkeypatch):
    entry = EntryPoint("theirs", "afdcd_hf.losses.logit_losses:KDLoss", "afdcd_hf.losses")
    monkeypatch.setattr(losses, "entry_points", lambda group, name: [entry] if name == "theirs" else [])
    assert isinstance(build_loss("theirs", {"theirs": {"weight": 2.0}}), KDLoss)


# In training


def test_the_example_trains_by_name_with_options_from_a_recipe_or_the_command_line(own, tmp_path):
    for recipe, argv in (
        ({"loss": "kd+my_loss.py:Cosine", "Cosine.weight": 2.0}, []),
        ({"loss": "kd"}, ["--loss", "kd+my_loss.py:Cosine", "--Cosine.weight", "2.0"]),
    ):
        args = parse_arguments(recipe, argv, distils=True)[-1]
        assert args.loss_kwargs == {"Cosine": {"weight": 2.0}}
    trainer = distilling(tmp_path / "run", loss=args.loss, loss_kwargs=args.loss_kwargs)
    before = trainer.loss_module.losses["Cosine"].align.weight.detach().clone()
    trainer.train()
    assert all(0 < value < 4 for value in logged(trainer, "loss_cosine"))
    assert not torch.equal(trainer.loss_module.losses["Cosine"].align.weight, before)


def test_a_loss_on_maps_that_reads_the_teachers_logits_must_say_so(tmp_path):
    class Reading(FitNetLoss):
        def compute(self, student, teacher, labels):
            return {"fitnet": (student.logits - teacher.logits).square().mean()}

    class Comparing(FitNetLoss):
        def compute(self, student, teacher, labels):
            return {"fitnet": torch.sub(*self.logits(student, teacher)).square().mean()}

    for loss in (Reading(32, 48), Comparing(32, 48)):
        given = {"loss": None, "loss_kwargs": None, "loss_instance": loss}
        with pytest.raises(ValueError, match="[Ss]et reads_teacher_logits = True in"):
            distilling(tmp_path / "run", **given)
        type(loss).reads_teacher_logits = True
        assert not distilling(tmp_path / "run", **given)._teacher_stops_early


def test_an_instance_can_replace_a_name_for_the_channels_it_was_built_for(own, tmp_path):
    loss = build_loss("my_loss.py:Cosine", None, 32, 48)
    trainer = distilling(tmp_path / "run", loss=None, loss_kwargs=None, loss_instance=loss)
    trainer.train()
    assert trainer.loss_module is loss and len(logged(trainer, "loss_cosine")) == 2
    other = build_loss("my_loss.py:Cosine", None, 8, 48)
    for given, message in (
        ({"loss": None}, "Give the loss once"),
        ({"loss": "kd", "loss_instance": build_loss("kd", None)}, "Give the loss once"),
        ({"loss": None, "loss_instance": other}, r"student's map has shape .* expected \(B, 8, h, w\)"),
    ):
        with pytest.raises(ValueError, match=message):
            distilling(tmp_path / "run", loss_kwargs=None, **given)
