"""Where the time of training steps goes, how fast they are, and how much memory they take."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

# "forward" stands for student and loss where they are one compiled graph.
PARTS = ("data", "teacher", "student", "loss", "forward", "backward", "optimizer")
_MANY_LAPS = 2048


@dataclass(frozen=True)
class Speed:
    """What was measured over some training steps, without evaluations, logging and saving.

    Attributes:
        steps: optimizer steps.
        images: images trained on, over all processes.
        seconds: part of the step -> its time over all these steps; the parts add up to the wall-clock time.
        peak_memory_mb: highest so far, in MiB; None where it is not known.
    """

    steps: int = 0
    images: float = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None

    @classmethod
    def of_history(cls, history: Iterable[Mapping[str, Any]]) -> Speed:
        """The sum over a Trainer's log, in which each line stands for all steps since the line before.

        Steps that were not measured, as those between the last line and a checkpoint that was resumed from, count as
        the measured ones of their line.
        """
        total, last_step = cls(), 0
        for line in history:
            if "images_per_second" in line:
                steps, last_step = line["step"] - last_step, line["step"]
                seconds = {part: steps * line[f"time_{part}"] for part in PARTS if f"time_{part}" in line}
                images = line["images_per_second"] * sum(seconds.values())
                total += cls(steps, images, seconds, line.get("peak_memory_mb"))
        return total

    def __add__(self, other: Speed) -> Speed:
        parts = [part for part in PARTS if part in self.seconds or part in other.seconds]
        seconds = {part: self.seconds.get(part, 0.0) + other.seconds.get(part, 0.0) for part in parts}
        peaks = [peak for peak in (self.peak_memory_mb, other.peak_memory_mb) if peak is not None]
        return Speed(self.steps + other.steps, self.images + other.images, seconds, max(peaks, default=None))

    @property
    def total_seconds(self) -> float:
        """Wall-clock time of the steps."""
        return sum(self.seconds.values())

    @property
    def images_per_second(self) -> float | None:
        """None where nothing was measured."""
        return self.images / self.total_seconds if self.total_seconds > 0 else None

    @property
    def split(self) -> dict[str, float]:
        """Seconds a step of each part that took any."""
        return {part: value / self.steps for part, value in self.seconds.items() if value > 0} if self.steps else {}

    def as_log(self, prefix: str = "") -> dict[str, float]:
        """Plain numbers for a line of the log; none where no step was measured."""
        if not self.split:
            return {}
        rates = {"images_per_second": self.images_per_second or 0.0}
        rates |= {f"time_{part}": value for part, value in self.split.items()}
        if self.peak_memory_mb is not None:
            rates["peak_memory_mb"] = self.peak_memory_mb
        return {f"{prefix}{name}": float(f"{value:.5g}") for name, value in rates.items()}


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory in MiB: what tensors took on a CUDA device since the training began, evaluations included.

    Elsewhere the resident memory of this process since it started, without its data workers; None but on Linux.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # getrusage would start at what the parent process took
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


class StepTimer(TrainerCallback):
    """A stopwatch with a lap for each part of a step; logging, evaluating and saving between steps are not counted.

    On a CUDA device marks are events in its stream: the loop is never held up, and "data" is the time for which the GPU
    had nothing to do because a batch was missing. Elsewhere the host's clock is read.

    Attributes:
        images: that the steps since the last line of the log have trained on, in this process.
        seconds_in_steps: since `reset`, up to the last lap, by the host's clock also on a GPU.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget everything; no lap is counted until a training begins."""
        self.seconds_in_steps = self._host = 0.0
        self._mark: Any = None
        self._start_afresh()

    def lap(self, part: str) -> None:
        """The time since the last lap, or since the step began, was spent on `part`."""
        if self._mark is not None:
            mark, host = self._mark, self._host
            self._start()
            self._laps.append((part, mark, self._mark))
            self.seconds_in_steps += self._host - host

    def take(self, accelerator: Accelerator) -> Speed:
        """What was measured since the last call, and start afresh; every process has to call this.

        All processes' images, the mean of their times, and their highest peak of memory.
        """
        self._add_up()
        peak = peak_memory_mb(accelerator.device)
        mine = [float(self.images), math.nan if peak is None else peak, *self._seconds.values()]
        ranks = accelerator.gather(torch.tensor([mine], device=accelerator.device)).cpu()
        peaks = [value for value in ranks[:, 1].tolist() if not math.isnan(value)]
        seconds = dict(zip(PARTS, ranks[:, 2:].mean(0).tolist(), strict=True))
        speed = Speed(self._steps, ranks[:, 0].sum().item(), seconds, max(peaks, default=None))
        self._start_afresh()
        return speed

    def on_epoch_begin(self, args, state, control, **kwargs):
        """The next step begins, with waiting for its data; so it does after all else that is done between steps."""
        self._start()

    on_log = on_evaluate = on_save = on_epoch_begin

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """The gradients are there; likewise after a batch that is only accumulated."""
        self.lap("backward")

    on_substep_end = on_pre_optimizer_step

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.lap("optimizer")

    def on_step_end(self, args, state, control, **kwargs):
        self.lap("optimizer")
        self._steps += 1
        if len(self._laps) > _MANY_LAPS:
            self._add_up()

    def on_train_end(self, args, state, control, **kwargs):
        self._mark = None

    def _start(self) -> None:
        self._host = self._mark = time.perf_counter()
        if self._on_gpu:
            self._mark = torch.cuda.Event(enable_timing=True)
            self._mark.record()

    def _start_afresh(self) -> None:
        self._steps = self.images = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._laps: list[tuple[str, Any, Any]] = []

    def _add_up(self) -> None:
        if self._on_gpu and self._laps:
            self._laps[-1][2].synchronize()
        for part, begin, end in self._laps:
            self._seconds[part] += begin.elapsed_time(end) / 1e3 if self._on_gpu else end - begin
        self._laps = []
