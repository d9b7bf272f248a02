"""Model cards: what stands in them, what their metadata says, and whose files they never touch."""

from __future__ import annotations

import ast
import logging
import re
from dataclasses import replace

import pytest
from card_examples import BARE, FULL
from huggingface_hub import ModelCard

from afdcd_hf.citations import AF_DCD
from afdcd_hf.hub.card_facts import (
    CardFacts,
    ComparisonRow,
    CostRow,
    DatasetFacts,
    LatencyRow,
    MeasuredResults,
    Picture,
    ReportedResults,
    TrainingFacts,
)
from afdcd_hf.hub.model_card import MARKER, render_card, write_card

FULL_WITHOUT_PICTURES = replace(FULL, pictures=[])


def metadata(facts: CardFacts):
    return ModelCard(render_card(facts)).data


def section(text: str, title: str) -> str:
    return re.split(r"^#{2,3} ", text.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


# Metadata


def test_metadata_parses_and_names_library_task_and_origin():
    data = metadata(FULL)
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-segmentation", "apache-2.0")
    assert data.base_model == "timm/mobilenetv2_100.ra_in1k"
    assert data.get("base_model_relation") == "finetune"
    assert data.get("teacher") == "DeepLabV3 on resnet50"
    assert data.tags == ["afdcd", "knowledge-distillation", "semantic-segmentation", "scenes"]


def test_measured_results_make_a_model_index_in_percent():
    data = metadata(FULL)
    (result,) = data.eval_results
    assert data.model_name == "deeplabv3-mbv2-scenes"
    assert (result.metric_type, result.metric_name, result.metric_value) == ("mean_iou", "mIoU (%)", 61.24)
    assert (result.dataset_type, result.dataset_name) == ("scenes", "Generated street scenes")
    assert result.dataset_split == "validation"


def test_a_reported_number_alone_makes_no_model_index():
    facts = replace(FULL, measured=None)
    assert metadata(facts).eval_results is None
    assert "model-index" not in render_card(facts)


def test_unknown_facts_leave_their_metadata_keys_out():
    assert set(metadata(BARE).to_dict()) == {"library_name", "pipeline_tag", "tags"}


def test_the_data_set_is_named_unless_it_is_somebodys_folder():
    assert metadata(FULL).datasets == ["scenes"]
    private = replace(FULL, dataset=replace(FULL.dataset, is_public=False))
    assert metadata(private).datasets is None


def test_another_licence_comes_with_its_name_and_link():
    facts = replace(BARE, license="other", license_name="Our terms", license_link="https://example.org/terms")
    data = metadata(facts).to_dict()
    assert (data["license"], data["license_name"]) == ("other", "Our terms")
    assert data["license_link"] == "https://example.org/terms"
    assert "| Licence of the weights | [Our terms](https://example.org/terms) |" in render_card(facts)


# Text


def test_reported_and_measured_stand_in_separate_columns():
    results = section(render_card(FULL), "Results")
    assert "| Metric (%) | Reported (paper) | Measured (ours) |" in results
    assert "| mIoU | 76.43 | 61.24 |" in results
    assert "| Mean accuracy | not stated | 70.00 |" in results
    assert "Source of the reported number: Fan et al. 2023, Table 2." in results


def test_what_was_not_measured_says_so_beside_the_reported_number():
    text = render_card(replace(FULL, measured=None))
    assert "| mIoU | 76.43 | not measured |" in text
    assert section(text, "IoU of each class").strip() == "Not measured."
    assert "We have not measured this network." in text


def test_a_bare_card_states_nothing_it_does_not_know():
    text = render_card(BARE)
    assert "| mIoU | not stated | not measured |" in text
    for fact in ("Licence of the weights", "Data set", "Teacher", "Recipe", "Seed", "Hardware", "Library versions"):
        assert f"| {fact} | not stated |" in text
    for fact in ("Parameters (every stored number)", "Multiply-accumulates", "Wall-clock time"):
        assert f"| {fact} | not measured |" in text
    assert "distilled from" not in text
    assert "None" not in text and "nan" not in text


def test_the_protocol_date_machine_and_command_are_told():
    results = section(render_card(FULL), "Results")
    for line in ("split validation (64 images)", "| Images | 50 |", "| scales | [1.0] |", "| flip | False |",
                 "| Date | 2026-01-02 |", "| Machine | 2 CPU cores |"):  # fmt: skip
        assert line in results
    assert "```bash\nafdcd evaluate --model out --dataset scenes\n```" in results


def test_the_comparison_lists_cost_and_score_of_each_network():
    comparison = section(render_card(FULL), "Comparison")
    assert "| Network | Parameters | MACs at 512×1024 | mIoU (%) |" in comparison
    assert "| teacher | 39.64 M | 300.00 G | 69.00 |" in comparison
    assert "| student alone | 4.12 M | 18.43 G | 58.00 |" in comparison
    assert "| CWD | not measured | not measured | not measured |" in comparison


def test_each_class_has_its_iou_and_absent_ones_none():
    classes = section(render_card(FULL), "IoU of each class")
    assert "| road | 90.00 |\n| car | 0.00 |" in classes
    assert "| tram | occurs in neither truth nor prediction |" in classes
    assert "| boat | occurs in neither truth nor prediction |" in classes


def test_training_facts_are_listed_and_a_seed_of_zero_is_a_seed():
    training = section(render_card(FULL), "Training")
    for line in ("| Recipe | scenes_quick |", "| Teacher | DeepLabV3 on resnet50 |", "| Seed | 0 |",
                 "| Iterations | 400 |", "| Wall-clock time | 1 h 02 min |", "| torch | 2.15 |",
                 "| `learning_rate` | 0.02 |", "| `loss` | af_dcd |"):  # fmt: skip
        assert line in training
    assert "(seed 0)" in section(render_card(FULL), "Limitations")


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12 s"), (60, "1 min 00 s"), (3599.6, "1 h 00 min")])
def test_durations_read_in_two_units_at_most(seconds, text):
    assert f"| Wall-clock time | {text} |" in render_card(replace(BARE, training=TrainingFacts(seconds=seconds)))


@pytest.mark.parametrize(("number", "text"), [(950, "950"), (12_600, "12.60 k"), (1_000_000, "1.00 M")])
def test_small_and_large_counts_get_their_unit(number, text):
    assert f"| Parameters (every stored number) | {text} |" in render_card(replace(BARE, num_parameters=number))


def test_every_table_row_has_as_many_cells_as_its_header_whatever_the_names():
    per_class = {"a|b\nc": 0.5}
    facts = replace(
        FULL,
        measured=MeasuredResults(0.5, per_category_iou=per_class, protocol={"size|how": "label\nsize"}),
        comparison=[ComparisonRow("x|y", 1, 1, 0.1)],
    )
    text = render_card(facts)
    assert "| a\\|b c | 50.00 |" in text
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_the_python_examples_compile_and_name_the_repository():
    blocks = re.findall(r"```python\n(.*?)```", render_card(FULL), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
    assert "import afdcd_hf" in blocks[0] and 'name = "afdcd/deeplabv3-mbv2-scenes"' in blocks[0]
    assert 'name = "path/to/bare-net"' in render_card(BARE)


def test_af_dcd_is_cited_exactly_once_and_other_entries_follow():
    text = render_card(replace(FULL, citations=[AF_DCD, *FULL.citations]))
    citation = section(text, "Citation")
    assert citation.count("```bibtex") == 2
    assert citation.count("2312.04168") == 1
    assert citation.index("Fan, Jiawei and Li, Chao") < citation.index("@misc{other,")


def test_rendering_twice_gives_the_same_text():
    assert render_card(FULL) == render_card(replace(FULL))


def test_no_template_syntax_and_no_heaps_of_blank_lines_remain():
    for text in (render_card(FULL), render_card(BARE)):
        assert text.startswith("---\n") and text.endswith("```\n")
        assert not re.search(r"\{[{%]|[%}]\}\s*$|\n{4,}", text.split("## Citation")[0])


def test_costs_at_several_sizes_follow_the_one_of_the_training_crop():
    text = render_card(replace(FULL, costs=[CostRow(512, 512, 9_215_000_000), CostRow(512, 1024, 18_430_000_000)]))
    assert "at 512×1024 | 18.43 G |\n| Multiply-accumulates at 512×512 | 9.21 G |\n| Data set" in text
    text = render_card(replace(BARE, costs=[CostRow(512, 512, 9_215_000_000)]))
    assert "| Multiply-accumulates at 512×512 | 9.21 G |" in text
    assert "Multiply-accumulates | not measured" not in text


def test_latency_names_device_setting_day_and_versions_or_says_not_measured():
    assert section(render_card(BARE), "Speed").strip().startswith("Latency: not measured.")
    row = LatencyRow(512, 1024, 1, "one|GPU", "fp32", 0.01234, 0.0251, 81.04, None, "torch 2.15", "2026-01-02")
    speed = section(render_card(replace(BARE, latency=[row])), "Speed")
    assert "| 512×1024 | 1 | one\\|GPU | fp32 | 12.3 | 25.1 | 81 | not measured |" in speed
    assert "Measured on 2026-01-02 (torch 2.15)." in speed
    busy = [row._replace(load_average=0.52), row._replace(load_average=3.14)]
    speed = section(render_card(replace(BARE, latency=busy)), "Speed")
    assert "Measured on 2026-01-02 (torch 2.15; load average up to 3.1)." in speed


def test_energy_is_told_only_where_a_counter_measured_it():
    training = section(render_card(replace(BARE, training=TrainingFacts(energy_joules={"GPU": 1.8e6}))), "Training")
    assert "| Energy, GPU | 0.5 kWh |\n| Energy, processor | not measured |" in training


def test_the_data_is_told_by_split_and_fingerprint():
    dataset = replace(
        FULL.dataset, fingerprint="0123456789abcdef", train_split="train", train_images=400, train_fingerprint="fedc"
    )
    text = render_card(replace(FULL, dataset=dataset))
    assert "| Fingerprint of their files | 0123456789abcdef |" in section(text, "Results")
    assert "| Trained on | train (400 images) |\n| Fingerprint of these files | fedc |" in section(text, "Training")


def test_the_card_says_how_to_verify_its_number():
    assert "`afdcd verify afdcd/deeplabv3-mbv2-scenes` repeats this" in render_card(FULL)
    camvid = replace(FULL, dataset=DatasetFacts("camvid"), repo_id=None)
    assert "`afdcd verify path/to/deeplabv3-mbv2-scenes --data-dir FOLDER` repeats" in render_card(camvid)


def test_notes_and_what_it_started_from_stand_on_the_card():
    text = render_card(replace(BARE, notes=["Mind the step."], started_from="random weights"))
    assert "| Started from | random weights |\n\nMind the step.\n" in text


# Checks of the facts


@pytest.mark.parametrize("score", [61.2, -0.1, float("nan")])
def test_a_score_that_is_no_fraction_is_refused(score):
    with pytest.raises(ValueError, match="fraction from 0 to 1"):
        MeasuredResults(score)
    with pytest.raises(ValueError, match="fraction from 0 to 1"):
        ReportedResults(score, "paper")
    with pytest.raises(ValueError, match="'student'"):
        replace(BARE, comparison=[("student", None, None, score)])


def test_a_class_score_in_percent_is_refused_by_name():
    with pytest.raises(ValueError, match="'road'"):
        MeasuredResults(0.5, per_category_iou={"road": 90.0})


def test_facts_that_mean_nothing_alone_are_refused():
    with pytest.raises(ValueError, match="macs_size"):
        replace(BARE, macs=10)
    with pytest.raises(ValueError, match="dataset"):
        replace(BARE, measured=MeasuredResults(0.5))
    with pytest.raises(ValueError, match="not in the card's folder"):
        replace(BARE, pictures=[Picture("../a.png", "a")])
    with pytest.raises(ValueError, match="absolute"):
        replace(BARE, pictures=[Picture("/tmp/a.png", "a")])


def test_a_licence_is_an_identifier_or_other_with_name_and_link():
    with pytest.raises(ValueError, match="'Apache 2.0' is no identifier"):
        replace(BARE, license="Apache 2.0")
    with pytest.raises(ValueError, match="needs license_name and license_link"):
        replace(BARE, license="other", license_name="Ours")
    with pytest.raises(ValueError, match="belong to the licence"):
        replace(BARE, license="mit", license_link="https://example.org")


def test_a_base_model_is_an_id_of_the_hub_and_no_path():
    with pytest.raises(ValueError, match="no id on the Hub"):
        replace(BARE, base_model="/home/me/resnet18.safetensors")


# Writing


def test_the_card_is_written_as_readme_and_replaced_by_the_next_one(tmp_path):
    assert write_card(tmp_path, BARE) == tmp_path / "README.md"
    assert write_card(str(tmp_path), replace(BARE, model_name="renamed")) == tmp_path / "README.md"
    assert "# renamed" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_handwritten_card_stays_to_the_byte_and_the_new_one_lies_beside_it(tmp_path, caplog):
    by_hand = b"# Mine\r\n\xff\xfe no utf-8, no marker  \n"
    (tmp_path / "README.md").write_bytes(by_hand)
    with caplog.at_level(logging.WARNING):
        path = write_card(tmp_path, BARE)
    assert path == tmp_path / "README.generated.md"
    assert path.read_bytes() == render_card(BARE).encode()
    assert (tmp_path / "README.md").read_bytes() == by_hand
    assert "README.md" in caplog.text and "README.generated.md" in caplog.text
    assert write_card(tmp_path, FULL_WITHOUT_PICTURES) == path  # our own file beside it may be replaced
    assert path.read_bytes() == render_card(FULL_WITHOUT_PICTURES).encode()


def test_a_generated_card_without_its_marker_line_counts_as_handwritten(tmp_path):
    path = write_card(tmp_path, BARE)
    edited = path.read_text(encoding="utf-8").replace(MARKER + "\n", "") + "My own words.\n"
    path.write_text(edited, encoding="utf-8")
    assert write_card(tmp_path, BARE).name == "README.generated.md"
    assert path.read_text(encoding="utf-8") == edited


def test_two_handwritten_files_leave_no_place_to_write(tmp_path):
    for name in ("README.md", "README.generated.md"):
        (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="README.generated.md"):
        write_card(tmp_path, BARE)
    assert {path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"mine"}


def test_missing_pictures_are_named_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="predictions.png"):
        write_card(tmp_path, FULL)
    assert not list(tmp_path.iterdir())
    (tmp_path / "predictions.png").touch()
    assert "![Image, truth and predictions](<predictions.png>)" in write_card(tmp_path, FULL).read_text("utf-8")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_card(tmp_path / "nowhere", BARE)


def test_speed_time_split_and_memory_of_the_training_are_shown():
    training = TrainingFacts(
        seconds_in_steps=75.4,
        images_per_second=42.46,
        time_split={"data": 0.01, "teacher": 0.04, "backward": 0.15},
        peak_memory_mb=1154.4,
        peak_memory_of="GPU",
    )
    card = render_card(replace(BARE, training=training))
    assert "| In training steps alone | 1 min 15 s |\n| Images per second in these | 42.5 |" in card
    assert "| Time of a step | 200 ms: data 5 %, teacher 20 %, backward 75 % |" in card
    assert "| Peak memory, GPU | 1154 MiB |" in card


def test_an_unknown_speed_reads_not_measured():
    card = render_card(BARE)
    for row in ("In training steps alone", "Images per second in these", "Peak memory, process"):
        assert f"| {row} | not measured |" in card
    assert "Time of a step" not in card
