"""Stopping at a signal: the step is finished, a checkpoint saved, and the training ends with `TrainingInterrupted`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from .checkpoints import checkpoint_folder

SECONDS_OF_ONE_CTRL_C = 2.0


class TrainingInterrupted(KeyboardInterrupt):
    """A training was stopped by a signal, after it had saved a checkpoint.

    Attributes:
        checkpoint: folder of that checkpoint.
        exit_status: what a command should end with: 128 + number of the signal.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: str):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; everything is saved in {checkpoint}")
        self.checkpoint = checkpoint
        self.exit_status = 128 + signal_number


class Interruption(TrainerCallback):
    """Listens for SIGTERM (how clusters announce that a machine is taken back) and SIGINT (Ctrl-C).

    The first signal asks for a stop; a second SIGINT ends the process at once, as if nobody had listened. Where several
    processes train, any of them may be asked, and all stop after the same step. transformers' own enable_jit_checkpoint
    does not do: it writes no marker, waits for 3 s, and knows neither Ctrl-C nor other processes.
    """

    def __init__(self, args: TrainingArguments, save: Callable[[], None]):
        self._args, self._save = args, save
        self._process, self._asked_at = os.getpid(), 0.0
        self._previous: dict[int, Any] = {}
        self._asked = self._stopped = 0  # the signal that this process got, and the one that all have agreed to stop at

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are caught within; Python allows that in the main thread only, elsewhere this does nothing."""
        numbers = (signal.SIGINT,) if self._args.enable_jit_checkpoint else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            self._restore()
            self._asked = self._stopped = 0

    @contextmanager
    def saving_amid(self, model: nn.Module) -> Iterator[None]:
        """While `model` is evaluated, a signal has the finished step saved before the next batch: there may be no
        time for the rest. Several processes, which wait for each other, finish the evaluation first."""
        saved = self._args.world_size > 1

        def save_once(*_: Any) -> None:
            nonlocal saved
            if self._asked and not saved:
                saved = True
                self._save()

        handle = model.register_forward_pre_hook(save_once)
        try:
            yield
        finally:
            handle.remove()

    def on_step_end(self, args, state, control, **kwargs):
        if self._all_stop():
            if control.should_evaluate:
                self._save()  # the process may not be given the time that the evaluation takes
            control.should_training_stop = control.should_save = True

    def on_evaluate(self, args, state, control, **kwargs):
        if self._all_stop():
            control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._stopped:  # the Trainer has saved
            folder = str(checkpoint_folder(self._args.output_dir, state.global_step))
            raise TrainingInterrupted(self._stopped, state.global_step, folder)

    def _all_stop(self) -> bool:
        asked = torch.tensor(self._asked, device=self._args.device if self._args.world_size > 1 else None)
        if self._args.world_size > 1:
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        self._stopped = int(asked.item())
        return bool(self._stopped)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a data worker, forked with this handler: the main process decides
            return
        # torchrun hands Ctrl-C on to processes that have received it from the terminal already
        passed_on = self._args.world_size > 1 and time.monotonic() - self._asked_at < SECONDS_OF_ONE_CTRL_C
        if not self._asked:
            self._asked, self._asked_at = number, time.monotonic()
            if self._args.process_index == 0:
                message = "finishing this step and saving a checkpoint (Ctrl-C now stops at once, unsaved)"
                # logging is not allowed here: the signal may have interrupted a logger
                os.write(2, f"\n{signal.Signals(number).name}: {message}\n".encode())
        elif number == signal.SIGINT and not passed_on:
            self._restore()
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def prepare_workers(loader: DataLoader, seed: int) -> DataLoader:
    """Give a loader a random generator of its own, and workers that leave signals to the main process.

    Starting workers draws a seed. Drawn from torch's global generator it would shift dropout and whatever else is drawn
    later, unless workers are started in a resumed run exactly when they were in the first one; persistent ones are not.
    """
    generator, start = torch.Generator().manual_seed(seed), partial(_start_worker, loader.worker_init_fn)
    # accelerate iterates over a loader within its own, and makes another one of the outer's settings to skip batches.
    for part in {loader, getattr(loader, "base_dataloader", loader)}:
        part.generator = generator
        if part.num_workers:
            part.worker_init_fn = start
    return loader


def _start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM often all of a job.

    A worker that ended by it would take the run with it before that has saved itself. SIGTERM from the main process
    still ends a worker: that is how Python clears its children away.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:  # which alone tells who sent the signal
        pass
    os._exit(0)
