"""A loss of one's own in a training: the documentation's example by name and as an instance."""

from __future__ import annotations

import re
from types import SimpleNamespace

import paths
import pytest
import torch
from tiny import distilling, logged

from afdcd_hf import build_loss
from afdcd_hf.compare.runs import _recipe
from afdcd_hf.training.arguments import parse_arguments

(EXAMPLE,) = re.findall(r"^```python\n# my_loss\.py\n(.*?)^```", (paths.DOCS / "losses.md").read_text(), re.M | re.S)


@pytest.fixture(autouse=True)
def my_loss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_loss.py").write_text(EXAMPLE)


def test_the_example_trains_by_name_with_options_of_a_recipe_or_the_command_line(tmp_path):
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


def test_a_comparison_keeps_the_options_of_such_a_loss():
    plan = SimpleNamespace(shared={"loss": "kd+my_loss.py:Cosine", "Cosine.weight": 2.0, "cwd.map_weight": 1.0})
    recipe = _recipe(plan, SimpleNamespace(name="mine", settings={}), None, {})
    assert recipe == {"loss": "kd+my_loss.py:Cosine", "Cosine.weight": 2.0}


def test_an_instance_trains_in_place_of_a_name(tmp_path):
    loss = build_loss("my_loss.py:Cosine", None, 32, 48)
    trainer = distilling(tmp_path / "run", loss=None, loss_kwargs=None, loss_instance=loss)
    trainer.train()
    assert trainer.loss_module is loss and len(logged(trainer, "loss_cosine")) == 2


@pytest.mark.parametrize("given", [{"loss": None}, {"loss": "kd", "loss_instance": True}])
def test_neither_a_name_nor_an_instance_and_both_are_refused(tmp_path, given):
    if "loss_instance" in given:
        given["loss_instance"] = build_loss("kd", None)
    with pytest.raises(ValueError, match="Give the loss once"):
        distilling(tmp_path / "run", loss_kwargs=None, **given)


def test_an_instance_for_other_channels_is_refused_before_training(tmp_path):
    loss = build_loss("my_loss.py:Cosine", None, 8, 48)
    with pytest.raises(ValueError, match=r"student's map has shape .* expected \(B, 8, h, w\)"):
        distilling(tmp_path / "run", loss=None, loss_kwargs=None, loss_instance=loss)
