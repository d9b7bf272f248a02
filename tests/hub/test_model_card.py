"""Model cards: their facts and its file, their content, and files that they must not overwrite."""

from __future__ import annotations

import ast
import errno
import logging
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from card_examples import BARE, FULL
from huggingface_hub import ModelCard

from afdcd_hf.hub.card_facts import (
    FACTS_NAME,
    CardFacts,
    ComparisonRow,
    DatasetFacts,
    MeasuredResults,
    Picture,
    TrainingFacts,
    read_facts,
    write_facts,
)
from afdcd_hf.hub.model_card import MARKER, render_card, write_card


def metadata(facts):
    return ModelCard(render_card(facts)).data


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,3} ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_unknown_facts_have_no_metadata_and_only_distilled_models_have_the_distillation_tag():
    assert set(metadata(BARE).to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert metadata(replace(FULL, dataset=replace(FULL.dataset, is_public=False))).datasets is None
    assert metadata(FULL).tags == ["afdcd", "semantic-segmentation", "knowledge-distillation", "scenes"]
    assert metadata(replace(FULL, teacher=None)).tags == ["afdcd", "semantic-segmentation", "scenes"]


@pytest.mark.parametrize("part", [{"max_samples": 20}, {"list_file": "mine.txt"}])
def test_scores_on_part_of_a_split_and_reported_scores_are_not_in_the_model_index(part):
    facts = replace(FULL, measured=replace(FULL.measured, protocol={**FULL.measured.protocol, **part}))
    assert metadata(facts).eval_results is None and "a part of it: 50 images" in render_card(facts)
    text = render_card(replace(FULL, measured=None))
    assert "model-index" not in text and "**76.43 % mIoU**, as reported by its authors" in text
    assert "| mIoU | 76.43 | not measured |" in text and "We have not measured this model." in text
    assert section(text, "IoU by class").strip() == "Not measured."


def test_a_custom_licence_and_the_initial_weights_are_named():
    assert "| Started from | random weights |" in render_card(replace(BARE, started_from="random weights"))
    facts = replace(BARE, license="other", license_name="Our terms", license_link="https://example.org/terms")
    data = metadata(facts).to_dict()
    assert (data["license"], data["license_name"]) == ("other", "Our terms")
    assert data["license_link"] == "https://example.org/terms"
    assert "| Licence of the weights | [Our terms](https://example.org/terms) |" in render_card(facts)


def test_every_known_fact_is_in_its_place():
    """`full_card.md` was proofread when it was stored; review the differences before you replace it."""
    assert render_card(FULL) == Path(__file__).with_name("full_card.md").read_text(encoding="utf-8")
    (result,) = metadata(FULL).eval_results
    assert (result.metric_type, result.metric_name, result.metric_value) == ("mean_iou", "mIoU (%)", 61.24)


def test_a_bare_card_claims_nothing_unknown():
    text = render_card(BARE)
    assert "| mIoU | not stated | not measured |" in text and "distilled from" not in text
    for fact in ("Licence of the weights", "Dataset", "Teacher", "Recipe", "Seed", "Hardware", "Library versions"):
        assert f"| {fact} | not stated |" in text
    for fact in ("Parameters (every stored number)", "Multiply-accumulates", "Wall-clock time",
                 "Time in training steps", "Images per second in these steps", "Peak memory, process"):  # fmt: skip
        assert f"| {fact} | not measured |" in text
    assert section(text, "Speed").strip().startswith("Latency: not measured.")
    assert not re.search(r"\b(None|nan|Time of a step)\b", text) and text.startswith("---\n")
    assert not re.search(r"\{[{%]|[%}]\}\s*$|\n{4,}", text.split("## Citation")[0])


HOSTILE = "<script>alert(1)</script>[x](javascript:alert(1))|a\n\n# b `\"'$(touch X)"


def hostile_card() -> str:
    facts = replace(
        FULL,
        model_name=HOSTILE,
        repo_id=None,
        architecture=HOSTILE,
        dataset=DatasetFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE, is_public=False),
        measured=MeasuredResults(0.5, per_category_iou={HOSTILE: 0.5}, protocol={HOSTILE: HOSTILE}, machine=HOSTILE,
                                 command="afdcd evaluate --dataset '```\n# x'"),
        comparison=[ComparisonRow(HOSTILE)],
        training=TrainingFacts(recipe=HOSTILE, hyperparameters={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}),
        teacher=HOSTILE,
        latency=[replace(FULL.latency[0], device=HOSTILE, setting=HOSTILE)],
        notes=[HOSTILE + "\n[good](https://example.org)\n[y]: JavaScript:alert(1)"],
        pictures=[Picture("a<b>.png", HOSTILE)],
    )  # fmt: skip
    return render_card(facts)


def test_facts_cannot_put_html_or_code_links_on_the_card():
    body = hostile_card().split("\n---\n", 1)[1]
    prose = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", body)  # code blocks of the examples
    assert set(re.findall(r"(?<!\()</?\w+", prose)) == {"<details", "<summary", "</summary", "</details"}
    assert not re.search(r"(?i)(\]\(\s*|\]:\s*)javascript", prose)
    assert "[good](https://example.org)" in prose and "![" in prose and "](<a&lt;b&gt;.png>)" in prose
    assert "afdcd evaluate --dataset '```\n# x'" in re.findall(r"(?ms)^````bash\n(.*?)\n````$", body)


def test_every_table_row_has_as_many_cells_as_its_header_for_any_names():
    for table in re.findall(r"(?:^\|.*\n)+", hostile_card(), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_examples_are_valid_python_and_commands_are_quoted_for_a_shell():
    assert 'name = "afdcd/deeplabv3-mbv2-scenes"' in render_card(FULL)
    text = hostile_card()
    first, second = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (name,) = [node.value.value for node in ast.parse(first).body if ast.unparse(node).startswith("name =")]
    assert name == f"path/to/{HOSTILE}" and ast.parse(second)
    (command,) = re.findall(r"(?ms)^```bash\n(afdcd verify .*?)\n```$", text)
    assert shlex.split(command) == ["afdcd", "verify", f"path/to/{HOSTILE}", "--dataset", "FOLDER"]


def test_the_card_is_replaced_by_the_next_one_and_a_full_disk_keeps_card_and_facts(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write, name in ((write_card, "README.md"), (write_facts, "card_facts.json")):
        write(tmp_path, BARE)
        path = write(str(tmp_path), replace(BARE, model_name="renamed"))
        before = path.read_bytes()
        assert path == tmp_path / name and b"renamed" in before
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr("os.replace", full)
            write(tmp_path, replace(FULL, pictures=[]))
        assert path.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "card_facts.json"]


@pytest.mark.parametrize("by_hand", [b"# Mine\r\n\xff\xfe no utf-8, no marker  \n", "edited"])
def test_a_handwritten_card_is_not_changed_and_the_new_one_is_written_beside_it(tmp_path, caplog, by_hand):
    if by_hand == "edited":  # ours, but without its marker line
        by_hand = render_card(BARE).replace(MARKER + "\n", "").encode() + b"My own words.\n"
    (tmp_path / "README.md").write_bytes(by_hand)
    for facts in (BARE, replace(FULL, pictures=[])):  # the generated file beside it may be replaced
        with caplog.at_level(logging.WARNING):
            path = write_card(tmp_path, facts)
        assert path == tmp_path / "README.generated.md" and path.read_bytes() == render_card(facts).encode()
        assert "README.md" in caplog.text and "README.generated.md" in caplog.text
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="README.generated.md"):
        write_card(tmp_path, BARE)
    assert path.read_text() == "mine" and (tmp_path / "README.md").read_bytes() == by_hand


def test_missing_folders_and_images_are_reported_before_anything_is_written(tmp_path):
    for folder, facts, named in ((tmp_path / "nowhere", BARE, "nowhere"), (tmp_path, FULL, "predictions.png")):
        with pytest.raises(FileNotFoundError, match=named):
            write_card(folder, facts)
    assert not list(tmp_path.iterdir())


TOKEN = "hf_" + "a1B2c3D4" * 4
WHOLE = replace(
    FULL,
    # YAML reads some class names as other types
    measured=MeasuredResults(0.5, per_category_iou={False: 0.4, 3: float("nan")}, protocol={"label_map": {0: 1}}),
    training=replace(FULL.training, hyperparameters={"sizes": (1, [2.5, None]), TOKEN: TOKEN}),
    notes=["One.", "Zwei – und 3 °C.", f"Set HF_TOKEN={TOKEN}."],
)


@pytest.mark.parametrize("facts", [BARE, WHOLE], ids=["bare", "whole"])
def test_facts_survive_a_round_trip_in_value_and_type(tmp_path, facts):
    path = write_facts(tmp_path, facts)
    back = read_facts(tmp_path)
    assert path == tmp_path / FACTS_NAME and render_card(back) == render_card(facts)
    assert back == facts == read_facts(path) and repr(back) == repr(facts)


def test_keys_become_strings_nan_scores_none_and_access_tokens_are_masked(tmp_path):
    text = write_facts(tmp_path, WHOLE).read_text("utf-8")
    assert WHOLE.measured.per_category_iou == {"False": 0.4, "3": None} and "NaN" not in text
    assert WHOLE.measured.protocol == {"label_map": {"0": 1}}
    for shown in (text, render_card(WHOLE), repr(WHOLE)):
        assert "a1B2c3D4" not in shown and "hf_***" in shown


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (MeasuredResults, {"mean_iou": 61.2}, "mean_iou is 61.2; expected a fraction from 0 to 1"),
        (MeasuredResults, {"mean_iou": "0.5"}, r"mean_iou is '0.5' \(str\); expected float"),
        (MeasuredResults, {"mean_iou": 0.5, "per_category_iou": {"road": 90.0}}, "'road'.*fraction"),
        (MeasuredResults, {"mean_iou": 0.5, "num_images": True}, "num_images is True.*expected int"),
        (DatasetFacts, {"name": ["voc"]}, r"name is \['voc'\] \(list\); expected str"),
        (DatasetFacts, {"name": "voc", "hub_id": "voc"}, "hub_id is 'voc'; expected an id on the Hub"),
        (Picture, {"path": "../a.png", "caption": "a"}, "a path in the card's folder"),
        (TrainingFacts, {"hyperparameters": {"loss": object()}}, r"hyperparameters\['loss'\] is <object.*\(object\)"),
        (CardFacts, {"macs": 10}, "macs_size"),
        (CardFacts, {"macs": 10, "macs_size": (1, 2, 3)}, "macs_size is .*expected tuple"),
        (CardFacts, {"measured": MeasuredResults(0.5)}, "dataset"),
        (CardFacts, {"license": "Apache 2.0"}, "'Apache 2.0'; expected one of"),
        (CardFacts, {"license": "mit", "license_name": "A", "license_link": "https://x.org"}, "other., and only it"),
        (CardFacts, {"license": "other", "license_link": "javascript:alert(1)"}, "expected a web address"),
        (CardFacts, {"costs": [(512, 512, 7)]}, "expected the fields of CostRow"),
    ],
)
def test_facts_of_a_wrong_type_out_of_range_or_contradictory_are_refused_by_name(kind, values, message):
    with pytest.raises(ValueError, match=message):
        replace(BARE, **values) if kind is CardFacts else kind(**values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"format": 2}', "has no facts of format"),
        ('{"format": 1, "model_name": "a"}', "architecture"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "colour": "red"}', r"\['colour'\].*known: model_name"),
        ('{"format": 1, "model_name": "a", "architecture": "b", "training": 3}', "training is 3"),
    ],
)  # fmt: skip
def test_files_of_another_kind_are_refused(tmp_path, content, message):
    (tmp_path / FACTS_NAME).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=f"(?s){FACTS_NAME}.*{message}"):
        read_facts(tmp_path)
