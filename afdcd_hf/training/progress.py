"""Progress of a run: loss terms, time per part of a step, speed and peak memory."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_in_notebook

logger = logging.getLogger(__name__)

# "forward" is student and loss together, if they are compiled into one graph.
PARTS = ("data", "teacher", "student", "loss", "forward", "backward", "optimizer")
_MAX_PENDING_LAPS = 2048
_LEFT_OUT = ("epoch", "total_flos", "time_", "train_time_")  # prefixes not printed by `LogLines`


class TermMeans:
    """Means of the loss terms since the last log line. A term counts as 0 in steps without it."""

    def __init__(self, *, report: bool = False) -> None:
        self._report = report  # whether to log the terms of the first batch
        self.load({})

    def add(self, terms: Mapping[str, Tensor], share: float) -> None:
        """Add the detached terms of a batch that makes up this share of an optimizer step."""
        if self._report:
            self._report = False
            report_first_terms({name: term.item() for name, term in terms.items()})
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + share * term
        self._steps += share

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over ranks and steps, and reset. Call on every process."""
        if not self._steps:
            return {}
        means = accelerator.reduce(torch.stack(list(self._sums.values())) / self._steps, "mean").tolist()
        named = dict(zip(self._sums, means, strict=True))
        self.load({})
        return named

    def state(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs to write the same next log line."""
        return {**self._sums, "": torch.tensor(self._steps, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned; an empty mapping resets."""
        self._sums = {name: total for name, total in state.items() if name}
        self._steps = state[""].item() if state else 0.0


def report_first_terms(terms: dict[str, float]) -> None:
    """Log the weighted terms: with another teacher or crop, published weights can be off by orders of magnitude."""
    logger.info("Weighted loss terms of the first batch: %s", ", ".join(f"{k} {v:.4g}" for k, v in terms.items()))
    task = terms.get("task", 0.0)
    for name, value in terms.items():
        if task > 0 and name not in ("task", "auxiliary") and not 0.01 <= abs(value) / task <= 20:
            logger.warning(
                "The weighted loss term %r is %.4g on the first batch: it %s the task loss (%.4g). Change its weight; "
                "with reduction='mean', if the loss has that option, weights carry over to other teachers and crops.",
                name, value, "dominates" if abs(value) > task else "is negligible next to", task,
            )  # fmt: skip


def summarize_speed(history: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the speed in a Trainer's log for the card; each line covers the steps since the previous one."""
    seconds, steps, images, peak = dict.fromkeys(PARTS, 0.0), 0, 0.0, 0.0
    for line in history:
        if "images_per_second" in line:
            count, steps = line["step"] - steps, line["step"]
            times = {part: count * line.get(f"time_{part}", 0.0) for part in PARTS}
            seconds = {part: seconds[part] + times[part] for part in PARTS}
            images += line["images_per_second"] * sum(times.values())
            peak = max(peak, line.get("peak_memory_mb", 0.0))
    if not (total := sum(seconds.values())):
        return {}
    split = {part: value / steps for part, value in seconds.items() if value > 0}
    speed = {"seconds_in_steps": total, "images_per_second": images / total, "time_split": split}
    return {**speed, "peak_memory_mb": peak or None}


def peak_memory_mb(device: torch.device) -> float:
    """Return peak MiB: of tensors on a CUDA device since training began, else of the process (0 if not Linux)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # getrusage would include the parent's memory before the fork
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)


class StepTimer(TrainerCallback):
    """Times each part of a step as a lap; logging, evaluation and saving between steps are not counted.

    On a CUDA device laps are measured with events, so the loop never synchronises, and "data" is the time that the GPU
    waited for a batch. `images` counts from the last log line, `seconds_in_steps` (host time) from `reset`.
    """

    def __init__(self, device: torch.device):
        self._device, self._on_gpu = device, device.type == "cuda"
        self.reset()

    def reset(self) -> None:
        """Reset everything; no lap is counted until an epoch begins."""
        self.seconds_in_steps = self._host = 0.0
        self._mark: Any = None
        self._clear()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)

    def lap(self, part: str) -> None:
        """Count the time since the last lap, or since the step began, as spent on `part`."""
        if self._mark is not None:
            mark, host = self._mark, self._host
            self._start()
            self._laps.append((part, mark, self._mark))
            self.seconds_in_steps += self._host - host

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Return `images_per_second` (all processes), `time_<part>` per step (their mean) and `peak_memory_mb` (the
        highest) since the last call. Call on every process."""
        self._sum_laps()
        local = [float(self.images), peak_memory_mb(accelerator.device), *self._seconds.values()]
        ranks = accelerator.gather(torch.tensor([local], device=accelerator.device)).cpu()
        seconds, steps = dict(zip(PARTS, ranks[:, 2:].mean(0).tolist(), strict=True)), self._steps
        self._clear()
        if not steps or not (total := sum(seconds.values())):
            return {}
        line = {"images_per_second": ranks[:, 0].sum().item() / total}
        line |= {f"time_{part}": value / steps for part, value in seconds.items() if value > 0}
        line |= {"peak_memory_mb": peak} if (peak := ranks[:, 1].max().item()) else {}
        return {name: float(f"{value:.5g}") for name, value in line.items()}

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Start the next step, which begins with waiting for data; also after logging, evaluation and saving."""
        self._start()

    on_log = on_evaluate = on_save = on_epoch_begin

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """End the backward pass, also of a batch that is only accumulated."""
        self.lap("backward")

    on_substep_end = on_pre_optimizer_step

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.lap("optimizer")

    def on_step_end(self, args, state, control, **kwargs):
        self.lap("optimizer")
        self._steps += 1
        if len(self._laps) > _MAX_PENDING_LAPS:
            self._sum_laps()

    def on_train_end(self, args, state, control, **kwargs):
        self._mark = None

    def _start(self) -> None:
        self._host = self._mark = time.perf_counter()
        if self._on_gpu:
            self._mark = torch.cuda.Event(enable_timing=True)
            self._mark.record()

    def _clear(self) -> None:
        self._steps = self.images = 0
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._laps: list[tuple[str, Any, Any]] = []

    def _sum_laps(self) -> None:
        if self._on_gpu and self._laps:
            self._laps[-1][2].synchronize()
        for part, begin, end in self._laps:
            self._seconds[part] += begin.elapsed_time(end) / 1e3 if self._on_gpu else end - begin
        self._laps = []


class LogLines(TrainerCallback):
    """Prints `step 50/400 [00:12<01:27] loss 1.23, loss_task 0.8, ...` on the main process."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or not state.is_world_process_zero or not hasattr(self, "_start"):
            return
        elapsed = time.perf_counter() - self._start
        left = elapsed / max(state.global_step - self._first_step, 1) * (state.max_steps - state.global_step)
        clock = f"{tqdm.format_interval(elapsed)}<{tqdm.format_interval(left)}"
        plain = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in logs.items()}
        shown = ", ".join(f"{name} {value}" for name, value in plain.items() if not name.startswith(_LEFT_OUT))
        print(f"step {state.global_step}/{state.max_steps} [{clock}] {shown}", flush=True)


def shows_progress_bars(args: TrainingArguments) -> bool:
    """Whether bars are wanted (`disable_tqdm`) and can be drawn; in a log file, every update would be a line."""
    return not args.disable_tqdm and (is_in_notebook() or sys.stderr.isatty())


def use_log_lines_without_terminal(trainer: Trainer) -> None:
    """If no bar can be drawn, replace transformers' bar, or its printer, which omits the step, with `LogLines`."""
    if not shows_progress_bars(trainer.args):
        trainer.remove_callback(PrinterCallback if trainer.args.disable_tqdm else ProgressCallback)
        trainer.add_callback(LogLines())
