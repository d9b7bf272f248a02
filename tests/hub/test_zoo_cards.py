"""The cards in `model_cards/`: rendered from the table, and as they are committed."""

from __future__ import annotations

from dataclasses import replace

import paths
import pytest
from huggingface_hub import ModelCard

from afdcd_hf.hub.folder_facts import network_facts
from afdcd_hf.hub.model_card import render_card
from afdcd_hf.hub.zoo import CHECKPOINTS
from afdcd_hf.hub.zoo_cards import write_zoo_cards, zoo_facts

COMMITTED = paths.ROOT / "model_cards"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> dict[str, str]:
    """Name of the file to the card's text."""
    folder = tmp_path_factory.mktemp("cards")
    return {path.name: path.read_text("utf-8") for path in write_zoo_cards(folder)}


def test_the_committed_cards_are_those_of_the_table(rendered):
    committed = {path.name: path.read_text("utf-8") for path in COMMITTED.glob("*.md")}
    assert committed.keys() == rendered.keys() == {f"{name.split('/')[1]}.md" for name in CHECKPOINTS}
    stale = [name for name in rendered if rendered[name] != committed[name]]
    assert not stale, "run scripts/render_cards.py"


@pytest.mark.parametrize("row", CHECKPOINTS.values(), ids=list(CHECKPOINTS))
def test_reported_and_measured_stand_apart_and_what_was_not_measured_says_so(rendered, row):
    text = rendered[f"{row.repo_id.split('/')[1]}.md"]
    measured = "not measured" if row.measured is None else f"{100 * row.measured:.2f}"
    assert f"| mIoU | {100 * row.reported:.2f} | {measured} |" in text
    assert row.reported_in in text and row.data_licence in text and row.weights_licence in text
    assert all(doubt in text for doubt in (row.source_doubts, row.remarks) if doubt)
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")
    assert (data.eval_results is None) == (row.measured is None) and data.get("teacher") == row.teacher


def test_parameters_and_macs_are_those_of_the_network():
    facts = zoo_facts(CHECKPOINTS["afdcd/deeplabv3-mbv2-cityscapes"])
    assert [(row.height, row.width) for row in facts.costs] == [(512, 512), (512, 1024), (1024, 2048)]
    assert facts.costs[1].macs == pytest.approx(2 * facts.costs[0].macs, rel=1e-3)
    assert facts.architecture == "DeepLabV3 on mobilenetv2_100, output stride 8"


def test_costs_counted_from_shapes_are_those_of_a_real_pass(tiny_model):
    from afdcd_hf.cost import count_macs

    model = tiny_model()
    row = network_facts(model)["costs"][0]
    assert row.macs == count_macs(model, (512, 512)) > 0
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_measured_row_gets_a_model_index():
    row = replace(CHECKPOINTS["afdcd/deeplabv3-r18-voc"], measured=0.7601)
    (result,) = ModelCard(render_card(zoo_facts(row))).data.eval_results
    assert (result.metric_value, result.dataset_type, result.dataset_split) == (76.01, "voc", "val")


def test_a_handwritten_card_of_the_same_name_stops_all_before_anything_is_written(tmp_path):
    (tmp_path / "deeplabv3-r101-voc.md").write_text("mine")
    with pytest.raises(FileExistsError, match="deeplabv3-r101-voc.md"):
        write_zoo_cards(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["deeplabv3-r101-voc.md"]
    assert (tmp_path / "deeplabv3-r101-voc.md").read_text() == "mine"
