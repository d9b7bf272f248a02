"""What a training shows while it runs: transformers' bar on a terminal, one plain line per log entry elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState
from transformers.utils import is_in_notebook

_LEFT_OUT = ("epoch", "total_flos", "time_", "train_time_")


class LogLines(TrainerCallback):
    """`step 50/400 [00:12<01:27] loss 1.23, loss_task 0.8, ...`, on the main process."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The clock starts."""
        self._start, self._first_step = time.perf_counter(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One entry of the log."""
        if not logs or not state.is_world_process_zero or not hasattr(self, "_start"):
            return
        gone = time.perf_counter() - self._start
        left = gone / max(state.global_step - self._first_step, 1) * (state.max_steps - state.global_step)
        clock = f"{tqdm.format_interval(gone)}<{tqdm.format_interval(left)}"
        values = [
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in logs.items()
            if not name.startswith(_LEFT_OUT)
        ]
        print(f"step {state.global_step}/{state.max_steps} [{clock}] {', '.join(values)}", flush=True)


def shows_bars(args: TrainingArguments) -> bool:
    """Whether bars are wanted (`disable_tqdm`) and can be drawn: in a log file, every update would be a line."""
    return not args.disable_tqdm and (is_in_notebook() or sys.stderr.isatty())


def use_lines_without_terminal(trainer: Trainer) -> None:
    """Where no bar can be drawn, replace transformers' bar or printer, which leaves out the step, by `LogLines`."""
    if shows_bars(trainer.args):
        return
    callbacks = trainer.callback_handler.callbacks
    theirs = [callback for callback in callbacks if type(callback) in (ProgressCallback, PrinterCallback)]
    if theirs:  # the last one: one before it was asked for
        callbacks[callbacks.index(theirs[-1])] = LogLines()
