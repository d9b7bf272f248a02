"""What the log says about speed, memory and loss terms, and what it looks like without a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from tiny import distilling, logged, loss_options, samples, segmenter, supervised, without_batch_effects

from afdcd_hf.training.progress import Speed, StepTimer

PARTS = {"data", "teacher", "student", "loss", "backward", "optimizer"}
TERMS = ["loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"]


def times_of(line: dict) -> dict:
    return {name.removeprefix("time_"): value for name, value in line.items() if name.startswith("time_")}


def test_each_lap_belongs_to_its_part_and_what_lies_between_steps_to_none(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("afdcd_hf.training.progress.time.perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"))
    nothing, alone = (None, None, None), SimpleNamespace(device=torch.device("cpu"), gather=lambda tensor: tensor)

    def spend(seconds: float, part: str | None = None) -> None:
        now[0] += seconds
        if part:
            timer.lap(part)

    spend(5, "loss")  # before the first step
    timer.on_epoch_begin(*nothing)
    for seconds in (1, 10):
        timer.images += 3
        for factor, part in ((1, "data"), (2, "student"), (4, "loss"), (8, "student")):
            spend(factor * seconds, part)
        spend(16 * seconds)
        timer.on_step_end(*nothing)
        spend(1000)  # an evaluation
        timer.on_evaluate(*nothing)
    assert timer.seconds_in_steps == 341
    line = timer.take(alone)
    assert times_of(line) == {"data": 5.5, "student": 55, "loss": 22, "optimizer": 88} and line["peak_memory_mb"] > 10
    assert line["images_per_second"] == pytest.approx(6 / 341, rel=1e-4) and timer.take(alone) == {}
    spend(7)  # a step that is broken off does not reach into the next training
    timer.reset()
    timer.on_epoch_begin(*nothing)
    spend(2, "data")
    timer.on_step_end(*nothing)
    assert timer.seconds_in_steps == timer.take(alone)["time_data"] == 2


def test_the_speed_of_a_history_weighs_lines_by_their_steps():
    history = [
        {"step": 2, "images_per_second": 8.0, "time_data": 0.5, "time_backward": 0.5, "peak_memory_mb": 100.0},
        {"step": 2, "eval_mean_iou": 0.5},
        {"step": 6, "images_per_second": 4.0, "time_data": 1.0, "time_backward": 1.0},
    ]
    split = {"data": 5 / 6, "backward": 5 / 6}
    assert Speed.of_history(history) == Speed(6, 10.0, (2 * 8 + 8 * 4) / 10, split, 100.0)
    assert Speed.of_history(history[1:2]) == Speed() and Speed().images_per_second is None


def test_every_line_splits_the_step_also_after_resuming_and_slow_data_is_told_from_a_slow_teacher(tmp_path, capsys):
    class Slow(type(samples())):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    data = samples()
    data.__class__ = Slow
    options = {"max_steps": 5, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "train_dataset": data}
    options |= {"save_strategy": "steps", "save_steps": 3}
    trainer = distilling(tmp_path, **options)
    trainer.teacher.register_forward_hook(lambda *_: time.sleep(0.15))
    metrics = trainer.train().metrics
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(lines) == 2
    for line in lines:
        times = times_of(line)
        assert times.keys() == PARTS and all(type(value) is float and value > 0 for value in times.values())
        assert line["images_per_second"] * sum(times.values()) == pytest.approx(4, rel=1e-3)  # the batch
        assert times["teacher"] > 0.15 and times["loss"] < 0.1 and 10 < line["peak_memory_mb"] < 1e5
    assert sum(logged(trainer, "time_data")) > 0.08  # accelerate loads a batch ahead
    steps_alone = metrics["train_runtime"] - sum(logged(trainer, "eval_runtime"))
    assert 0.5 * steps_alone < metrics["train_seconds_in_steps"] < 1.05 * steps_alone
    assert metrics["train_images_per_second"] == pytest.approx(20 / metrics["train_seconds_in_steps"], rel=0.01)
    assert trainer.speed.steps == 5
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("[")[0] for line in printed] == [f"step {step}/5 " for step in (2, 2, 4, 4, 5, 5)]
    assert "loss_kd" in printed[0] and "eval_mean_iou" in printed[1] and "train_images_per_second" in printed[5]

    resumed = distilling(tmp_path, **options)
    time.sleep(0.5)  # not a part of any step
    metrics = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3")).metrics
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    lines = [line for line in resumed.state.log_history if "images_per_second" in line]
    assert [line["step"] for line in lines] == [2, 4] and lines[0] == state["log_history"][0]
    assert all(line["images_per_second"] * sum(times_of(line).values()) == pytest.approx(4, rel=1e-3) for line in lines)
    logged_seconds = 2 * sum(sum(times_of(line).values()) for line in lines)
    assert logged_seconds < metrics["train_seconds_in_steps"] and resumed.speed.steps == 5


def test_peak_memory_is_in_mebibytes():
    """In a process of its own: the peak so far of this one hides any block, and not every kernel forgets it."""
    code = (
        "import re, torch; from pathlib import Path; from afdcd_hf.training.progress import peak_memory_mb;"
        "resident = int(re.search(r'VmRSS:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) / 1024;"
        "block = torch.ones(400, 2**18);"  # 400 MiB
        "print(peak_memory_mb(torch.device('cpu')) - resident)"
    )
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 380 < float(grown) < 420


@pytest.mark.parametrize("count", [8, 12], ids=["even", "shorter last step"])
def test_terms_are_logged_alike_however_a_batch_is_accumulated(tmp_path, count):
    """Of 12 samples, the epoch's second step accumulates two batches of two instead of four: it counts as much."""
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = distilling(
            tmp_path,
            without_batch_effects(segmenter(auxiliary_head=True)),
            without_batch_effects(segmenter(1, channels=48)),
            train_dataset=samples(count, scales=[1.0]),
            loss_kwargs=loss_options(mask="center"),
            train_sampling_strategy="sequential",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            dataloader_drop_last=False,
            logging_steps=2,
        )
        trainer.train()
        runs.append([line for line in trainer.state.log_history if "loss" in line])
    for whole, parts in zip(*runs, strict=True):
        assert [parts[name] for name in TERMS] == pytest.approx([whole[name] for name in TERMS], rel=1e-4)
        terms = [name for name in parts if name.startswith("loss_")]
        assert set(terms) == {*TERMS[1:], "loss_auxiliary"}
        assert sum(parts[name] for name in terms) == pytest.approx(parts["loss"], rel=1e-5)


def test_a_log_file_has_no_bars_and_a_second_training_does_not_log_what_was_left_of_the_first(tmp_path, capsys):
    trainer = supervised(tmp_path, max_steps=3, logging_steps=2, disable_tqdm=False)
    trainer.train()
    trainer.train()
    line = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert line["loss_task"] == pytest.approx(line["loss"], rel=1e-5)
    assert times_of(line).keys() == PARTS - {"teacher"}
    out, err = capsys.readouterr()
    assert out.startswith("step 2/3 [") and "\r" not in out + err
