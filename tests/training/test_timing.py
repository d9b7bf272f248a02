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

from afdcd_hf.training.timing import Speed, StepTimer

PARTS = {"data", "teacher", "student", "loss", "backward", "optimizer"}
TERMS = ["loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"]


def times_of(line: dict) -> dict:
    return {name.removeprefix("time_"): value for name, value in line.items() if name.startswith("time_")}


def test_each_lap_belongs_to_its_part_and_what_lies_between_steps_to_none(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("afdcd_hf.training.timing.time.perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"))
    nothing, alone = (None, None, None), SimpleNamespace(device=torch.device("cpu"), gather=lambda tensor: tensor)

    def spend(seconds: float) -> None:
        now[0] += seconds

    spend(5)
    timer.lap("loss")  # before the first step
    timer.on_epoch_begin(*nothing)
    for seconds in (1, 10):
        timer.images += 3
        for factor, part in ((1, "data"), (2, "student"), (4, "loss"), (8, "student")):
            spend(factor * seconds)
            timer.lap(part)
        spend(16 * seconds)
        timer.on_step_end(*nothing)
        spend(1000)  # an evaluation
        timer.on_evaluate(*nothing)
    assert timer.seconds_in_steps == 341
    speed = timer.take(alone)
    assert speed.split == {"data": 5.5, "student": 55, "loss": 22, "optimizer": 88} and speed.peak_memory_mb > 10
    assert (speed.steps, speed.images, speed.total_seconds, speed.images_per_second) == (2, 6, 341, 6 / 341)
    assert timer.take(alone).as_log() == {}
    spend(7)  # a step that is broken off does not reach into the next training
    timer.reset()
    timer.on_epoch_begin(*nothing)
    spend(2)
    timer.lap("data")
    assert timer.seconds_in_steps == timer.take(alone).seconds["data"] == 2


def test_the_speed_of_a_history_weighs_lines_by_their_steps():
    history = [
        {"step": 2, "images_per_second": 8.0, "time_data": 0.5, "time_backward": 0.5, "peak_memory_mb": 100.0},
        {"step": 2, "eval_mean_iou": 0.5},
        {"step": 6, "images_per_second": 4.0, "time_data": 1.0, "time_backward": 1.0},
    ]
    speed = Speed.of_history(history)
    assert speed == Speed(6, 2 * 8 + 8 * 4, {"data": 5.0, "backward": 5.0}, 100.0)
    times = {"train_time_data": 0.83333, "train_time_backward": 0.83333}
    assert speed.as_log("train_") == {"train_images_per_second": 4.8, **times, "train_peak_memory_mb": 100.0}
    assert Speed().as_log() == {} and Speed().images_per_second is None


def test_every_line_of_a_distillation_splits_the_step_and_the_parts_add_up(tmp_path, capsys):
    trainer = distilling(tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2)
    metrics = trainer.train().metrics
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(lines) == 2
    for line in lines:
        times = times_of(line)
        assert times.keys() == PARTS and all(type(value) is float and value > 0 for value in times.values())
        assert line["images_per_second"] * sum(times.values()) == pytest.approx(4, rel=1e-3)  # the batch
        assert 10 < line["peak_memory_mb"] < 1e5
    steps_alone = metrics["train_runtime"] - sum(logged(trainer, "eval_runtime"))
    assert 0.5 * steps_alone < metrics["train_seconds_in_steps"] < 1.05 * steps_alone
    assert metrics["train_images_per_second"] == pytest.approx(16 / metrics["train_seconds_in_steps"], rel=0.01)
    assert trainer.speed.steps == 4 and trainer.speed.images == pytest.approx(16, rel=1e-3)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("[")[0] for line in printed] == [f"step {step}/4 " for step in (2, 2, 4, 4, 4)]
    assert "loss_kd" in printed[0] and "eval_mean_iou" in printed[1] and "train_images_per_second" in printed[4]


def test_slow_data_is_told_from_a_slow_teacher(tmp_path):
    class Slow(type(samples())):
        def __getitem__(self, index):
            time.sleep(0.02)
            return super().__getitem__(index)

    data = samples()
    data.__class__ = Slow
    trainer = distilling(tmp_path, train_dataset=data)
    trainer.teacher.register_forward_hook(lambda *_: time.sleep(0.15))
    trainer.train()
    assert sum(logged(trainer, "time_data")) > 0.15  # 8 samples in all; accelerate loads the second batch ahead
    assert all(0.15 < value for value in logged(trainer, "time_teacher"))
    assert all(value < 0.1 for value in logged(trainer, "time_loss"))


def test_a_resumed_run_speaks_for_the_steps_before_it_and_its_own_times_are_sane(tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    distilling(tmp_path, **options).train()
    trainer = distilling(tmp_path, **options)
    time.sleep(0.5)  # not a part of any step
    metrics = trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3")).metrics
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    lines = [line for line in trainer.state.log_history if "images_per_second" in line]
    assert [line["step"] for line in lines] == [2, 4] and lines[0] == state["log_history"][0]
    assert all(line["images_per_second"] * sum(times_of(line).values()) == pytest.approx(4, rel=1e-3) for line in lines)
    logged_seconds = 2 * sum(sum(times_of(line).values()) for line in lines)
    assert logged_seconds < metrics["train_seconds_in_steps"] and trainer.speed.steps == 5


def test_peak_memory_is_in_mebibytes():
    """In a process of its own: this one's peak so far hides any block, and not every kernel forgets it on demand."""
    code = (
        "import re, torch; from pathlib import Path; from afdcd_hf.training.timing import peak_memory_mb;"
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
            max_steps=4,
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
