"""What the log says about speed and memory, and that the logged loss terms are means over whole steps."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace

import paths
import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, loss_options, samples, segmenter, supervised, without_batch_effects

from afdcd_hf.charts.curves import _loss_terms
from afdcd_hf.training.speed import Speed, peak_memory_mb
from afdcd_hf.training.timing import StepTimer

PARTS_AND_FORWARD = ("data", "teacher", "student", "loss", "forward", "backward", "optimizer")
PARTS = {"data", "teacher", "student", "loss", "backward", "optimizer"}


class HandClock:
    """Marks are what the test says the time is."""

    def __init__(self):
        self.time = 0.0

    def now(self):
        return self.time

    def seconds(self, begin, end):
        return end - begin

    def is_past(self, mark):
        return True

    def wait_for(self, mark):
        pass


@pytest.fixture
def timer():
    timer = StepTimer(torch.device("cpu"))
    timer._clock = HandClock()
    timer.reset()
    return timer


def spend(timer: StepTimer, seconds: float) -> None:
    timer._clock.time += seconds


def test_a_part_inside_another_takes_its_time_away_and_the_rest_is_the_optimizers(timer):
    timer.begin_step()
    spend(timer, 1)
    with timer("backward"):
        spend(timer, 2)
        with timer("student"):
            spend(timer, 4)
            with timer("loss"):
                spend(timer, 8)
            spend(timer, 16)
        spend(timer, 32)
    spend(timer, 64)
    timer.count(3)
    speed = timer.take()
    assert {part: value for part, value in speed.seconds.items() if value} == {
        "optimizer": 65, "backward": 34, "student": 20, "loss": 8,
    }  # fmt: skip
    assert (speed.steps, speed.images, speed.total_seconds, speed.images_per_second) == (1, 3, 127, 3 / 127)


def test_evaluation_and_saving_are_no_part_of_the_steps(timer):
    timer.begin_step()
    spend(timer, 1)
    with timer("evaluation"):
        spend(timer, 100)
    with timer("saving"):
        spend(timer, 100)
    timer.begin_step()
    spend(timer, 2)
    speed = timer.take()
    assert (speed.steps, speed.total_seconds, speed.split) == (2, 3, {"optimizer": 1.5})


def test_nothing_is_measured_outside_of_steps_nor_twice(timer):
    with timer("evaluation"):
        spend(timer, 5)
    timer.begin_step()
    spend(timer, 1)
    assert timer.take().total_seconds == 1
    assert timer.take().total_seconds == 0
    timer.reset()
    spend(timer, 7)
    assert timer.take().total_seconds == 0


def test_an_exception_in_a_part_leaves_the_timer_in_order(timer):
    timer.begin_step()
    with pytest.raises(KeyError), timer("backward"):
        timer.enter("student")  # as a forward hook whose counterpart never runs
        raise KeyError
    timer.begin_step()
    spend(timer, 2)
    assert timer.take().split == {"optimizer": 1.0}


def test_an_unknown_part_is_refused(timer):
    with pytest.raises(ValueError, match=r"no part 'teachr' .* teacher, student"):
        timer("teachr")


def test_the_timer_costs_next_to_nothing():
    timer = StepTimer(torch.device("cpu"))
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(200):
            timer.begin_step()
            for part in PARTS:
                with timer(part):
                    pass
        timer.take()
        best = min(best, (time.perf_counter() - start) / 200)
    assert best < 1e-3  # measured: 3e-5 s a step


def test_every_line_of_a_distillation_splits_the_step_and_the_parts_add_up(tmp_path):
    trainer = distilling(tmp_path, max_steps=4, logging_steps=2, eval_strategy="steps", eval_steps=2)
    metrics = trainer.train().metrics
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(lines) == 2
    for line in lines:
        times = {name.removeprefix("time_"): value for name, value in line.items() if name.startswith("time_")}
        assert times.keys() == PARTS and all(type(value) is float and value > 0 for value in times.values())
        assert line["images_per_second"] * sum(times.values()) == pytest.approx(4, rel=1e-3)  # the batch
        assert 10 < line["peak_memory_mb"] < 1e5
    steps_alone = metrics["train_runtime"] - sum(logged(trainer, "eval_runtime"))
    assert 0.5 * steps_alone < metrics["train_seconds_in_steps"] < 1.05 * steps_alone
    assert metrics["train_images_per_second"] == pytest.approx(16 / metrics["train_seconds_in_steps"], rel=0.01)
    assert trainer.speed.steps == 4 and trainer.speed.images == pytest.approx(16, rel=1e-3)


def test_times_and_memory_are_no_loss_terms_in_the_curves(tmp_path):
    trainer = distilling(tmp_path)
    trainer.train()
    terms = _loss_terms({"run": trainer.state.log_history})
    assert terms == ["loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"]


def test_a_supervised_training_has_no_teachers_time(tmp_path):
    trainer = supervised(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    trainer.train()
    line = trainer.state.log_history[-2]
    times = {name.removeprefix("time_"): value for name, value in line.items() if name.startswith("time_")}
    assert times.keys() == PARTS - {"teacher"}
    assert line["images_per_second"] * sum(times.values()) == pytest.approx(4, rel=1e-3)


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


def test_a_compiled_student_is_not_looked_into(tmp_path):
    trainer = distilling(tmp_path)
    assert trainer._forward_part == "student" and trainer.loss_module._forward_hooks
    compiled = distilling(tmp_path, torch_compile=True, torch_compile_backend="eager")
    assert compiled._forward_part == "forward" and not compiled.loss_module._forward_hooks
    compiled.train()
    assert {"time_teacher", "time_forward", "time_backward"} <= compiled.state.log_history[0].keys()
    assert not {"time_student", "time_loss"} & compiled.state.log_history[0].keys()


def test_a_resumed_run_speaks_for_the_steps_before_it_and_its_own_times_are_sane(tmp_path):
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    distilling(tmp_path, **options).train()
    trainer = distilling(tmp_path, **options)
    time.sleep(0.5)  # not a part of any step
    metrics = trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3")).metrics
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    lines = [line for line in trainer.state.log_history if "images_per_second" in line]
    assert [line["step"] for line in lines] == [2, 4] and lines[0] == state["log_history"][0]
    assert all(line["images_per_second"] * _step_time(line) == pytest.approx(4, rel=1e-3) for line in lines)
    assert metrics["train_seconds_in_steps"] >= 0.99 * (2 * _step_time(lines[0]) + 2 * _step_time(lines[1]))
    assert trainer.speed.steps == 5
    # the third step came after a line of the log and before the checkpoint: what it took is in the next line
    third = Speed.of_counts(
        {n: v.item() for n, v in load_file(tmp_path / "checkpoint-3/log_sums_0.safetensors").items()}
    )
    assert (third.steps, third.images) == (1, 4) and third.total_seconds > 0
    assert 2 * _step_time(lines[1]) > third.total_seconds


def test_a_timer_goes_on_from_what_another_had_measured(timer):
    timer.begin_step()
    timer.count(4)
    spend(timer, 1)
    with timer("saving"):
        counts = timer.look().as_counts()
    assert timer.look() == timer.take() == Speed(1, 4, {**dict.fromkeys(PARTS_AND_FORWARD, 0.0), "optimizer": 1.0})
    timer.reset()
    timer.begin_step()
    spend(timer, 3)
    timer.go_on_from(Speed.of_counts(counts))
    speed = timer.take()
    assert (speed.steps, speed.images, speed.total_seconds) == (2, 4, 4.0)
    assert Speed.of_counts({"loss": 1.0}) == Speed()


def _step_time(line: dict) -> float:
    return sum(value for name, value in line.items() if name.startswith("time_"))


def test_the_speed_of_a_history_weighs_lines_by_their_steps():
    history = [
        {"step": 2, "images_per_second": 8.0, "time_data": 0.5, "time_backward": 0.5, "peak_memory_mb": 100.0},
        {"step": 2, "eval_mean_iou": 0.5},
        {"step": 6, "images_per_second": 4.0, "time_data": 1.0, "time_backward": 1.0, "peak_memory_mb": 90.0},
    ]
    speed = Speed.of_history(history)
    assert speed == Speed(6, 2 * 8 + 8 * 4, {"data": 5.0, "backward": 5.0}, 100.0)
    assert speed.as_summary() == {
        "train_seconds_in_steps": 10.0,
        "train_images_per_second": 4.8,
        "train_time_data": 0.83333,
        "train_time_backward": 0.83333,
        "train_peak_memory_mb": 100.0,
    }
    assert Speed().as_log() == Speed().as_summary() == {} and Speed().images_per_second is None
    assert (replace(speed, peak_memory_mb=None) + Speed()).peak_memory_mb is None


def test_peak_memory_is_in_mebibytes(tmp_path):
    script = "import torch, sys; from afdcd_hf.training.speed import peak_memory_mb as peak; cpu = torch.device('cpu');"
    script += "before = peak(cpu); block = torch.ones(100, 2**20); print(peak(cpu) - before)"  # 400 MiB
    grown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True,
                           cwd=paths.ROOT)  # fmt: skip
    assert 380 < float(grown.stdout) < 420
    assert peak_memory_mb(torch.device("cpu")) > 0


@pytest.mark.parametrize("count", [8, 12], ids=["even", "shorter last step"])
def test_terms_are_logged_alike_however_a_batch_is_accumulated(tmp_path, count):
    """Of 12 samples, the epoch's second step accumulates two batches of two instead of four: it counts as much."""
    runs = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = distilling(
            tmp_path,
            without_batch_effects(segmenter()),
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
    names = ["loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"]
    for whole, parts in zip(*runs, strict=True):
        assert [parts[name] for name in names] == pytest.approx([whole[name] for name in names], rel=1e-4)
        assert sum(parts[name] for name in names[1:]) == pytest.approx(parts["loss"], rel=1e-5)
