"""`card_facts.json`: what is written comes back, and what is wrong is named."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from card_examples import BARE, FULL

from afdcd_hf.hub.card_facts import ComparisonRow, CostRow, LatencyRow, MeasuredResults, Picture, TrainingFacts
from afdcd_hf.hub.facts_file import FACTS_NAME, read_facts, write_facts
from afdcd_hf.hub.model_card import render_card

# A score that is not a number is the same as none, and comes back as none.
MEASURED = replace(FULL.measured, per_category_iou={"road": 1 / 3, "tram": None})
WHOLE = replace(
    FULL,
    measured=MEASURED,
    costs=[CostRow(512, 512, 7), (512, 1024, 14)],
    latency=[LatencyRow(512, 1024, 1, "CPU", "fp32", 0.1, 0.2, 10.0, None, "torch 2.15", "2026-01-02")],
    training=replace(FULL.training, energy_joules={"GPU": 7.2e6}, time_split={"data": 0.1}),
    license="other",
    license_name="Our terms",
    license_link="https://example.org/terms",
    notes=["One.", "Zwei – und 3 °C."],
)


@pytest.mark.parametrize("facts", [BARE, WHOLE], ids=["bare", "whole"])
def test_what_is_written_comes_back_equal_in_value_and_in_type(tmp_path, facts):
    assert write_facts(tmp_path, facts) == tmp_path / FACTS_NAME
    back = read_facts(tmp_path)
    assert back == facts and read_facts(tmp_path / FACTS_NAME) == facts
    assert render_card(back) == render_card(facts)
    for name, kind in (("comparison", ComparisonRow), ("pictures", Picture), ("latency", LatencyRow)):
        assert all(type(row) is kind for row in getattr(back, name))
    assert type(back.training) is TrainingFacts and (back.macs_size is None or type(back.macs_size) is tuple)


def test_a_missing_score_comes_back_as_none_and_reads_the_same(tmp_path):
    write_facts(tmp_path, FULL)
    back = read_facts(tmp_path)
    assert back.measured.per_category_iou == {"road": 0.9, "car": 0.0, "tram": None, "boat": None}
    assert render_card(back) == render_card(FULL)
    assert "NaN" not in (tmp_path / FACTS_NAME).read_text("utf-8")


def test_what_a_comparison_of_runs_reads_is_there(tmp_path):
    training = TrainingFacts(seconds_in_steps=75.4, iterations=40, images_per_second=42.5, peak_memory_mb=1154.4)
    write_facts(tmp_path, replace(BARE, training=training))
    read = read_facts(tmp_path).training
    assert (read.seconds_in_steps, read.iterations, read.images_per_second, read.peak_memory_mb) == (
        75.4, 40, 42.5, 1154.4,
    )  # fmt: skip


def test_a_value_that_json_lacks_is_named_and_leaves_the_earlier_file(tmp_path):
    write_facts(tmp_path, BARE)
    with pytest.raises(ValueError, match=r"facts.training.hyperparameters\['loss'\] is <object.*\(object\)"):
        write_facts(tmp_path, replace(BARE, training=TrainingFacts(hyperparameters={"loss": object()})))
    assert read_facts(tmp_path) == BARE and [path.name for path in tmp_path.iterdir()] == [FACTS_NAME]


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_facts(tmp_path / "nowhere", BARE)
    with pytest.raises(FileNotFoundError, match=FACTS_NAME):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "no file of facts"),
        ('{"format": 2}', "no file of facts"),
        ('{"format": 1, "model_name": "a"}', "architecture"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "colour": "red"}', r"\['colour'\].*known: model_name"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "dataset": "voc"}', "facts.dataset is 'voc'"),
    ],
)
def test_files_that_are_none_of_ours_are_refused_by_name(tmp_path, content, message):
    (tmp_path / FACTS_NAME).write_text(content)
    with pytest.raises(ValueError, match=f"(?s){FACTS_NAME}.*{message}"):
        read_facts(tmp_path)


def test_a_score_that_was_made_impossible_by_hand_is_refused(tmp_path):
    write_facts(tmp_path, replace(FULL, measured=MeasuredResults(0.5)))
    content = json.loads((tmp_path / FACTS_NAME).read_text())
    content["measured"]["mean_iou"] = 61.2
    (tmp_path / FACTS_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="fraction from 0 to 1"):
        read_facts(tmp_path)
