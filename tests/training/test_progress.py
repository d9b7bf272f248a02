"""Speed, memory and loss terms in the log, and its format without a terminal."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from tiny import distilling, logged, loss_options, samples, segmenter, supervised, without_batch_effects

from afdcd_hf.training.progress import StepTimer, summarize_speed

PARTS = {"data", "teacher", "student", "loss", "backward", "optimizer"}
TERMS = ["loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"]


def times_of(line: dict) -> dict:
    return {name.removeprefix("time_"): value for name, value in line.items() if name.startswith("time_")}


def test_each_lap_counts_for_its_part_and_time_between_steps_does_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("afdcd_hf.training.progress.time.perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"))
    nothing, alone = (None, None, None), SimpleNamespace(device=torch.device("cpu"), gather=lambda tensor: tensor)

    def spend(seconds: float, part: str) -> None:
        now[0] += seconds
        timer.lap(part)

    spend(5, "loss")  # before the first step
    timer.on_epoch_begin(*nothing)
    for seconds in (1, 10):
        timer.images += 3
        for factor, part in ((1, "data"), (2, "student"), (4, "loss"), (8, "student"), (16, "backward")):
            spend(factor * seconds, part)
        timer.on_step_end(*nothing)
        now[0] += 1000  # an evaluation
        timer.on_evaluate(*nothing)
    assert timer.seconds_in_steps == 341
    line = timer.take(alone)
    assert times_of(line) == {"data": 5.5, "student": 55, "loss": 22, "backward": 88} and line["peak_memory_mb"] > 10
    assert line["images_per_second"] == pytest.approx(6 / 341, rel=1e-4) and timer.take(alone) == {}


def test_the_speed_summary_weights_log_lines_by_their_steps():
    history = [
        {"step": 2, "images_per_second": 8.0, "time_data": 0.5, "time_backward": 0.5, "peak_memory_mb": 100.0},
        {"step": 2, "eval_mean_iou": 0.5},
        {"step": 6, "images_per_second": 4.0, "time_data": 1.0, "time_backward": 1.0},
    ]
    split = {"data": 5 / 6, "backward": 5 / 6}
    speed = {"seconds_in_steps": 10.0, "images_per_second": (2 * 8 + 8 * 4) / 10, "time_split": split}
    assert summarize_speed(history) == {**speed, "peak_memory_mb": 100.0} and summarize_speed(history[1:2]) == {}


def test_every_log_line_splits_the_step_time_even_after_resuming_and_shows_a_slow_teacher(tmp_path, capsys):
    options = {"max_steps": 5, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
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
    steps_alone = metrics["train_runtime"] - sum(logged(trainer, "eval_runtime"))
    assert 0.5 * steps_alone < metrics["train_seconds_in_steps"] < 1.05 * steps_alone
    assert metrics["train_images_per_second"] == pytest.approx(20 / metrics["train_seconds_in_steps"], rel=0.01)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("[")[0] for line in printed] == [f"step {step}/5 " for step in (2, 2, 4, 4, 5, 5)]
    assert "loss_kd" in printed[0] and "eval_mean_iou" in printed[1] and "train_images_per_second" in printed[5]

    resumed = distilling(tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    again = [line for line in resumed.state.log_history if "images_per_second" in line]
    assert [line["step"] for line in again] == [2, 4] and again[0] == lines[0]
    assert resumed.speed["images_per_second"] > 0


def test_logged_terms_do_not_depend_on_accumulation(tmp_path):
    """With 12 samples, the epoch's second step accumulates only two batches of two, but has equal weight."""
    runs, options = [], {"train_sampling_strategy": "sequential", "dataloader_drop_last": False, "logging_steps": 2}
    options |= {"train_dataset": samples(12, scales=[1.0]), "loss_kwargs": loss_options(mask="center")}
    for batch, accumulation in ((8, 1), (2, 4)):
        options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = distilling(tmp_path, without_batch_effects(segmenter(auxiliary_head=True)), **options)
        trainer.train()
        runs.append([line for line in trainer.state.log_history if "loss" in line])
    for whole, parts in zip(*runs, strict=True):
        assert [parts[name] for name in TERMS] == pytest.approx([whole[name] for name in TERMS], rel=1e-4)
        terms = [name for name in parts if name.startswith("loss_")]
        assert set(terms) == {*TERMS[1:], "loss_auxiliary"}
        assert sum(parts[name] for name in terms) == pytest.approx(parts["loss"], rel=1e-5)


def test_a_log_file_has_no_bars_and_a_second_training_logs_nothing_left_over_from_the_first(tmp_path, capsys):
    trainer = supervised(tmp_path, max_steps=3, logging_steps=2, disable_tqdm=False)
    trainer.train()
    trainer.train()
    line = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert line["loss_task"] == pytest.approx(line["loss"], rel=1e-5)
    assert times_of(line).keys() == PARTS - {"teacher"}
    out, err = capsys.readouterr()
    assert out.startswith("step 2/3 [") and "\r" not in out + err
