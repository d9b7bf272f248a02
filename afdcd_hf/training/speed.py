"""How fast a training is and how much memory it takes, as the log and the model card say it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

# "forward" stands for student and loss where they are one compiled graph.
PARTS = ("data", "teacher", "student", "loss", "forward", "backward", "optimizer")
_MIB = 1024**2


@dataclass(frozen=True)
class Speed:
    """What was measured over some training steps, evaluations and saving left out.

    Attributes:
        steps: Optimizer steps.
        images: Images trained on.
        seconds: Part of the step to its time over all these steps; the parts add up to the wall-clock time.
        peak_memory_mb: Highest so far, in MiB; None where it is not known.
    """

    steps: int = 0
    images: float = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None

    @classmethod
    def of_history(cls, history: Iterable[Mapping[str, Any]]) -> Speed:
        """Of all lines in a Trainer's log, each standing for the steps since the line before.

        Also for those that it has not measured: of a run that was resumed with another number of processes.
        """
        total, last_step = cls(), 0
        for line in history:
            if "images_per_second" in line:
                total += cls._of_line(line, line["step"] - last_step)
                last_step = line["step"]
        return total

    @classmethod
    def _of_line(cls, line: Mapping[str, Any], steps: int) -> Speed:
        seconds = {part: steps * line[f"time_{part}"] for part in PARTS if f"time_{part}" in line}
        images = line["images_per_second"] * sum(seconds.values())
        return cls(steps, images, seconds, line.get("peak_memory_mb"))

    @classmethod
    def of_counts(cls, counts: Mapping[str, float]) -> Speed:
        """Of what `as_counts` gave; nothing where it is not in there."""
        seconds = {part: counts[f"seconds.{part}"] for part in PARTS if f"seconds.{part}" in counts}
        return cls(int(counts.get("timed_steps", 0)), counts.get("timed_images", 0.0), seconds)

    def as_counts(self) -> dict[str, float]:
        """Plain numbers for a checkpoint, without the peak of memory."""
        seconds = {f"seconds.{part}": value for part, value in self.seconds.items()}
        return {"timed_steps": self.steps, "timed_images": self.images, **seconds}

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

    def as_log(self) -> dict[str, float]:
        """Plain numbers for one line of the log; none where no step was measured."""
        if not self.split:
            return {}
        return self._rates("")

    def as_summary(self) -> dict[str, float]:
        """Plain numbers for the last line of the log."""
        if not self.split:
            return {}
        return {"train_seconds_in_steps": round(self.total_seconds, 3), **self._rates("train_")}

    def _rates(self, prefix: str) -> dict[str, float]:
        rates = {"images_per_second": self.images_per_second}
        rates |= {f"time_{part}": value for part, value in self.split.items()}
        if self.peak_memory_mb is not None:
            rates["peak_memory_mb"] = self.peak_memory_mb
        return {f"{prefix}{name}": float(f"{value:.5g}") for name, value in rates.items()}


def across_ranks(speed: Speed, peak_memory_mb: float | None, accelerator: Accelerator) -> Speed:
    """The sum of all processes' images, the mean of their times and the highest of their peaks.

    Every process has to call this.
    """
    peak = math.nan if peak_memory_mb is None else peak_memory_mb
    mine = [float(speed.images), peak, *(speed.seconds.get(part, 0.0) for part in PARTS)]
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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MIB if sys.platform == "darwin" else 1024)  # in bytes on macOS, in KiB elsewhere
