"""Facts of cards: their types and ranges, and `card_facts.json`, which comes back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from card_examples import BARE, FULL

from afdcd_hf.hub.card_facts import (
    FACTS_NAME,
    CardFacts,
    ComparisonRow,
    DatasetFacts,
    LatencyRow,
    MeasuredResults,
    Picture,
    TrainingFacts,
    read_facts,
    write_facts,
)
from afdcd_hf.hub.model_card import render_card

TOKEN = "hf_" + "a1B2c3D4" * 4
WHOLE = replace(
    FULL,
    # YAML reads some class names as other types
    measured=MeasuredResults(0.5, per_category_iou={False: 0.4, 3: float("nan")}, protocol={"label_map": {0: 1}}),
    training=replace(FULL.training, hyperparameters={"sizes": (1, [2.5, None]), TOKEN: TOKEN}),
    notes=["One.", "Zwei – und 3 °C.", f"Set HF_TOKEN={TOKEN}."],
)


@pytest.mark.parametrize("facts", [BARE, WHOLE], ids=["bare", "whole"])
def test_what_is_written_comes_back_equal_in_value_and_in_type(tmp_path, facts):
    path = write_facts(tmp_path, facts)
    content = json.loads(path.read_text())
    content["training"]["energy_joules"] = {"GPU": 1.0}  # as an earlier version wrote it
    path.write_text(json.dumps(content))
    back = read_facts(tmp_path)
    assert (
        path == tmp_path / FACTS_NAME and back == facts == read_facts(path) and render_card(back) == render_card(facts)
    )
    for name, kind in (("comparison", ComparisonRow), ("pictures", Picture), ("latency", LatencyRow)):
        assert all(type(row) is kind for row in getattr(back, name))
    assert back.macs_size is None or type(back.macs_size) is tuple


def test_keys_are_text_a_score_that_is_not_a_number_is_missing_and_access_tokens_are_masked(tmp_path):
    text = write_facts(tmp_path, WHOLE).read_text("utf-8")
    assert WHOLE.measured.per_category_iou == {"False": 0.4, "3": None} and "NaN" not in text
    assert WHOLE.measured.protocol == {"label_map": {"0": 1}}
    for shown in (text, render_card(WHOLE), repr(WHOLE)):
        assert "a1B2c3D4" not in shown and "hf_***" in shown


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (MeasuredResults, {"mean_iou": 61.2}, "mean_iou is 61.2; expected a fraction from 0 to 1"),
        (MeasuredResults, {"mean_iou": "0.5"}, r"mean_iou is '0.5' \(str\); expected a number"),
        (MeasuredResults, {"mean_iou": 0.5, "per_category_iou": {"road": 90.0}}, "'road'.*fraction"),
        (MeasuredResults, {"mean_iou": 0.5, "per_category_iou": {"1": 0.5, 1: 0.5}}, "differ as text"),
        (MeasuredResults, {"mean_iou": 0.5, "num_images": True}, "num_images is True.*expected a whole number"),
        (DatasetFacts, {"name": ["voc"]}, r"name is \['voc'\] \(list\); expected text"),
        (DatasetFacts, {"name": "voc", "hub_id": "voc"}, "hub_id is 'voc'; expected an id on the Hub"),
        (Picture, {"path": "../a.png", "caption": "a"}, "a path in the card's folder"),
        (TrainingFacts, {"hyperparameters": {"loss": object()}}, r"hyperparameters\['loss'\] is <object.*\(object\)"),
        (CardFacts, {"macs": 10}, "macs_size"),
        (CardFacts, {"macs": 10, "macs_size": (1, 2, 3)}, "macs_size is .*pair of numbers"),
        (CardFacts, {"measured": MeasuredResults(0.5)}, "dataset"),
        (CardFacts, {"license": "Apache 2.0"}, "'Apache 2.0'; expected one of"),
        (CardFacts, {"license": "other", "license_name": "Ours"}, "go with .other."),
        (CardFacts, {"license": "mit", "license_name": "Ours", "license_link": "https://x.org"}, "go with .other."),
        (CardFacts, {"license": "other", "license_link": "javascript:alert(1)"}, "expected a web address"),
        (CardFacts, {"notes": "one"}, r"notes is 'one' \(str\); expected a list"),
        (CardFacts, {"costs": [(512, 512, 7)]}, "expected the fields of CostRow"),
    ],
)
def test_facts_of_another_type_out_of_range_or_at_odds_are_refused_by_name(kind, values, message):
    with pytest.raises(ValueError, match=message):
        replace(BARE, **values) if kind is CardFacts else kind(**values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"format": 2}', "not a file of facts"),
        ('{"format": 1, "model_name": "a"}', "architecture"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "colour": "red"}', r"\['colour'\].*known: model_name"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "training": 3}', "training is 3"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "reported": {"mean_iou": 6}}', "source"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_refused_by_name(tmp_path, content, message):
    (tmp_path / FACTS_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"(?s){FACTS_NAME}.*{message}"):
        read_facts(tmp_path)
