"""What a training shows on the terminal or in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.utils import is_in_notebook

from .speed import PARTS

_BAR_FORMAT = "{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class TrainingProgress(ProgressCallback):
    """One bar with the latest loss terms; or, where there is no terminal, one plain line for every line of the log.

    Evaluations and the summary at the end get a line each. Only the main process shows anything.

    Args:
        bar: whether to draw a bar.
    """

    def __init__(self, bar: bool):
        super().__init__()
        self._bar = bar
        self._start = 0.0
        self._first_step = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the bar, of a resumed run at the step where it goes on."""
        self._start, self._first_step = time.perf_counter(), state.global_step
        self.current_step = state.global_step
        if self._bar and state.is_world_process_zero:
            options = {"initial": state.global_step, "bar_format": _BAR_FORMAT, "dynamic_ncols": True}
            self.training_bar = tqdm(total=state.max_steps, **options)

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the bar on."""
        if self.training_bar is not None:
            self.training_bar.total = state.max_steps  # with max_seconds it is an estimate
            super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs: Mapping[str, Any] | None = None, **kwargs):
        """Shows one line of the log."""
        if logs is None or not state.is_world_process_zero:
            return
        if "loss" in logs and self.training_bar is not None:
            self.training_bar.set_postfix_str(_terms(logs))
        elif "loss" in logs:
            tqdm.write(f"step {_count(args, state)} [{self._clock(state)}] {_terms(logs)}")
        elif scores := _scores(logs):
            tqdm.write(f"step {_count(args, state)}: {scores}")
        elif "train_runtime" in logs:
            self._finish(state, logs)

    def on_train_end(self, args, state, control, **kwargs):
        """Closes the bar, if the last line of the log has not."""
        self._close()

    def _finish(self, state, logs: Mapping[str, Any]) -> None:
        self._close()
        steps, seconds = state.global_step - self._first_step, logs["train_runtime"]
        if steps > 0:
            tqdm.write(f"{steps} step{'s' * (steps > 1)} in {tqdm.format_interval(seconds)}{_summary(logs)}")

    def _close(self) -> None:
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None

    def _clock(self, state) -> str:
        """Time gone and time left, as bars write it."""
        gone = time.perf_counter() - self._start
        left = gone / max(state.global_step - self._first_step, 1) * (state.max_steps - state.global_step)
        return f"{tqdm.format_interval(gone)}<{tqdm.format_interval(left)}"


def shows_bars(args) -> bool:
    """Whether bars are wanted (`disable_tqdm`) and can be drawn: in a log file, every update would be a line."""
    return not args.disable_tqdm and (is_in_notebook() or sys.stderr.isatty())


def use_own_progress(trainer: Trainer) -> None:
    """Replace the Trainer's bar or printer, which shows the log as dictionaries; a notebook's table stays."""
    callbacks = trainer.callback_handler.callbacks
    theirs = [callback for callback in callbacks if type(callback) in (ProgressCallback, PrinterCallback)]
    if theirs:  # the last one: one before it was asked for
        callbacks[callbacks.index(theirs[-1])] = TrainingProgress(shows_bars(trainer.args))


def _count(args, state) -> str:
    """`120/400`, or `120/~400` where the end is an estimate."""
    about = "~" if getattr(args, "max_seconds", None) is not None and state.global_step < state.max_steps else ""
    return f"{state.global_step}/{about}{state.max_steps}"


def _terms(logs: Mapping[str, Any]) -> str:
    """`loss 2.54 (task 1.2, kd 1.34), lr 0.02, 42.5 images/s`."""
    terms = [f"{name.removeprefix('loss_')} {value:.3g}" for name, value in logs.items() if name.startswith("loss_")]
    loss = f"loss {logs['loss']:.3g}" + (f" ({', '.join(terms)})" if len(terms) > 1 else "")
    rate = f"lr {logs['learning_rate']:.2g}" if "learning_rate" in logs else None
    speed = f"{logs['images_per_second']:.3g} images/s" if "images_per_second" in logs else None
    return ", ".join(text for text in (loss, rate, speed) if text)


def _scores(logs: Mapping[str, Any]) -> str:
    """`mIoU 46.17 %, pixel accuracy 90.11 % (3.2 s)`, of several evaluation sets with the set's name before it."""
    for name, value in logs.items():
        if name.endswith("_mean_iou"):
            prefix = name.removesuffix("mean_iou")
            which = prefix.removeprefix("eval").strip("_")
            text = f"{which} " * bool(which) + f"mIoU {100 * value:.2f} %"
            if f"{prefix}overall_accuracy" in logs:
                text += f", pixel accuracy {100 * logs[f'{prefix}overall_accuracy']:.2f} %"
            return text + (f" ({logs[f'{prefix}runtime']:.1f} s)" if f"{prefix}runtime" in logs else "")
    return ""


def _summary(logs: Mapping[str, Any]) -> str:
    """Images a second, peak memory, and where the time of the steps went."""
    if "train_images_per_second" not in logs:
        return ""
    facts = [f"{logs['train_images_per_second']:.3g} images/s in training steps"]
    if "train_peak_memory_mb" in logs:
        facts.append(f"peak memory {logs['train_peak_memory_mb']:.0f} MiB")
    times = {part: logs[f"train_time_{part}"] for part in PARTS if f"train_time_{part}" in logs}
    shares = [f"{part} {100 * value / sum(times.values()):.0f} %" for part, value in times.items()]
    return ": " + ", ".join(facts) + f"; time: {', '.join(shares)}"
