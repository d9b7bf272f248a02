"""Facts of cards: their types and ranges, and `card_facts.json`, which comes back as it was written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from card_examples import BARE, FULL

from afdcd_hf.hub.card_facts import (
    ComparisonRow,
    CostRow,
    DatasetFacts,
    LatencyRow,
    MeasuredResults,
    Picture,
    ReportedResults,
    TrainingFacts,
)
from afdcd_hf.hub.facts_file import FACTS_NAME, read_facts, write_facts
from afdcd_hf.hub.model_card import render_card

WHOLE = replace(
    FULL,
    costs=[CostRow(512, 512, 7), CostRow(512, 1024, 14)],
    latency=[LatencyRow(512, 1024, 1, "CPU", "fp32", 0.1, 0.2, 10.0, None, "torch 2.15", "2026-01-02")],
    training=replace(FULL.training, time_split={"data": 0.1}, hyperparameters={"sizes": (1, [2.5, None])}),
    license="other",
    license_name="Our terms",
    license_link="https://example.org/terms",
    notes=["One.", "Zwei – und 3 °C."],
)
TOKEN = "hf_" + "a1B2c3D4" * 4


@pytest.mark.parametrize("facts", [BARE, FULL, WHOLE], ids=["bare", "full", "whole"])
def test_what_is_written_comes_back_equal_in_value_and_in_type(tmp_path, facts):
    assert write_facts(tmp_path, facts) == tmp_path / FACTS_NAME
    back = read_facts(tmp_path)
    assert back == facts and read_facts(tmp_path / FACTS_NAME) == facts and render_card(back) == render_card(facts)
    for name, kind in (("comparison", ComparisonRow), ("pictures", Picture), ("latency", LatencyRow)):
        assert all(type(row) is kind for row in getattr(back, name))
    assert back.macs_size is None or type(back.macs_size) is tuple


def test_a_score_that_is_not_a_number_is_missing(tmp_path):
    write_facts(tmp_path, FULL)
    assert read_facts(tmp_path).measured.per_category_iou == {"road": 0.9, "car": 0.0, "tram": None, "boat": None}
    assert "NaN" not in (tmp_path / FACTS_NAME).read_text("utf-8")


def test_class_names_that_yaml_reads_as_other_types_are_text(tmp_path):
    scores = MeasuredResults(0.5, per_category_iou={False: 0.4, 3: 0.6, None: 0.5}, protocol={"label_map": {0: 1}})
    write_facts(tmp_path, replace(FULL, measured=scores))
    back = read_facts(tmp_path).measured
    assert back == scores and list(back.per_category_iou) == ["False", "3", "None"]
    assert back.protocol == {"label_map": {"0": 1}}


def test_access_tokens_get_into_neither_facts_nor_card(tmp_path):
    training = TrainingFacts(recipe=TOKEN, hyperparameters={"a": [f"x {TOKEN}"], TOKEN: 1})
    facts = replace(BARE, notes=[f"Set HF_TOKEN={TOKEN}."], training=training)
    write_facts(tmp_path, facts)
    for text in ((tmp_path / FACTS_NAME).read_text(), render_card(facts), repr(facts)):
        assert "a1B2c3D4" not in text and "hf_***" in text


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    write_facts(tmp_path, BARE)
    content = json.loads((tmp_path / FACTS_NAME).read_text())
    content["training"]["energy_joules"] = {"GPU": 1.0}
    (tmp_path / FACTS_NAME).write_text(json.dumps(content))
    assert read_facts(tmp_path) == BARE


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (MeasuredResults, {"mean_iou": 61.2}, "mean_iou is 61.2; expected a fraction from 0 to 1"),
        (MeasuredResults, {"mean_iou": -0.1}, "fraction from 0 to 1"),
        (MeasuredResults, {"mean_iou": float("nan")}, "mean_iou is nan"),
        (MeasuredResults, {"mean_iou": "0.5"}, r"mean_iou is '0.5' \(str\); expected a number"),
        (MeasuredResults, {"mean_iou": 0.5, "per_category_iou": {"road": 90.0}}, "'road'.*fraction"),
        (MeasuredResults, {"mean_iou": 0.5, "per_category_iou": {"1": 0.5, 1: 0.5}}, "differ as text"),
        (MeasuredResults, {"mean_iou": 0.5, "num_images": True}, "num_images is True"),
        (MeasuredResults, {"mean_iou": 0.5, "num_images": 1.5}, "expected a whole number"),
        (ReportedResults, {"mean_iou": 76.4, "source": "paper"}, "fraction from 0 to 1"),
        (ComparisonRow, {"model": "student", "mean_iou": 58.0}, "fraction from 0 to 1"),
        (DatasetFacts, {"name": ["voc"]}, r"name is \['voc'\] \(list\); expected text"),
        (DatasetFacts, {"name": "voc", "hub_id": "voc"}, "hub_id is 'voc'; expected an id on the Hub"),
        (Picture, {"path": "../a.png", "caption": "a"}, "a path in the card's folder"),
        (Picture, {"path": "/tmp/a.png", "caption": "a"}, "a path in the card's folder"),
        (TrainingFacts, {"hyperparameters": {"loss": object()}}, r"hyperparameters\['loss'\] is <object.*\(object\)"),
        (TrainingFacts, {"seconds": "long"}, "seconds is 'long'"),
    ],
)
def test_facts_of_another_type_or_out_of_range_are_refused_by_name(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"macs": 10}, "macs_size"),
        ({"macs": 10, "macs_size": (1, 2, 3)}, "macs_size is .*pair of numbers"),
        ({"measured": MeasuredResults(0.5)}, "dataset"),
        ({"license": "Apache 2.0"}, "'Apache 2.0'; expected one of"),
        ({"license": "other", "license_name": "Ours"}, "go with .other."),
        ({"license": "mit", "license_name": "Ours", "license_link": "https://example.org"}, "go with .other."),
        ({"license": "other", "license_name": "Ours", "license_link": "javascript:alert(1)"}, "expected a web address"),
        ({"base_model": "/home/me/resnet18.safetensors"}, "expected an id on the Hub"),
        ({"notes": "one"}, r"notes is 'one' \(str\); expected a list"),
        ({"costs": [(512, 512, 7)]}, "expected the fields of CostRow"),
        ({"architecture": 3}, "architecture is 3 .*expected text"),
    ],
)
def test_facts_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BARE, **changes)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_facts(tmp_path / "nowhere", BARE)
    with pytest.raises(FileNotFoundError, match=FACTS_NAME):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("\xff\xfe", "not valid JSON"),
        ("[]", "must hold an object"),
        ('{"format": 2}', "not a file of facts"),
        ('{"format": 1, "model_name": "a"}', "architecture"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "colour": "red"}', r"\['colour'\].*known: model_name"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "dataset": "voc"}', "dataset is 'voc'"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "training": 3}', "training is 3"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "costs": {"512": 1}}', "expected a list"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "reported": {"mean_iou": 6}}', "source"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_refused_by_name(tmp_path, content, message):
    (tmp_path / FACTS_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"(?s){FACTS_NAME}.*{message}"):
        read_facts(tmp_path)
