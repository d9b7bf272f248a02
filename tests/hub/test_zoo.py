"""The table of published checkpoints, held against the paper's facts, the recipes and the converter."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from afdcd_hf.cli import main
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.hub.released_networks import RELEASED_NETWORKS, get_released_network
from afdcd_hf.hub.zoo import CHECKPOINTS, get_checkpoint, select, to_table
from afdcd_hf.models.configuration_afdcd import AfDcdConfig
from afdcd_hf.recipes import load_recipe

STUDENTS = [row for row in CHECKPOINTS.values() if row.role == "student"]
TEACHERS = [row for row in CHECKPOINTS.values() if row.role == "teacher"]
DATASETS = {
    "Cityscapes": "cityscapes",
    "ADE20K": "ade20k",
    "COCO-Stuff-164K": "coco_stuff_182",
    "Pascal VOC": "voc",
    "CamVid": "camvid",
}
NETWORKS = {
    "DeepLabV3-MBV2": "deeplabv3_mobilenetv2",
    "DeepLabV3-R18": "deeplabv3_resnet18",
    "PSPNet-R18": "pspnet_resnet18",
}


def published_results(text):
    """(dataset, network) -> teacher, alone and Af-DCD in percent, from the table of published results."""
    section = text.split("## Published results")[1].split("\n## ")[0]
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in DATASETS:
            scores = [float(re.match(r"[\d.]+", cell)[0]) for cell in (cells[2], cells[3], cells[-1])]
            yield (DATASETS[cells[0]], NETWORKS[cells[1]]), scores


def test_the_students_and_their_scores_are_those_of_the_published_table(shared_dir):
    expected = dict(published_results((shared_dir / "method.md").read_text()))
    found = {
        (row.dataset, row.network): [
            round(100 * score, 2) for score in (CHECKPOINTS[row.teacher].reported, row.reported_alone, row.reported)
        ]
        for row in STUDENTS
    }
    assert len(expected) == 8 and found == expected


def test_every_student_has_a_teacher_for_the_same_data_and_every_teacher_a_student():
    for row in STUDENTS:
        teacher = CHECKPOINTS[row.teacher]
        assert (teacher.dataset, teacher.split, teacher.network) == (row.dataset, row.split, "deeplabv3_resnet101")
    assert {row.teacher for row in STUDENTS} == {row.repo_id for row in TEACHERS} and len(TEACHERS) == 5


@pytest.mark.parametrize("row", STUDENTS, ids=lambda row: row.repo_id)
def test_the_recipe_of_a_student_trains_that_network_from_that_teacher(row):
    recipe, network = load_recipe(row.recipe), RELEASED_NETWORKS[row.network]
    assert (recipe["dataset"], recipe["teacher"]) == (row.dataset, row.teacher)
    assert (recipe["backbone"], recipe["head"]) == (network.backbone, network.head)
    assert recipe.get("backbone_kwargs", {}) == network.backbone_kwargs
    assert recipe.get("auxiliary_head", False) == network.auxiliary_head
    assert recipe["preprocessing"] == "released"


def test_ids_are_keys_that_name_network_and_data():
    for key, row in CHECKPOINTS.items():
        assert key == row.repo_id and re.fullmatch(r"afdcd/(deeplabv3|pspnet)-(r18|r101|mbv2)-[a-z0-9-]+", key)
        assert row.dataset in BENCHMARKS and row.split in {"val", "test"} and 0 < row.reported < 1
        assert row.data_licence == BENCHMARKS[row.dataset].licence and row.weights_licence and row.paper
    assert get_checkpoint("afdcd/pspnet-r18-voc").network == "pspnet_resnet18"


def test_files_behind_a_link_that_is_given_twice_are_said_to_be_in_doubt():
    doubted = {
        row.repo_id: re.search(r"\((\w+)\.\.\.\)", row.source_doubts)[1] for row in STUDENTS if row.source_doubts
    }
    assert doubted == {
        "afdcd/deeplabv3-mbv2-cityscapes": "1D1pREhq",
        "afdcd/deeplabv3-r18-cityscapes": "1D1pREhq",
        "afdcd/pspnet-r18-voc": "1PcU9SSA",
        "afdcd/pspnet-r18-camvid": "1PcU9SSA",
    }


def test_an_unknown_checkpoint_lists_the_known_ones():
    with pytest.raises(ValueError, match="Close: afdcd/pspnet-r18-voc.*afdcd/deeplabv3-r101-camvid"):
        get_checkpoint("afdcd/psp-r18-voc")


def test_released_networks_make_configurations_with_any_classes():
    config = get_released_network("pspnet_resnet101").config(("road", "sky"))
    assert isinstance(config, AfDcdConfig) and config.num_labels == 2 and config.label2id == {"road": 0, "sky": 1}
    assert (config.backbone, config.head, config.auxiliary_head) == ("resnet101s", "pspnet", True)
    with pytest.raises(ValueError, match="Unknown released network 'psp_resnet18'. Close: pspnet_resnet18"):
        get_released_network("psp_resnet18")


def test_reported_and_measured_stand_in_columns_of_their_own():
    row = dataclasses.replace(get_checkpoint("afdcd/deeplabv3-r18-voc"), measured=0.5)
    lines = to_table([row, get_checkpoint("afdcd/pspnet-r18-voc")]).splitlines()
    start = [lines[0].index(heading) for heading in ("reported", "measured")]
    assert [line[start[0] :].split("  ")[0] for line in lines[1:3]] == ["76.25", "76.14"]
    assert [line[start[1] :].split("  ")[0] for line in lines[1:3]] == ["50.00", "not measured"]


def test_the_command_lists_all_or_those_of_a_dataset(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in CHECKPOINTS)
    assert main(["list", "--dataset", "camvid", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["repo_id"] for row in rows] == [row.repo_id for row in select("camvid")] and len(rows) == 3
    assert {row["role"] for row in rows} == {"student", "teacher"} and rows[0]["measured"] is None


def test_the_command_refuses_datasets_without_checkpoints(capsys):
    assert main(["list", "--dataset", "scenes"]) == 2
    assert "No checkpoint is published for 'scenes'; there are some for cityscapes, ade20k" in capsys.readouterr().err
    assert main(["list", "--dataset", "cityscape"]) == 2
    assert "did you mean 'cityscapes'" in capsys.readouterr().err
