"""Where the time of training steps goes, how fast they are, and how much memory they take."""

from __future__ import annotations

import math
import sys
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
_MIB = 1024**2
_MANY_LAPS = 2048


@dataclass(frozen=True)
class Speed:
    """What was measured over some training steps, without evaluations, logging and saving.

    Attributes:
        steps: optimizer steps.
        images: images trained on.
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
        """Over all processes; None where nothing was measured."""
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

    def as_summary(self) -> dict[str, float]:
        """The same for the last line of the log, with the total."""
        log = self.as_log("train_")
        return {"train_seconds_in_steps": round(self.total_seconds, 3), **log} if log else {}


def across_ranks(speed: Speed, accelerator: Accelerator) -> Speed:
    """The sum of all processes' images, the mean of their times and the highest of their peaks of memory.

    Every process has to call this.
    """
    peak = peak_memory_mb(accelerator.device)
    mine = [float(speed.images), math.nan if peak is None else peak, *(speed.seconds.get(part, 0.0) for part in PARTS)]
    ranks = accelerator.gather(torch.tensor([mine], device=accelerator.device)).cpu()
    peaks = [value for value in ranks[:, 1].tolist() if not math.isnan(value)]
    seconds = dict(zip(PARTS, ranks[:, 2:].mean(0).tolist(), strict=True))
    return Speed(speed.steps, ranks[:, 0].sum().item(), seconds, max(peaks, default=None))


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory in MiB: what tensors took on a CUDA device since the training began, evaluations included.

    Elsewhere the resident memory of this process since it started, without its data workers; None on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, whose getrusage starts at what the parent process took
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (_MIB if sys.platform == "darwin" else 1024)  # in bytes on macOS, in KiB elsewhere


class StepTimer:
    """A stopwatch with laps: `start` at the beginning of a step, then `lap` where each part of it ends.

    On a CUDA device marks are events in its stream: the loop is never held up, and "data" is the time for which the GPU
    had nothing to do because a batch was missing. Elsewhere the host's clock is read. Between `stop` and the next
    `start` laps are not counted.

    Args:
        device: where the training runs.

    Attributes:
        seconds_in_steps: since `reset`, up to the last lap, by the host's clock also on a GPU.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.seconds_in_steps = self._host = 0.0
        self._laps: list[tuple[str, Any, Any]] = []
        self._mark: Any = None
        self._start_afresh()

    def start(self) -> None:
        """A step begins."""
        self._mark, self._host = self._now(), time.perf_counter()
        self._steps += 1
        if len(self._laps) > _MANY_LAPS:
            self._add_up()

    def count(self, images: int) -> None:
        """Images that this step trains on, in this process."""
        self._images += images

    def lap(self, part: str) -> None:
        """The time since the last lap, or since the start, was spent on `part`."""
        if self._mark is not None:
            now, host = self._now(), time.perf_counter()
            self._laps.append((part, self._mark, now))
            self.seconds_in_steps += host - self._host
            self._mark, self._host = now, host

    def stop(self) -> None:
        """The step is over."""
        self._mark = None

    def take(self) -> Speed:
        """What was measured since the last call; waits for the device. Peak memory is left out."""
        self._add_up()
        speed = Speed(self._steps, self._images, self._seconds)
        self._start_afresh()
        return speed

    def _start_afresh(self) -> None:
        self._steps = self._images = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def _add_up(self) -> None:
        if self._on_gpu and self._laps:
            self._laps[-1][2].synchronize()
        for part, begin, end in self._laps:
            self._seconds[part] += begin.elapsed_time(end) / 1e3 if self._on_gpu else end - begin
        self._laps = []

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class TimingCallback(TrainerCallback):
    """Ends the laps of a step that the Trainer itself runs: backward pass and optimizer."""

    def __init__(self, timer: StepTimer):
        self.timer = timer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """The gradients are there; likewise after a batch that is only accumulated."""
        self.timer.lap("backward")

    on_substep_end = on_pre_optimizer_step

    def on_optimizer_step(self, args, state, control, **kwargs):
        """The weights have changed."""
        self.timer.lap("optimizer")

    def on_step_end(self, args, state, control, **kwargs):
        """What follows, logging, evaluation and saving, is not part of the step."""
        self.timer.lap("optimizer")
        self.timer.stop()
