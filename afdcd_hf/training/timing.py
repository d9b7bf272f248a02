"""Where the time of a training step goes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from accelerate.utils import DynamoBackend
from torch import nn

from .speed import PARTS, Speed, across_ranks, peak_memory_mb

REST = "optimizer"
NOT_TRAINING = ("evaluation", "saving")
_MANY_SPANS = 2048


class StepTimer:
    """Splits the time of training steps into parts: `with timer("teacher"): ...`.

    A step lasts from asking for its batches to asking for the next ones. Parts exclude each other: a part inside
    another one takes its time away from it, and what no part claims is "optimizer", the rest. So the parts add up to
    the wall-clock time. "evaluation" and "saving" are taken out of the step.

    On a CUDA device, marks are events in its stream: the loop is never held up, and "data" is the time for which the
    GPU had nothing to do because a batch was missing. Elsewhere the host's clock is read. Outside of steps
    (evaluation after the training, say) nothing is measured.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: torch.device):
        self._clock = _CudaClock() if device.type == "cuda" else _HostClock()
        self._parts = {name: _Part(self, name) for name in (*PARTS, *NOT_TRAINING)}
        self.reset()

    def reset(self) -> None:
        """Forget everything; nothing is measured until the next `begin_step`."""
        self._stack: list[str] = []
        self._since: Any = None
        self._spans: list[_Span] = []
        self._host_seconds = self._host_since = 0.0
        self._start_afresh()

    def __call__(self, part: str) -> _Part:
        """The context in which time belongs to `part`; ValueError for a name that is not known."""
        if part not in self._parts:
            raise ValueError(f"There is no part {part!r} of a step; known: {', '.join(self._parts)}.")
        return self._parts[part]

    def attach(self, module: nn.Module, part: str) -> None:
        """Count every forward pass of `module` as `part`. Not for modules that are compiled: hooks break the graph."""
        module.register_forward_pre_hook(lambda *_: self.enter(part))
        module.register_forward_hook(lambda *_: self.leave(part))

    @property
    def seconds_in_steps(self) -> float:
        """Since `reset`, by the host's clock also on a GPU, which lags a little behind it; not for measuring parts."""
        return self._host_seconds + (self._host_since_cut(time.perf_counter()) if self._stack else 0.0)

    def begin_step(self) -> None:
        """The time from now on belongs to a new step."""
        if self._stack:
            self._cut()
        else:
            self._since, self._host_since = self._clock.now(), time.perf_counter()
        self._stack = [REST]  # also after an exception inside a part
        self._steps += 1
        if len(self._spans) > _MANY_SPANS:
            self._add_up([span for span in self._spans if self._clock.is_past(span.end)])

    def count(self, images: int) -> None:
        """Images that this step trains on, in this process."""
        self._images += images

    def enter(self, part: str) -> None:
        """Begin a part inside the present one."""
        if self._stack:
            self._cut()
            self._stack.append(part)

    def leave(self, part: str) -> None:
        """Go back to the part around it."""
        if len(self._stack) > 1 and self._stack[-1] == part:
            self._cut()
            self._stack.pop()

    def take(self) -> Speed:
        """What was measured since the last call; waits for the device. Peak memory is left out."""
        speed = self.look()
        self._start_afresh()
        return speed

    def look(self) -> Speed:
        """As `take`, which will give it once more."""
        if self._stack:
            self._cut()
            self._clock.wait_for(self._since)
        self._add_up(self._spans)
        seconds = {part: self._seconds[part] for part in PARTS}
        return Speed(self._steps, self._images, seconds)

    def go_on_from(self, speed: Speed) -> None:
        """Add what an interrupted training had measured and not taken yet."""
        self._steps += speed.steps
        self._images += speed.images
        for part, seconds in speed.seconds.items():
            self._seconds[part] += seconds

    def _start_afresh(self) -> None:
        self._steps = self._images = 0
        self._seconds = dict.fromkeys(self._parts, 0.0)

    def _cut(self) -> None:
        now, host_now = self._clock.now(), time.perf_counter()
        self._spans.append(_Span(self._stack[-1], self._since, now))
        self._host_seconds += self._host_since_cut(host_now)
        self._since, self._host_since = now, host_now

    def _host_since_cut(self, host_now: float) -> float:
        """Seconds of training since the last cut: none during evaluations and saving."""
        return 0.0 if self._stack[-1] in NOT_TRAINING else host_now - self._host_since

    def _add_up(self, spans: list[_Span]) -> None:
        """Of the oldest spans; events are read here, not in the loop."""
        for part, begin, end in spans:
            self._seconds[part] += self._clock.seconds(begin, end)
        self._spans = self._spans[len(spans) :]


class Timing:
    """Times the steps of a trainer and logs it with every loss; mixed into `SegmentationTrainer` in front of the rest.

    Attributes:
        timer: for what wants to have a part of its own.
        speed: of the whole training, also of its parts before a resumption; None before its end, or without steps.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.timer = StepTimer(self.args.device)
        self.speed: Speed | None = None

    def train(self, *args, **kwargs):
        """As in transformers; its metrics also have images per second, seconds in steps, and peak memory."""
        self.timer.reset()
        self.speed = None
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.args.device)
        return super().train(*args, **kwargs)

    def get_batch_samples(self, *args, **kwargs):
        """As in transformers, which calls it once an optimizer step; this is the time spent waiting for data."""
        self.timer.begin_step()
        with self.timer("data"):
            batches, items = super().get_batch_samples(*args, **kwargs)
        self.timer.count(sum(len(batch["pixel_values"]) for batch in batches))
        return batches, items

    def training_step(self, *args, **kwargs):
        """As in transformers: what `compute_loss` does not claim for teacher, student and loss is the backward pass."""
        with self.timer("backward"):
            return super().training_step(*args, **kwargs)

    def _save_checkpoint(self, *args, **kwargs):
        with self.timer("saving"):
            return super()._save_checkpoint(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add `images_per_second`, `time_<part>` (seconds a step) and `peak_memory_mb`; a summary at the end."""
        if "loss" in logs:
            logs.update(self._measured().as_log())
        elif "train_runtime" in logs:
            self.speed = Speed.of_history(self.state.log_history) + self._measured()
            self.timer.reset()
            logs.update(self.speed.as_summary())
        super().log(logs, start_time)

    def _time_losses(self, *losses: nn.Module) -> str:
        """Time the losses that are computed inside the module which is trained.

        Returns:
            The part to which a call of that module belongs: "student"; or "forward" where it cannot be looked into,
            because it is compiled as a whole or runs in several threads.
        """
        if self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO or self.args.n_gpu > 1:
            return "forward"
        for loss in losses:
            self.timer.attach(loss, "loss")
        return "student"

    def _measured(self) -> Speed:
        return across_ranks(self.timer.take(), peak_memory_mb(self.args.device), self.accelerator)


class _Part:
    """One part of the step as a context; written out, because a generator would take twice as long."""

    def __init__(self, timer: StepTimer, name: str):
        self._timer = timer
        self._name = name

    def __enter__(self) -> None:
        self._timer.enter(self._name)

    def __exit__(self, *exception) -> None:
        self._timer.leave(self._name)


class _Span(NamedTuple):
    """Time that belonged to one part, between two marks of the clock."""

    part: str
    begin: Any
    end: Any


class _HostClock:
    """Marks are seconds."""

    now = staticmethod(time.perf_counter)

    def seconds(self, begin: float, end: float) -> float:
        return end - begin

    def is_past(self, mark: float) -> bool:
        return True

    def wait_for(self, mark: float) -> None:
        """Nothing to wait for."""


class _CudaClock:
    """Marks are events in the current stream; setting one does not wait for it."""

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1e3

    def is_past(self, mark: torch.cuda.Event) -> bool:
        return mark.query()

    def wait_for(self, mark: torch.cuda.Event) -> None:
        mark.synchronize()
