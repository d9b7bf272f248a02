"""Checkpoints are complete or are not taken for it; the last complete one is found."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import logged, same, supervised, weights

from afdcd_hf.training import checkpoints, saving
from afdcd_hf.training.checkpoints import (
    check_whole,
    checkpoint_to_resume,
    fault_of,
    last_whole_checkpoint,
    mark_complete,
)
from afdcd_hf.training.guard import NonFiniteWeightsError

SAVING = {"save_strategy": "steps", "save_steps": 1}


def checkpoint(folder: Path, step: int, content: str = "weights") -> Path:
    """A folder with two files and its marker."""
    path = folder / f"checkpoint-{step}"
    (path / "part").mkdir(parents=True)
    (path / "model.safetensors").write_text(content)
    (path / "part" / "state").write_text("x")
    mark_complete(path, {"format": 2, "step": step})
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


def rewrite(path: Path, text: str) -> None:
    path.write_text(text)


FAULTS = {
    "model.safetensors is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "part/state is missing": lambda folder: shutil.rmtree(folder / "part"),
    "model.safetensors has 6 bytes instead of 7": lambda folder: cut(folder / "model.safetensors"),
    "model.safetensors is damaged": lambda folder: flip_a_bit(folder / "model.safetensors"),
    "it has no checkpoint.json": lambda folder: (folder / "checkpoint.json").unlink(),
    "checkpoint.json is damaged": lambda folder: rewrite(folder / "checkpoint.json", '{"files": {"model'),
    "checkpoint.json is damaged ": lambda folder: rewrite(folder / "checkpoint.json", "[]"),
    "checkpoint.json is damaged  ": lambda folder: rewrite(folder / "checkpoint.json", '{"files": {"a": 1}}'),
    "checkpoint.json does not say which step": lambda folder: rewrite(folder / "checkpoint.json", '{"files": {}}'),
    "it holds step 4, so its folder was renamed": lambda folder: rewrite(
        folder / "checkpoint.json", '{"step": 4, "files": {}}'
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_torn_checkpoint_is_skipped_with_a_warning_that_says_why(tmp_path, caplog, fault):
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-10" and not caplog.text
    FAULTS[fault](tmp_path / "checkpoint-10")
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-9"
    assert f"skipping {tmp_path / 'checkpoint-10'}: " in caplog.text and fault.strip() in caplog.text


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "no checkpoint.json" not in fault])
def test_a_torn_checkpoint_that_is_named_is_an_error_that_names_a_complete_one(tmp_path, fault):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    FAULTS[fault](tmp_path / "checkpoint-3")
    with pytest.raises(ValueError, match=rf"checkpoint-3 is not complete: .*{fault.strip()}.*checkpoint-2 is complete"):
        check_whole(tmp_path / "checkpoint-3")


def test_a_checkpoint_without_marker_is_accepted_by_name_only(tmp_path, caplog):
    (checkpoint(tmp_path, 1) / "checkpoint.json").unlink()
    check_whole(tmp_path / "checkpoint-1")
    assert "checkpoint-1 cannot be checked: it has no checkpoint.json" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"No checkpoint in .* is complete .*name it: .*checkpoint-1"):
        last_whole_checkpoint(tmp_path)


def test_without_any_marker_the_newest_checkpoint_with_its_last_file_is_used(tmp_path, caplog):
    """As a run leaves it that was killed after the older one had been removed, and before the new one was marked."""
    supervised(tmp_path, max_steps=2, save_total_limit=1, **SAVING).train()
    (tmp_path / "checkpoint-2" / "checkpoint.json").unlink()
    assert last_whole_checkpoint(tmp_path).name == "checkpoint-2"
    assert "checkpoint-2 has its last file and is used" in caplog.text
    resumed = supervised(tmp_path, max_steps=3, **SAVING)
    resumed.train("last")
    assert resumed.state.global_step == 3


@pytest.mark.parametrize("there", [True, False])
def test_without_any_checkpoint_the_error_says_what_to_do(tmp_path, there):
    folder = tmp_path if there else tmp_path / "no"
    (tmp_path / "checkpoint-x").mkdir()
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in .*another output_dir"):
        last_whole_checkpoint(folder)


def test_a_checkpoint_that_is_not_there_is_an_error_that_lists_the_ones_that_are(tmp_path):
    checkpoint(tmp_path, 5)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*checkpoint-6; .* has checkpoint-5"):
        check_whole(tmp_path / "checkpoint-6")


def test_leftovers_of_a_killed_run_go_and_nothing_else(tmp_path):
    checkpoint(tmp_path, 1)
    for name in ("_saving-model-a1b2c3", "_saving-notes", "_mine"):
        (tmp_path / name).mkdir()
    assert checkpoint_to_resume(supervised(tmp_path).args, None) is None
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1", "_saving-notes", "_mine"}


def test_a_checkpoint_dated_in_the_future_does_not_outlive_newer_ones(tmp_path):
    supervised(tmp_path, max_steps=1, **SAVING).train()
    os.utime(tmp_path / "checkpoint-1", (time.time() + 10**6,) * 2)
    supervised(tmp_path, max_steps=3, save_total_limit=1, **SAVING).train("last")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_a_trainer_marks_every_file(tmp_path):
    supervised(tmp_path, max_steps=1, **SAVING).train()
    folder = tmp_path / "checkpoint-1"
    marker = json.loads((folder / "checkpoint.json").read_text())
    expected = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "checkpoint.json"}
    assert {name: file["bytes"] for name, file in marker["files"].items()} == expected
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} <= set(expected)
    assert marker["step"] == 1 and marker["processes"] == 1 and marker["images_per_step"] == 4
    assert marker["versions"]["torch"] == torch.__version__
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_who_may_read_the_settings_may_read_the_weights(tmp_path):
    trainer = supervised(tmp_path)
    trainer.save_model()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("model.safetensors", "training_args.json")]
    assert modes[0] == modes[1]


# A full disk


def full(original, trainer, step: int):
    def write(*args, **options):
        if trainer.state.global_step >= step:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed\nat Exception raised")
        return original(*args, **options)

    return write


@pytest.mark.parametrize("when", ["model", "optimizer", "process", "marker"])
def test_where_a_checkpoint_cannot_be_written_the_one_before_stays_and_the_error_says_so(tmp_path, monkeypatch, when):
    trainer = supervised(tmp_path, max_steps=3, **SAVING)
    place, name = {
        "model": (saving, "write_student"),
        "optimizer": (trainer, "_save_optimizer_and_scheduler"),
        "process": (saving, "save_tensors"),
        "marker": (checkpoints, "_to_disk"),
    }[when]
    monkeypatch.setattr(place, name, full(getattr(place, name), trainer, 2))
    message = (
        r"checkpoint-2 could not be written: .*file write failed \(.* MiB are free there\)\..*newest is .*checkpoint-1"
    )
    with pytest.raises(OSError, match=message) as raised:
        trainer.train()
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert fault_of(tmp_path / "checkpoint-1") is None
    assert checkpoint_to_resume(trainer.args, "last") == str(tmp_path / "checkpoint-1")


def test_a_trained_student_that_its_folder_cannot_take_is_saved_elsewhere(tmp_path, monkeypatch):
    trainer = supervised(tmp_path / "run")
    trainer.train()
    original = saving.write_student

    def write(folder, *args):
        if tmp_path / "run" in folder.parents:
            raise OSError(28, "No space left on device")
        original(folder, *args)

    monkeypatch.setattr(saving, "write_student", write)
    monkeypatch.setattr(saving.tempfile, "gettempdir", lambda: str(tmp_path))
    with pytest.raises(OSError, match="run could not be written: No space left.* is saved in .*afdcd-run-.* instead"):
        trainer.save_model()
    (rescued,) = tmp_path.glob("afdcd-run-*")
    assert same(load_file(rescued / "model.safetensors"), weights(trainer.student))


# Weights that are not finite


@pytest.mark.parametrize("at_the_end", [True, False], ids=["saved at the end", "in a checkpoint"])
def test_weights_that_became_non_finite_in_the_last_step_are_not_saved(tmp_path, at_the_end):
    trainer = supervised(tmp_path, max_steps=2, **({} if at_the_end else SAVING))
    step = trainer.create_optimizer().step

    def diverging(*args, **options):
        step(*args, **options)
        if trainer.state.global_step == 1:
            trainer.student.head.classifier.weight.data[0] = float("nan")

    trainer.optimizer.step = diverging
    with pytest.raises(NonFiniteWeightsError, match="^step 2: 1 of .* are not finite, head.classifier.weight"):
        trainer.train()
        trainer.save_model()
    assert fault_of(tmp_path / "checkpoint-1") is None if not at_the_end else not list(tmp_path.iterdir())
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "checkpoint-2").exists()


# A run that is continued


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    options = {"max_steps": 3, **SAVING, "eval_strategy": "steps", "eval_steps": 3}  # amid an epoch of two steps
    whole = supervised(tmp_path, **options)
    whole.train()
    resumed = supervised(tmp_path, **options)
    resumed.train("last")
    assert resumed.state.global_step == 3 and same(weights(resumed.student), weights(whole.student))
    assert logged(resumed, "eval_mean_iou") == logged(whole, "eval_mean_iou")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"learning_rate": 5.0}, r"written with learning_rate 0.05 \(now 5.0\).*resume with the same"),
        ({"optim": "adamw_torch"}, r"written with optim 'sgd' \(now 'adamw_torch'\), optim_args"),
        ({"weight_decay": 0.5}, "written with weight_decay"),
    ],
)
def test_a_setting_that_the_saved_state_would_override_is_refused(tmp_path, changed, message):
    supervised(tmp_path, max_steps=1, **SAVING).train()
    with pytest.raises(ValueError, match=message):
        supervised(tmp_path, max_steps=2, **changed).train("last")


def test_a_setting_that_takes_effect_at_once_is_warned_of(tmp_path, caplog):
    supervised(tmp_path, max_steps=1, **SAVING).train()
    supervised(tmp_path, max_steps=2, warmup_steps=1).train("last")
    assert "max_steps was 1, now 2: the run changes there" in caplog.text and "warmup_steps was" in caplog.text
