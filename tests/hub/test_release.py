"""`afdcd release`, rehearsed with all rows of the zoo against the small Hub: random weights of the right shapes."""

from __future__ import annotations

import pytest
import torch
import yaml
from hub_client import serving
from huggingface_hub import ModelCard
from miniatures import camvid_folder

from afdcd_hf.cli import main
from afdcd_hf.data.benchmarks import get_benchmark
from afdcd_hf.hub.conversion import released_model
from afdcd_hf.hub.zoo import CHECKPOINTS


def write_released_file(path, repo_id):
    """Weights with which the outputs stay in range: the real ones are 40 to 270 MB, these are as large."""
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
    """Run the command with a plan: its exit status and the rows of its table, or its error."""

    def run(*words, **changes):
        content = {"checkpoints": {}, "output_dir": str(tmp_path / "out"), "owner": "street", "tag": "v1.0", **changes}
        (tmp_path / "releases.yaml").write_text(yaml.safe_dump(content))
        status = main(["release", "--config", str(tmp_path / "releases.yaml"), *words])
        out, error = capsys.readouterr()
        return status, [line for line in out.splitlines() if line.startswith("| street/")] or error

    return run


def test_models_are_converted_evaluated_pushed_tagged_and_collected_once_and_a_failure_stops_no_other(
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
        wrong = {"afdcd/deeplabv3-r18-voc": files[names[1]]}
        status, rows = released("--publish", **options, checkpoints={**wrong, **files})
        assert status == 1 and "| pushed: " in rows[0] and "failed: 1.pth as deeplabv3_resnet18" in rows[1]
        assert "| failed: not pushed: measured and reported mIoU differ by more than 1 p" in rows[2]
        assert list(hub.repos) == ["street/deeplabv3-mbv2-cityscapes"]
        options["tolerance"] = 1.0  # weights made up for the test
        for _ in range(2):  # the second time nothing is left to do
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
        ({"checkpoints": {"afdcd/nothing": "a.pth"}}, "No published checkpoint 'afdcd/nothing'"),
        ({"tags": "v1.0"}, "which this version does not know; known: checkpoints"),
        ({"private": "yes"}, "private is 'yes'"),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_done(released, changes, message):
    status, error = released(**changes)
    assert status == 2 and message in error.splitlines()[0]
