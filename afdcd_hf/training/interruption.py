"""Stopping at a signal: the step is finished, a checkpoint saved, and the training ends with `TrainingInterrupted`."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback, TrainingArguments

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


class Interruption:
    """Listens for SIGTERM (how clusters announce that a machine is taken back) and SIGINT (Ctrl-C).

    The first signal asks for a stop; a second SIGINT ends the process at once, as if nobody had listened. Where several
    processes train, any of them may be asked: all agree on the step after which they stop.

    Attributes:
        stopped: the number of the signal that all processes have agreed to stop at; 0 before that.
    """

    def __init__(self, args: TrainingArguments):
        self._args = args
        self._process = os.getpid()
        self._asked = 0
        self._asked_at = 0.0
        self._previous: dict[int, object] = {}
        self._pending: tuple[torch.Tensor, object] | None = None
        self.stopped = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are caught within; Python allows that in the main thread only, elsewhere this does nothing."""
        # transformers' own enable_jit_checkpoint has its handler of SIGTERM.
        jit = getattr(self._args, "enable_jit_checkpoint", False)
        numbers = (signal.SIGINT,) if jit else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            self._restore()

    def agreed(self) -> bool:
        """Whether all processes stop now. Every process has to call this after every step.

        With several processes the answer is that of the step before: waiting for this step's would make the CPU wait
        for the GPU.
        """
        if self._args.world_size == 1:
            self.stopped = self._asked
            return bool(self.stopped)
        if self._pending is not None:
            asked, work = self._pending
            work.wait()
            self.stopped = int(asked.item())
        if not self.stopped:
            asked = torch.tensor(self._asked, device=self._args.device)
            maximum = torch.distributed.ReduceOp.MAX
            self._pending = asked, torch.distributed.all_reduce(asked, op=maximum, async_op=True)
        return bool(self.stopped)

    def raise_stopped(self, step: int) -> None:
        """End a training that has stopped after `step` and saved itself."""
        checkpoint = os.path.join(self._args.output_dir, f"checkpoint-{step}")
        raise TrainingInterrupted(self.stopped, step, checkpoint)

    def _on_signal(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a data worker, forked with this handler: the main process decides
            return
        if not self._asked:
            self._asked, self._asked_at = number, time.monotonic()
            self._say(signal.Signals(number).name)
        elif number == signal.SIGINT and not self._passed_on_by_launcher():
            self._restore()
            raise KeyboardInterrupt

    def _passed_on_by_launcher(self) -> bool:
        """torchrun hands Ctrl-C on to processes that have received it from the terminal already."""
        return self._args.world_size > 1 and time.monotonic() - self._asked_at < SECONDS_OF_ONE_CTRL_C

    def _say(self, name: str) -> None:
        if self._args.process_index == 0:
            message = f"\n{name}: finishing this step and saving a checkpoint (Ctrl-C now stops at once, unsaved)\n"
            os.write(2, message.encode())  # logging is not allowed here: the signal may have interrupted a logger

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class InterruptionCallback(TrainerCallback):
    """Stops the training after the step at which all processes have agreed to, with a checkpoint saved.

    Args:
        interruption: knows of signals.
        save: saves a checkpoint at once.
    """

    def __init__(self, interruption: Interruption, save: Callable[[], None]):
        self.interruption = interruption
        self.save = save

    def on_step_end(self, args, state, control, **kwargs):
        """Called by the Trainer after every optimizer step, before it logs, evaluates and saves."""
        if not self.interruption.agreed():
            return
        control.should_training_stop = control.should_save = True
        if control.should_evaluate:
            self.save()  # the process may not be given the time that the evaluation takes
