"""`afdcd release`, rehearsed with all rows of the zoo against the small Hub: random weights of the right shapes."""

from __future__ import annotations

import re

import pytest
import torch
import yaml
from hub_client import serving
from huggingface_hub import ModelCard
from miniatures import camvid_folder

from afdcd_hf.cli import main
from afdcd_hf.data.benchmarks import get_benchmark
from afdcd_hf.hub.conversion.checkpoints import released_model
from afdcd_hf.hub.zoo import CHECKPOINTS


def write_released_file(path, row):
    """Weights with which the outputs stay in range: the real ones are 40 to 270 MB, these are as large."""
    model, names = released_model(row.network, get_benchmark(row.dataset).classes, {})
    ours = model.state_dict()
    values = {}
    for released, name in names.items():
        empty = torch.empty(ours[name].shape, dtype=ours[name].dtype)
        values[released] = empty.fill_(1) if name.endswith(("running_var", "tracked")) else empty.fill_(0.01)
    torch.save(values, path)


@pytest.fixture
def config(tmp_path):
    def write(**changes):
        content = {"checkpoints": {}, "output_dir": str(tmp_path / "out"), "owner": "street", "tag": "v1.0", **changes}
        (tmp_path / "releases.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "releases.yaml")

    return write


def status(*words):
    try:
        return main(["release", *map(str, words)])
    except SystemExit as left:
        return left.code


def rows_of(text):
    return [line for line in text.splitlines() if line.startswith("| street/")]


def test_two_models_are_converted_evaluated_pushed_tagged_and_collected_once(tmp_path, config, capsys):
    names = ["afdcd/deeplabv3-mbv2-cityscapes", "afdcd/pspnet-r18-camvid"]
    files = {name: str(tmp_path / f"{index}.pth") for index, name in enumerate(names)}
    for name, file in files.items():
        write_released_file(file, CHECKPOINTS[name])
    data = {"camvid": str(camvid_folder(tmp_path / "camvid", "test", 2, size=(24, 32)))}
    options = {"checkpoints": files, "data": data, "collection": "Af DCD", "device": "cpu"}
    with serving(tmp_path) as hub:
        assert status("--config", config(**options)) == 0
        out = capsys.readouterr().out
        assert "convert" in rows_of(out)[0] and "evaluate on" in rows_of(out)[1] and "Nothing was done" in out
        assert not hub.requests and not (tmp_path / "out").exists()
        assert status("--config", config(**options), "--publish") == 1
        assert "| failed: not pushed: measured and reported mIoU differ by more than 1 p" in capsys.readouterr().out
        assert list(hub.repos) == ["street/deeplabv3-mbv2-cityscapes"]
        options["tolerance"] = 1.0  # weights made up for the test
        for _ in range(2):  # the second time nothing is left to do
            assert status("--config", config(**options), "--publish") == 0
            first, second = rows_of(capsys.readouterr().out)
            assert (
                "| 76.43 | not measured |  | pushed: " in first and "| 69.48 | " in second and " | pushed: " in second
            )
            assert {name: len(repo.commits) for name, repo in hub.repos.items()} == {
                "street/deeplabv3-mbv2-cityscapes": 2, "street/pspnet-r18-camvid": 2,
            }  # fmt: skip
        assert list(hub.collections.values()) == [list(hub.repos)]
        repo = hub.repos["street/pspnet-r18-camvid"]
        assert repo.tags == {"v1.0": repo.branches["main"]}
        (result,) = ModelCard(repo.files("v1.0")["README.md"].decode()).data.eval_results
        assert (result.dataset_type, result.dataset_split) == ("camvid", "test")


@pytest.mark.rehearsal
@pytest.mark.timeout(1800)
def test_the_whole_zoo_is_published(tmp_path, config, capsys):
    files = {}
    for index, row in enumerate(CHECKPOINTS.values()):
        files[row.repo_id] = str(tmp_path / f"{index}.pth")
        write_released_file(files[row.repo_id], row)
    with serving(tmp_path) as hub:
        assert status("--config", config(checkpoints=files, collection="Af DCD"), "--publish") == 0
        assert len(rows_of(capsys.readouterr().out)) == 13 == len(hub.repos) == len(hub.collections.popitem()[1])
        assert all(repo.tags for repo in hub.repos.values())


def test_a_row_that_fails_stops_neither_the_others_nor_goes_unnoticed(tmp_path, config, capsys):
    write_released_file(tmp_path / "a.pth", CHECKPOINTS["afdcd/pspnet-r18-camvid"])
    files = {"afdcd/deeplabv3-r18-voc": str(tmp_path / "a.pth"), "afdcd/pspnet-r18-camvid": str(tmp_path / "a.pth")}
    with serving(tmp_path) as hub:
        assert status("--config", config(checkpoints=files), "--publish") == 1
        assert list(hub.repos) == ["street/pspnet-r18-camvid"]
    first, second = rows_of(capsys.readouterr().out)
    assert "failed: a.pth as deeplabv3_resnet18" in first and "pushed: " in second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoints": {"afdcd/nothing": "a.pth"}}, "No published checkpoint 'afdcd/nothing'"),
        ({"checkpoints": ["a.pth"]}, "checkpoints is .*expected an object"),
        ({"tags": "v1.0"}, "which this version does not know; known: checkpoints"),
        ({"private": "yes"}, "private is 'yes'"),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_done(config, capsys, changes, message):
    assert status("--config", config(**changes)) == 2
    (line, *_) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
