"""Published checkpoints: table and cards against paper and recipes, and `afdcd release` against a small Hub."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy

import paths
import pytest
import torch
import yaml
from command_line import answer
from hub_client import serving
from huggingface_hub import ModelCard
from miniatures import camvid_folder

from afdcd_hf.cli import main
from afdcd_hf.cost import count_macs
from afdcd_hf.data.benchmarks import BENCHMARKS, get_benchmark
from afdcd_hf.hub.conversion import released_model, zoo_facts
from afdcd_hf.hub.model_card import render_card
from afdcd_hf.hub.released_networks import RELEASED_NETWORKS
from afdcd_hf.hub.zoo import CHECKPOINTS, get_checkpoint, select, to_table
from afdcd_hf.recipes import load_recipe

STUDENTS = [row for row in CHECKPOINTS.values() if row.role == "student"]
TEACHERS = [row for row in CHECKPOINTS.values() if row.role == "teacher"]
DATASETS = {
    "Cityscapes": "cityscapes", "ADE20K": "ade20k", "COCO-Stuff-164K": "coco_stuff_182", "Pascal VOC": "voc",
    "CamVid": "camvid",
}  # fmt: skip
NETWORKS = {
    "DeepLabV3-MBV2": "deeplabv3_mobilenetv2", "DeepLabV3-R18": "deeplabv3_resnet18", "PSPNet-R18": "pspnet_resnet18",
}  # fmt: skip


def published_results(text):
    """(dataset, network) -> teacher, alone and Af-DCD in percent, from the table of published results."""
    for line in text.split("## Published results")[1].split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in DATASETS:
            scores = [float(re.match(r"[\d.]+", cell)[0]) for cell in (cells[2], cells[3], cells[-1])]
            yield (DATASETS[cells[0]], NETWORKS[cells[1]]), scores


def test_students_and_scores_match_the_published_table(shared_dir):
    expected = dict(published_results((shared_dir / "method.md").read_text()))
    found = {
        (row.dataset, row.network): [
            round(100 * score, 2) for score in (CHECKPOINTS[row.teacher].reported, row.reported_alone, row.reported)
        ]
        for row in STUDENTS
    }
    assert len(expected) == 8 and found == expected


def test_every_student_has_a_teacher_for_the_same_data_and_a_recipe_for_that_pair():
    assert {row.teacher for row in STUDENTS} == {row.repo_id for row in TEACHERS} and len(TEACHERS) == 5
    for row in STUDENTS:
        teacher, network, recipe = CHECKPOINTS[row.teacher], RELEASED_NETWORKS[row.network], load_recipe(row.recipe)
        assert (teacher.dataset, teacher.split, teacher.network) == (row.dataset, row.split, "deeplabv3_resnet101")
        assert (recipe["dataset"], recipe["teacher"]) == (row.dataset, row.teacher)
        assert (recipe["backbone"], recipe["head"]) == (network.backbone, network.head)
        assert recipe.get("backbone_kwargs", {}) == network.backbone_kwargs
        assert recipe.get("auxiliary_head", False) == network.auxiliary_head
        assert recipe["preprocessing"] == "released"


def test_ids_name_network_and_data_and_duplicate_links_are_marked_in_doubt():
    for key, row in CHECKPOINTS.items():
        assert key == row.repo_id and re.fullmatch(r"afdcd/(deeplabv3|pspnet)-(r18|r101|mbv2)-[a-z0-9-]+", key)
        assert row.dataset in BENCHMARKS and row.split in {"val", "test"} and 0 < row.reported < 1
    doubts = {row.repo_id: row.source_doubts for row in STUDENTS if row.source_doubts}
    assert {name: re.search(r"\((\w+)\.\.\.\)", text)[1] for name, text in doubts.items()} == {
        "afdcd/deeplabv3-mbv2-cityscapes": "1D1pREhq", "afdcd/deeplabv3-r18-cityscapes": "1D1pREhq",
        "afdcd/pspnet-r18-voc": "1PcU9SSA", "afdcd/pspnet-r18-camvid": "1PcU9SSA",
    }  # fmt: skip


def test_the_command_lists_all_checkpoints_or_a_datasets_with_scores_in_separate_columns(capsys):
    row = dataclasses.replace(get_checkpoint("afdcd/deeplabv3-r18-voc"), measured=0.5)
    lines = to_table([row, get_checkpoint("afdcd/pspnet-r18-voc")]).splitlines()
    for heading, expected in (("reported", ["76.25", "76.14"]), ("measured", ["50.00", "not measured"])):
        assert [line[lines[0].index(heading) :].split("  ")[0] for line in lines[1:3]] == expected
    with pytest.raises(ValueError, match="Close: afdcd/pspnet-r18-voc.*afdcd/deeplabv3-r101-camvid"):
        get_checkpoint("afdcd/psp-r18-voc")
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in CHECKPOINTS)
    assert main(["list", "--dataset", "camvid", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["repo_id"] for row in rows] == [row.repo_id for row in select("camvid")] and len(rows) == 3
    assert {row["role"] for row in rows} == {"student", "teacher"} and rows[0]["measured"] is None
    assert "No checkpoint is published for 'scenes'; published ones" in answer(capsys, "list", "--dataset=scenes")


def test_the_committed_cards_are_current_with_reported_and_measured_scores_apart(tmp_path):
    write_zoo_cards = runpy.run_path(str(paths.ROOT / "scripts" / "render_cards.py"))["write_zoo_cards"]
    rendered = {path.name: path.read_text("utf-8") for path in write_zoo_cards(tmp_path)}
    committed = {path.name: path.read_text("utf-8") for path in (paths.ROOT / "model_cards").glob("*.md")}
    assert committed.keys() == rendered.keys() == {f"{name.split('/')[1]}.md" for name in CHECKPOINTS}
    stale = [name for name in rendered if rendered[name] != committed[name]]
    assert not stale, "run scripts/render_cards.py"
    for row in CHECKPOINTS.values():
        text = rendered[f"{row.name}.md"]
        measured = "not measured" if row.measured is None else f"{100 * row.measured:.2f}"
        facts = (row.reported_in, row.data_licence, row.weights_licence, row.source_doubts, row.remarks)
        assert f"| mIoU | {100 * row.reported:.2f} | {measured} |" in text and ", output stride 8 |" in text
        assert all(words in text for words in facts if words)
        data = ModelCard(text).data
        assert (data.eval_results is None) == (row.measured is None) and data.get("teacher") == row.teacher
    (tmp_path / "deeplabv3-r101-voc.md").write_text("mine")
    (tmp_path / "pspnet-r18-voc.md").unlink()
    with pytest.raises(FileExistsError, match="deeplabv3-r101-voc.md"):
        write_zoo_cards(tmp_path)  # and nothing is written
    assert not (tmp_path / "pspnet-r18-voc.md").exists() and (tmp_path / "deeplabv3-r101-voc.md").read_text() == "mine"


def test_parameters_and_macs_are_the_models_and_a_measured_row_gets_a_model_index(tiny_model):
    row, model = dataclasses.replace(CHECKPOINTS["afdcd/deeplabv3-r18-voc"], measured=0.7601), tiny_model()
    facts = zoo_facts(row, model)
    assert [(each.height, each.width) for each in facts.costs] == [(512, 512), (512, 1024), (1024, 2048)]
    assert facts.costs[1].macs == pytest.approx(2 * facts.costs[0].macs, rel=1e-3)
    assert facts.costs[0].macs == count_macs(model, (512, 512)) > 0
    assert not any(parameter.is_meta for parameter in model.parameters())
    (result,) = ModelCard(render_card(facts)).data.eval_results
    assert (result.metric_value, result.dataset_type, result.dataset_split) == (76.01, "voc", "val")


def write_released_file(path, repo_id):
    """Write weights that keep outputs in range, as large as the real files (40 to 270 MB)."""
    row = CHECKPOINTS[repo_id]
    model, names = released_model(row.network, get_benchmark(row.dataset).classes, {})
    ours = model.state_dict()
    values = {released: torch.empty(ours[name].shape, dtype=ours[name].dtype) for released, name in names.items()}
    for name, value in values.items():
        value.fill_(1 if name.endswith(("running_var", "tracked")) else 0.01)
    torch.save(values, path)
    return str(path)


@pytest.fixture
def released(tmp_path, capsys):
    """Run the command with a plan; return its exit status and the rows of its table, or its error."""

    def run(*words, **changes):
        content = {"checkpoints": {}, "output_dir": str(tmp_path / "out"), "owner": "street", "tag": "v1.0", **changes}
        (tmp_path / "releases.yaml").write_text(yaml.safe_dump(content))
        status = main(["release", "--config", str(tmp_path / "releases.yaml"), *words])
        out, error = capsys.readouterr()
        return status, [line for line in out.splitlines() if line.startswith("| street/")] or error

    return run


def test_models_are_converted_evaluated_pushed_tagged_and_collected_once_and_a_failure_does_not_stop_others(
    tmp_path, released
):
    names = ["afdcd/deeplabv3-mbv2-cityscapes", "afdcd/pspnet-r18-camvid"]
    files = {name: write_released_file(tmp_path / f"{index}.pth", name) for index, name in enumerate(names)}
    data = {"camvid": str(camvid_folder(tmp_path / "camvid", "test", 2, size=(24, 32)))}
    options = {"data": data, "collection": "Af DCD", "device": "cpu"}
    with serving(tmp_path) as hub:
        status, (first, second) = released(**options, checkpoints=files)  # a dry run
        assert status == 0 and "convert" in first and "evaluate on" in second
        assert not hub.requests and not (tmp_path / "out").exists()
        wrong = {"afdcd/deeplabv3-r18-voc": str(tmp_path / "absent.pth")}
        status, rows = released("--publish", **options, checkpoints={**wrong, **files})
        assert status == 1 and "| pushed: " in rows[0] and "failed: No checkpoint at" in rows[1]
        assert "| failed: not pushed: measured and reported mIoU differ by more than 1 p" in rows[2]
        assert list(hub.repos) == ["street/deeplabv3-mbv2-cityscapes"]
        options["tolerance"] = 1.0  # random weights
        for _ in range(2):  # the second run has nothing left to do
            status, (first, second) = released("--publish", **options, checkpoints=files)
            assert status == 0 and "| 76.43 | not measured |  | pushed: " in first
            assert "| 69.48 | " in second and " | pushed: " in second
            assert [(name, len(repo.commits)) for name, repo in hub.repos.items()] == [
                ("street/deeplabv3-mbv2-cityscapes", 2), ("street/pspnet-r18-camvid", 2)
            ]  # fmt: skip
        assert list(hub.collections.values()) == [list(hub.repos)]
        repo = hub.repos["street/pspnet-r18-camvid"]
        assert repo.tags == {"v1.0": repo.branches["main"]}
        (result,) = ModelCard(repo.files("v1.0")["README.md"].decode()).data.eval_results
        assert (result.dataset_type, result.dataset_split) == ("camvid", "test")
        first_commit = repo.tags["v1.0"]
        assert main(["card", str(tmp_path / "out/pspnet-r18-camvid"), "--note", "Mind."]) == 0
        status, (first, second) = released("--publish", **options, checkpoints=files)
        assert status == 1 and "| pushed: " in first and "the tag v1.0 still names an earlier commit" in second
        assert first_commit in second and repo.branches["main"] in second and repo.tags == {"v1.0": first_commit}
        assert released("--publish", **options, checkpoints=files, tag="v1.1")[0] == 0
        assert repo.tags == {"v1.0": first_commit, "v1.1": repo.branches["main"]} and len(repo.commits) == 3


@pytest.mark.rehearsal
@pytest.mark.timeout(1800)
def test_the_whole_zoo_is_published(tmp_path, released):
    files = {name: write_released_file(tmp_path / f"{i}.pth", name) for i, name in enumerate(CHECKPOINTS)}
    with serving(tmp_path) as hub:
        status, rows = released("--publish", checkpoints=files, collection="Af DCD")
        assert status == 0 and len(rows) == 13 == len(hub.repos) == len(hub.collections.popitem()[1])
        assert all(repo.tags for repo in hub.repos.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": {"afdcd/nothing": "a.pth"}}, "Unknown published checkpoint 'afdcd/nothing'"),
        ({"tags": "v1.0"}, "unknown to this version; known: checkpoints"),
        ({"private": "yes"}, "private is 'yes'"),
    ],
)
def test_invalid_plans_are_refused_before_anything_is_done(released, changes, message):
    status, error = released(**changes)
    assert status == 2 and message in error.splitlines()[0]
