"""Data workers that neither disturb a run's random numbers nor die of the signals that are meant for the run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import torch
from torch.utils.data import DataLoader
from transformers import TrainingArguments


def prepare_workers(loader: DataLoader, args: TrainingArguments) -> DataLoader:
    """Give a loader a random generator of its own, and workers that leave signals to the main process.

    Starting workers draws a seed. Drawn from torch's global generator it would shift dropout and whatever else is drawn
    later, unless workers are started in a resumed run exactly when they were in the first one; persistent ones are not.
    """
    generator, start = torch.Generator().manual_seed(args.seed), WorkerStart(loader.worker_init_fn)
    # accelerate iterates over a loader within its own, and makes another one of the outer's settings to skip batches.
    for part in {loader, getattr(loader, "base_dataloader", loader)}:
        part.generator = generator
        if part.num_workers:
            part.worker_init_fn = start
    return loader


class WorkerStart:
    """What a data worker does first; can be pickled if `then` can.

    Ctrl-C reaches all processes of a terminal, and a cluster's SIGTERM often all of a job. A worker that ended by it
    would take the run with it before that has saved itself. SIGTERM from the main process still ends a worker: that is
    how Python clears its children away.
    """

    def __init__(self, then: Callable[[int], None] | None):
        self.then = then

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        if self.then is not None:
            self.then(worker)


def _end_with_parent(parent: int) -> None:
    """Who sent a signal only `sigwaitinfo` tells."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
