"""Model cards: what stands in them, what their metadata says, and whose files they never touch."""

from __future__ import annotations

import ast
import errno
import logging
import os
import re
import shlex
from dataclasses import replace

import pytest
from card_examples import BARE, FULL
from huggingface_hub import ModelCard

from afdcd_hf.citations import AF_DCD
from afdcd_hf.hub.card_facts import (
    ComparisonRow,
    CostRow,
    DatasetFacts,
    LatencyRow,
    MeasuredResults,
    Picture,
    TrainingFacts,
)
from afdcd_hf.hub.facts_file import write_facts
from afdcd_hf.hub.model_card import MARKER, render_card, write_card

LATENCY = LatencyRow(512, 1024, 1, "one|GPU", "fp32", 0.01234, 0.0251, 81.04, None, "torch 2.15", "2026-01-02", 3.14)


def metadata(facts):
    return ModelCard(render_card(facts)).data


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,3} ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


# Metadata


def test_metadata_parses_and_names_library_task_origin_and_result_in_percent():
    data = metadata(FULL)
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-segmentation", "apache-2.0")
    assert (data.base_model, data.get("base_model_relation")) == ("timm/mobilenetv2_100.ra_in1k", "finetune")
    assert data.get("teacher") == "DeepLabV3 on resnet50" and data.datasets == ["scenes"]
    (result,) = data.eval_results
    assert data.model_name == "deeplabv3-mbv2-scenes"
    assert (result.metric_type, result.metric_name, result.metric_value) == ("mean_iou", "mIoU (%)", 61.24)
    assert (result.dataset_type, result.dataset_name) == ("scenes", "Generated street scenes")
    assert result.dataset_split == "validation"


def test_unknown_facts_leave_their_metadata_keys_out():
    assert set(metadata(BARE).to_dict()) == {"library_name", "pipeline_tag", "tags"}
    assert metadata(replace(FULL, dataset=replace(FULL.dataset, is_public=False))).datasets is None


def test_only_a_distilled_model_carries_the_tag_of_distillation():
    assert metadata(FULL).tags == ["afdcd", "semantic-segmentation", "knowledge-distillation", "scenes"]
    assert metadata(replace(FULL, teacher=None)).tags == ["afdcd", "semantic-segmentation", "scenes"]


@pytest.mark.parametrize("part", [{"max_samples": 20}, {"list_file": "mine.txt"}])
def test_a_part_of_a_split_or_a_reported_number_makes_no_model_index(part):
    facts = replace(FULL, measured=replace(FULL.measured, protocol={**FULL.measured.protocol, **part}))
    assert metadata(facts).eval_results is None and "a part of it: 50 images" in render_card(facts)
    facts = replace(FULL, measured=None)
    assert metadata(facts).eval_results is None and "model-index" not in render_card(facts)


def test_another_licence_comes_with_its_name_and_link():
    facts = replace(BARE, license="other", license_name="Our terms", license_link="https://example.org/terms")
    data = metadata(facts).to_dict()
    assert (data["license"], data["license_name"]) == ("other", "Our terms")
    assert data["license_link"] == "https://example.org/terms"
    assert "| Licence of the weights | [Our terms](https://example.org/terms) |" in render_card(facts)


# Text


@pytest.mark.parametrize(
    ("title", "lines"),
    [
        ("deeplabv3-mbv2-scenes", ["**61.24 % mIoU**, measured on Generated street scenes, split validation."]),
        ("Results", [
            "split validation (64 images)", "| Images | 50 |", "| scales | [1.0] |", "| flip | False |",
            "| Date | 2026-01-02 |", "| Machine | 2 CPU cores |", "| Metric (%) | Reported (paper) | Measured (ours) |",
            "| mIoU | 76.43 | 61.24 |", "| Mean accuracy | not stated | 70.00 |", "Source of the reported number: Fan",
            "```bash\nafdcd evaluate --model out --dataset scenes\n```", "verify afdcd/deeplabv3-mbv2-scenes\n",
        ]),
        ("Comparison", [
            "| Model | Parameters | MACs at 512×1024 | mIoU (%) |", "| teacher | 39.64 M | 300.00 G | 69.00 |",
            "| student alone | 4.12 M | 18.43 G | 58.00 |", "| CWD | not measured | not measured | not measured |",
        ]),
        ("IoU of each class", [
            "| road | 90.00 |\n| car | 0.00 |", "| tram | occurs in neither truth nor prediction |",
            "| boat | occurs in neither truth nor prediction |",
        ]),
        ("Training", [
            "| Recipe | scenes_quick |", "| Teacher | DeepLabV3 on resnet50 |", "| Seed | 0 |", "| Iterations | 400 |",
            "| Wall-clock time | 1:02:05 |", "| torch | 2.15 |", "| `learning_rate` | 0.02 |", "| `loss` | af_dcd |",
        ]),
        ("Limitations", ["(seed 0)", "A student inherits its teacher's mistakes"]),
    ],
)  # fmt: skip
def test_every_fact_that_is_known_stands_in_its_section(title, lines):
    text = section(render_card(FULL), title)
    assert [line for line in lines if line not in text] == []


def test_a_bare_card_states_nothing_it_does_not_know():
    text = render_card(BARE)
    assert "| mIoU | not stated | not measured |" in text and "distilled from" not in text
    for fact in ("Licence of the weights", "Dataset", "Teacher", "Recipe", "Seed", "Hardware", "Library versions"):
        assert f"| {fact} | not stated |" in text
    for fact in ("Parameters (every stored number)", "Multiply-accumulates", "Wall-clock time",
                 "In training steps alone", "Images per second in these", "Peak memory, process"):  # fmt: skip
        assert f"| {fact} | not measured |" in text
    assert section(text, "Speed").strip().startswith("Latency: not measured.")
    assert not re.search(r"\b(None|nan|Time of a step)\b", text)


def test_what_was_not_measured_says_so_beside_the_reported_number():
    text = render_card(replace(FULL, measured=None))
    assert "| mIoU | 76.43 | not measured |" in text and "**76.43 % mIoU**, as reported by its authors" in text
    assert section(text, "IoU of each class").strip() == "Not measured."
    assert "We have not measured this model." in text


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_parameters": 950}, "| Parameters (every stored number) | 950 |"),
        ({"num_parameters": 12_600}, "| Parameters (every stored number) | 12.60 k |"),
        ({"num_parameters": 1_000_000}, "| Parameters (every stored number) | 1.00 M |"),
        ({"training": TrainingFacts(seconds=3599.6)}, "| Wall-clock time | 1:00:00 |"),
        ({"training": TrainingFacts(seconds_in_steps=75.4, images_per_second=42.46)},
         "| In training steps alone | 0:01:15 |\n| Images per second in these | 42.5 |"),
        ({"training": TrainingFacts(time_split={"data": 0.01, "teacher": 0.04, "backward": 0.15})},
         "| Time of a step | 200 ms: data 5 %, teacher 20 %, backward 75 % |"),
        ({"training": TrainingFacts(peak_memory_mb=1154.4, peak_memory_of="GPU")}, "| Peak memory, GPU | 1154 MiB |"),
        ({"costs": [CostRow(512, 512, 9_215_000_000)]}, "| Multiply-accumulates at 512×512 | 9.21 G |\n| Dataset |"),
        ({"latency": [LATENCY]},
         "| one\\|GPU | fp32 | 12.3 | 25.1 | 81 | not measured | 2026-01-02, torch 2.15, load average 3.1 |"),
        ({"notes": ["Mind the step."], "started_from": "random weights"},
         "| Started from | random weights |\n\nMind the step.\n"),
        ({"dataset": DatasetFacts("a", train_split="train", train_images=400, train_fingerprint="fedc")},
         "| Trained on | train (400 images) |\n| Fingerprint of these files | fedc |"),
        ({"dataset": DatasetFacts("camvid", fingerprint="0123"), "measured": MeasuredResults(0.5)},
         "| Fingerprint of their files | 0123 |"),
        ({"dataset": DatasetFacts("camvid"), "measured": MeasuredResults(0.5)},
         "```bash\nafdcd verify path/to/bare-net --data_dir FOLDER\n```"),
    ],
)  # fmt: skip
def test_amounts_times_and_sizes_read_well(changes, line):
    assert line in render_card(replace(BARE, **changes))


HOSTILE = "<script>alert(1)</script>[x](javascript:alert(1))|a\n\n# b `\"'$(touch X)"


def hostile_card() -> str:
    facts = replace(
        FULL,
        model_name=HOSTILE,
        repo_id=None,
        architecture=HOSTILE,
        dataset=DatasetFacts(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        measured=MeasuredResults(0.5, per_category_iou={HOSTILE: 0.5}, protocol={HOSTILE: HOSTILE}, machine=HOSTILE,
                                 command="afdcd evaluate --dataset '```\n# x'"),
        comparison=[ComparisonRow(HOSTILE)],
        training=TrainingFacts(recipe=HOSTILE, hyperparameters={HOSTILE: HOSTILE}, versions={HOSTILE: HOSTILE}),
        teacher=HOSTILE,
        latency=[replace(LATENCY, device=HOSTILE, setting=HOSTILE)],
        notes=[HOSTILE + "\n[good](https://example.org)\n[y]: JavaScript:alert(1)"],
        pictures=[Picture("a<b>.png", HOSTILE)],
    )  # fmt: skip
    return render_card(facts)


def test_no_fact_puts_html_or_a_link_that_runs_code_on_the_card():
    body = hostile_card().split("\n---\n", 1)[1]
    prose = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", body)  # examples are code, and read as such
    assert set(re.findall(r"(?<!\()</?\w+", prose)) == {"<details", "<summary", "</summary", "</details"}
    assert not re.search(r"(?i)(\]\(\s*|\]:\s*)javascript", prose)
    assert "[good](https://example.org)" in prose and "![" in prose and "](<a&lt;b&gt;.png>)" in prose
    assert "afdcd evaluate --dataset '```\n# x'" in re.findall(r"(?ms)^````bash\n(.*?)\n````$", body)


def test_every_table_row_has_as_many_cells_as_its_header_whatever_the_names():
    for table in re.findall(r"(?:^\|.*\n)+", hostile_card(), flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_examples_are_python_and_commands_are_quoted_for_a_shell():
    assert 'name = "afdcd/deeplabv3-mbv2-scenes"' in render_card(FULL)
    text = hostile_card()
    first, second = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (name,) = [node.value.value for node in ast.parse(first).body if ast.unparse(node).startswith("name =")]
    assert name == f"path/to/{HOSTILE}" and ast.parse(second)
    (command,) = re.findall(r"(?ms)^```bash\n(afdcd verify .*?)\n```$", text)
    assert shlex.split(command) == ["afdcd", "verify", f"path/to/{HOSTILE}", "--data_dir", "FOLDER"]


def test_af_dcd_is_cited_exactly_once_and_other_entries_follow():
    citation = section(render_card(replace(FULL, citations=[AF_DCD, *FULL.citations])), "Citation")
    assert citation.count("```bibtex") == 2 and citation.count("2312.04168") == 1
    assert citation.index("Fan, Jiawei and Li, Chao") < citation.index("@misc{other,")


def test_no_template_syntax_and_no_heaps_of_blank_lines_remain():
    for text in (render_card(FULL), render_card(BARE)):
        assert text.startswith("---\n") and text.endswith("```\n")
        assert not re.search(r"\{[{%]|[%}]\}\s*$|\n{4,}", text.split("## Citation")[0])


# Writing


def test_the_card_is_written_as_readme_and_replaced_by_the_next_one(tmp_path):
    assert write_card(tmp_path, BARE) == tmp_path / "README.md"
    assert write_card(str(tmp_path), replace(BARE, model_name="renamed")) == tmp_path / "README.md"
    assert "# renamed" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_handwritten_card_stays_to_the_byte_and_the_new_one_lies_beside_it(tmp_path, caplog):
    by_hand = b"# Mine\r\n\xff\xfe no utf-8, no marker  \n"
    (tmp_path / "README.md").write_bytes(by_hand)
    for facts in (BARE, replace(FULL, pictures=[])):  # our own file beside it may be replaced
        with caplog.at_level(logging.WARNING):
            path = write_card(tmp_path, facts)
        assert path == tmp_path / "README.generated.md" and path.read_bytes() == render_card(facts).encode()
        assert (tmp_path / "README.md").read_bytes() == by_hand
        assert "README.md" in caplog.text and "README.generated.md" in caplog.text


def test_a_generated_card_without_its_marker_line_counts_as_handwritten(tmp_path):
    path = write_card(tmp_path, BARE)
    edited = path.read_text(encoding="utf-8").replace(MARKER + "\n", "") + "My own words.\n"
    path.write_text(edited, encoding="utf-8")
    assert write_card(tmp_path, BARE).name == "README.generated.md" and path.read_text(encoding="utf-8") == edited
    (tmp_path / "README.generated.md").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="README.generated.md"):
        write_card(tmp_path, BARE)
    assert (tmp_path / "README.generated.md").read_text() == "mine"


def test_a_full_disk_leaves_the_earlier_card_and_facts(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for write, name in ((write_card, "README.md"), (write_facts, "card_facts.json")):
        before = write(tmp_path, BARE).read_bytes()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
            patch.setattr("os.replace", full)
            write(tmp_path, replace(FULL, pictures=[]))
        assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "card_facts.json"]


def test_missing_folders_and_pictures_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_card(tmp_path / "nowhere", BARE)
    with pytest.raises(FileNotFoundError, match="predictions.png"):
        write_card(tmp_path, FULL)
    assert not list(tmp_path.iterdir())
    (tmp_path / "predictions.png").touch()
    assert "![Image, truth and predictions](<predictions.png>)" in write_card(tmp_path, FULL).read_text("utf-8")
