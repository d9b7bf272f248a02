"""What a run tells while it lasts: its loss terms, on a terminal a bar, elsewhere one plain line per log entry."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import is_in_notebook

logger = logging.getLogger(__name__)

_LEFT_OUT = ("epoch", "total_flos", "time_", "train_time_")


class TermMeans:
    """Sums of the loss terms since the last line of the log. A term counts 0 in a step that does not have it.

    With `report`, the terms of the first batch of all are logged.
    """

    def __init__(self, *, report: bool = False) -> None:
        self._report = report
        self.load({})

    def add(self, terms: Mapping[str, Tensor], share: float) -> None:
        """Take in the detached terms of a batch that is so large a share of an optimizer step."""
        if self._report:
            self._report = False
            report_first_terms({name: term.item() for name, term in terms.items()})
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + share * term
        self._steps += share

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over ranks and steps, and start afresh; every process has to call this."""
        if not self._steps:
            return {}
        means = accelerator.reduce(torch.stack(list(self._sums.values())) / self._steps, "mean").tolist()
        named = dict(zip(self._sums, means, strict=True))
        self.load({})
        return named

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to end with the same line of the log."""
        return {**self._sums, "": torch.tensor(self._steps, dtype=torch.float64)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave; nothing at all to start afresh."""
        self._sums = {name: total for name, total in state.items() if name}
        self._steps = state[""].item() if state else 0.0


def report_first_terms(terms: dict[str, float]) -> None:
    """Log every weighted loss term of the first batch, and warn of one that dominates or is negligible.

    The published weights belong to sums over ResNet-101's maps at one crop size: with another teacher or crop they are
    easily off by orders of magnitude, and nothing else would show it.
    """
    logger.info("Weighted loss terms of the first batch: %s", ", ".join(f"{k} {v:.4g}" for k, v in terms.items()))
    task = terms.get("task", 0.0)
    if not task > 0:
        return
    for name, value in terms.items():
        if name not in ("task", "auxiliary") and not 0.01 <= abs(value) / task <= 20:
            logger.warning(
                "The weighted loss term %r is %.4g on the first batch, %.3g times the task loss (%.4g): it %s the "
                "task loss. Change its weight; a loss that has the option reduction='mean' has weights that carry over "
                "to other teachers and crops.",
                name, value, value / task, task, "dominates" if abs(value) > task else "is negligible next to",
            )  # fmt: skip


class LogLines(TrainerCallback):
    """`step 50/400 [00:12<01:27] loss 1.23, loss_task 0.8, ...`, on the main process."""

    def on_train_begin(self, args, state, control, **kwargs):
        self._start, self._first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
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
    callbacks = trainer.callback_handler.callbacks
    theirs = [callback for callback in callbacks if type(callback) in (ProgressCallback, PrinterCallback)]
    if theirs and not shows_bars(trainer.args):  # the last one: one before it was asked for
        callbacks[callbacks.index(theirs[-1])] = LogLines()
