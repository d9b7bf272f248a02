"""Checkpoints are whole or are not taken for one; the last whole one is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import supervised

from afdcd_hf.training import whole_checkpoints
from afdcd_hf.training.resuming import checkpoint_to_resume
from afdcd_hf.training.whole_checkpoints import (
    check_whole,
    fault_of,
    install,
    last_whole_checkpoint,
    remove_oldest,
    tidy,
    write_manifest,
)


def checkpoint(folder: Path, name: str, content: str = "weights") -> Path:
    """A folder with two files and its manifest."""
    (folder / name / "part").mkdir(parents=True)
    (folder / name / "model.safetensors").write_text(content)
    (folder / name / "part" / "state").write_text("x")
    write_manifest(folder / name, {"format": 1})
    return folder / name


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


FAULTS = {
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "part/state is missing": lambda folder: shutil.rmtree(folder / "part"),
    "model.safetensors has 6 bytes instead of 7": lambda folder: cut(folder / "model.safetensors"),
    "model.safetensors is damaged": lambda folder: flip_a_bit(folder / "model.safetensors"),
    "it has no checkpoint.json": lambda folder: (folder / "checkpoint.json").unlink(),
    "checkpoint.json is damaged": lambda folder: (folder / "checkpoint.json").write_text('{"files": {"model'),
    "checkpoint.json is damaged ": lambda folder: (folder / "checkpoint.json").write_text("[]"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_torn_checkpoint_is_passed_over_with_a_warning_that_says_why(tmp_path, caplog, fault):
    for step in (2, 9, 10):
        checkpoint(tmp_path, f"checkpoint-{step}")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-10" and not caplog.text
    FAULTS[fault](tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-9"
    assert "checkpoint-10 is passed over: " in caplog.text and fault.strip() in caplog.text


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "no checkpoint.json" not in fault])
def test_a_torn_checkpoint_that_is_named_is_an_error_that_names_a_whole_one(tmp_path, fault):
    for step in (1, 2, 3):
        checkpoint(tmp_path, f"checkpoint-{step}")
    FAULTS[fault](tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=rf"checkpoint-3 is not whole: .*{fault.strip()}.*checkpoint-2 is whole"):
        check_whole(tmp_path / "checkpoint-3")


def test_a_checkpoint_without_manifest_is_accepted_by_name_only(tmp_path, caplog):
    (checkpoint(tmp_path, "checkpoint-1") / "checkpoint.json").unlink()
    check_whole(tmp_path / "checkpoint-1")
    assert "checkpoint-1 cannot be checked: it has no checkpoint.json" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .* is whole .*name it: .*checkpoint-1"):
        last_whole_checkpoint(tmp_path)


@pytest.mark.parametrize("there", [True, False])
def test_without_any_checkpoint_the_error_says_what_to_do(tmp_path, there):
    folder = tmp_path if there else tmp_path / "no"
    (tmp_path / "checkpoint-x").mkdir()
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in .*another output_dir"):
        last_whole_checkpoint(folder)


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_the_ones_that_are(tmp_path):
    checkpoint(tmp_path, "checkpoint-5")
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*checkpoint-6; .* has checkpoint-5"):
        check_whole(tmp_path / "checkpoint-6")


def test_writing_the_same_step_again_replaces_the_older_one(tmp_path):
    checkpoint(tmp_path, "checkpoint-1", "older")
    install(checkpoint(tmp_path, "_saving-checkpoint-1", "newer"), tmp_path / "checkpoint-1")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == "newer"


@pytest.mark.parametrize("died_at", [0, 1, 2])
def test_killed_at_any_moment_of_a_replacement_one_whole_checkpoint_remains(tmp_path, monkeypatch, died_at):
    """Dies before the first rename, between both, or before the older one is removed."""
    checkpoint(tmp_path, "checkpoint-1", "older")
    written = checkpoint(tmp_path, "_saving-checkpoint-1", "newer")
    rename, done = whole_checkpoints.os.rename, []

    def dying(source, target=None, **_):
        if len(done) == died_at:
            raise KeyboardInterrupt
        done.append(source)
        rename(source, target)

    monkeypatch.setattr(whole_checkpoints.os, "rename", dying)
    monkeypatch.setattr(whole_checkpoints.shutil, "rmtree", dying)
    with pytest.raises(KeyboardInterrupt):
        install(written, tmp_path / "checkpoint-1")
    monkeypatch.undo()
    tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert fault_of(tmp_path / "checkpoint-1") is None
    expected = "older" if died_at == 0 else "newer"
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_text() == expected


def test_leftovers_of_a_killed_run_go_and_nothing_else(tmp_path):
    checkpoint(tmp_path, "checkpoint-1")
    for name in ("_saving-checkpoint-2", "_removing-checkpoint-0", "_saving-model-a1b2c3", "_saving-notes", "_mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "_saving-notes", "_mine"}


def test_the_oldest_go_first_but_never_those_to_keep(tmp_path):
    for step in (1, 2, 3, 30):
        checkpoint(tmp_path, f"checkpoint-{step}")
    # 30 is what another attempt left; 3 has just been written, and 1 is the best.
    remove_oldest(tmp_path, 2, keep={tmp_path / "checkpoint-3", tmp_path / "checkpoint-1"})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "checkpoint-3"}
    remove_oldest(tmp_path, None, keep=set())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_trainer_writes_a_manifest_of_every_file(tmp_path):
    supervised(tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    folder = tmp_path / "checkpoint-1"
    manifest = json.loads((folder / "checkpoint.json").read_text())
    expected = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "checkpoint.json"}
    assert {name: file["bytes"] for name, file in manifest["files"].items()} == expected
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(expected)
    assert manifest["step"] == 1 and manifest["processes"] == 1 and manifest["images_per_step"] == 4
    assert manifest["versions"]["torch"] == torch.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("when", ["model", "optimizer", "state", "manifest"])
def test_where_a_checkpoint_cannot_be_written_the_one_before_stays_and_the_error_says_so(tmp_path, monkeypatch, when):
    trainer = supervised(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)

    def full(*_, **__):
        if trainer.state.global_step == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat Exception raised")
        return original(*_, **__)

    place, name = {
        "model": (trainer, "_write_student"),
        "optimizer": (trainer, "_save_optimizer_and_scheduler"),
        "state": (trainer, "_facts"),
        "manifest": (whole_checkpoints, "_to_disk"),
    }[when]
    original = getattr(place, name)
    monkeypatch.setattr(place, name, full)
    message = (
        r"checkpoint-2 could not be written: .*file write failed \(.* MiB are free there\)\..*newest is .*checkpoint-1"
    )
    with pytest.raises(OSError, match=message) as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert fault_of(tmp_path / "checkpoint-1") is None
    assert checkpoint_to_resume(trainer.args, "last") == str(tmp_path / "checkpoint-1")
