"""Values and gradients of public implementations, kept beside the checkout; skipped where they are not there."""

from __future__ import annotations

import json

import paths
import pytest
import torch
from safetensors.torch import load_file

from afdcd_hf.features import Activations
from afdcd_hf.losses import LOSSES

FOLDER = paths.GOLDEN / "public"
CASES = json.loads((FOLDER / "losses.json").read_text()) if (FOLDER / "losses.json").is_file() else []
INPUTS = ("student_logits", "student_map", "teacher_logits", "teacher_map", "labels")


@pytest.fixture(scope="module")
def tensors():
    if not CASES:
        pytest.skip(f"needs {FOLDER}")
    return load_file(FOLDER / "losses.safetensors")


def load(loss, case, tensors):
    """Weights and queues of the case; ours may have more (biases), which are zero there."""
    state = loss.state_dict() | {name: tensors[key] for name, key in case["weights"].items()}
    loss.load_state_dict(state)


@pytest.mark.parametrize("case", CASES or [None], ids=lambda case: case["name"] if case else "none")
def test_terms_and_gradients_equal_the_public_code(case, tensors):
    loss = LOSSES[case["loss"]](*(case["channels"] or ()), **case["options"]).double()
    load(loss, case, tensors)
    given = {name: tensors[case[name]] for name in INPUTS if name in case}
    leaves = {name: given[name].requires_grad_() for name in given if name.startswith("student")}
    memory = "memory" in case["name"]
    with torch.set_grad_enabled(not memory):  # or the memory would take the batch in
        terms = loss(
            Activations(given["student_logits"], given.get("student_map")),
            Activations(given["teacher_logits"], given.get("teacher_map")),
            given.get("labels"),
        )
    values = {name: term.item() for name, term in terms.items()}
    expected = case["terms"]
    if "SUM" in expected:
        values = {"SUM": sum(values.values())}
    assert values == pytest.approx(expected, rel=1e-6 if case["loss"] == "cirkd" else 1e-9)
    if not case["grads"]:
        return
    sum(terms.values()).backward()
    ours = {name: leaf.grad for name, leaf in leaves.items()} | {n: w.grad for n, w in loss.named_parameters()}
    for name, key in case["grads"].items():
        largest = tensors[key].abs().max()
        assert (ours[name] - tensors[key]).abs().max() <= 1e-6 * largest, name
