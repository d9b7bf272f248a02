"""Stopping a training: where it breaks, and at a signal; either way it tells what to resume from."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from ..messages import plain_message
from .checkpoints import WRITE_ERRORS, NonFiniteLossError, checkpoint_folder, checkpoints_of, why_not_written

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

SECONDS_OF_ONE_CTRL_C = 2.0
_SHOWN_NAMES = 16
_REPEATED = (OSError, ValueError, torch.OutOfMemoryError, RuntimeError)  # raised again, with more to say


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradients are not."""


class Guard(TrainerCallback):
    """Stops a run before the optimizer uses a loss or gradients that are not finite, and tells what to resume from.

    All processes stop together; the forward pass has spoilt batch norm's statistics, so the last checkpoint is what to
    resume from. So it is where one process of several fails alone. After any other error the last step is saved.
    """

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer: Any = trainer
        self.norm: Tensor | float | None = None  # of this step's gradients; the trainer sets it
        self._batches: list[tuple[Sequence[str], Mapping[str, Tensor]]] = []
        self._first_step: int | None = None  # None before a training begins

    def watch(self, terms: Mapping[str, Tensor], names: Sequence[str] | None) -> None:
        """Remember a batch's detached terms until its step is checked; nothing is read back from the device here."""
        self._batches.append((names or (), terms))

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step, self._between_steps = state.global_step, True

    def on_step_begin(self, args, state, control, **kwargs):
        self._batches = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if args.check_finite and self._is_broken():  # which waits once for the device
            error = self._describe()
            if args.world_size > 1:
                told = gather_object([(type(error), str(error))])
                # One rank's NaN loss makes the gradients of all ranks NaN: the loss tells more.
                rank = min(range(len(told)), key=lambda rank: told[rank][0] is NonFiniteGradientError)
                error = told[rank][0](f"process {rank}: {told[rank][1]}")
            raise error
        self._between_steps = False

    def on_step_end(self, args, state, control, **kwargs):
        self._between_steps = True

    @contextmanager
    def telling_what_is_saved(self) -> Iterator[None]:
        """An error within gets a message that says what is saved, and stays of the same kind."""
        self._first_step = None
        try:
            yield
        except Exception as error:
            unfinished = self.trainer.checkpoints.unfinished
            if isinstance(error, WRITE_ERRORS) and unfinished is not None:
                text = why_not_written(unfinished, error)
                if self.trainer.args.should_save:
                    shutil.rmtree(unfinished, ignore_errors=True)
                kept = checkpoints_of(self.trainer.args.output_dir)
                text += f" The checkpoints before it are kept, the newest is {kept[0]}." if kept else ""
                raise OSError(text) from error
            if self._first_step is None:
                raise
            text = f"{plain_message(error)} {self._save_last_step(error)}"
            for kind in (NonFiniteGradientError, NonFiniteLossError, *_REPEATED):
                if isinstance(error, kind):
                    raise kind(text) from error
            raise

    def _save_last_step(self, error: Exception) -> str:
        """Write the checkpoint of the last finished step, if that can be; what was done, in words."""
        trainer, step = self.trainer, self.trainer.state.global_step
        if step == self._first_step:
            return "No step had been finished since the start, so there is nothing to save."
        if trainer.args.world_size > 1 or not self._between_steps or isinstance(error, NonFiniteLossError):
            newest = next(iter(checkpoints_of(trainer.args.output_dir)), None)
            return f"After fixing the cause, resume from {newest}." if newest else "No checkpoint had been saved yet."
        if trainer.checkpoints.saved_step != step:
            try:
                trainer.save_now()
            except (*WRITE_ERRORS, NonFiniteLossError) as failure:
                return f"The state after step {step} could not be saved: {failure}"
        folder = checkpoint_folder(trainer.args.output_dir, step)
        return f"The state after step {step} is saved in {folder}: after fixing the cause, resume from it."

    def _is_broken(self) -> bool:
        """Whether any term of any process, or the norm of the gradients, is not finite: a sum is only if all are."""
        total = torch.zeros((), device=self.trainer.args.device)
        for term in (term for _, batch in self._batches for term in batch.values()):
            total = total + term.float()
        # infinite gradients are normal while a GradScaler (fp16) looks for its scale
        if self.norm is not None and self.trainer.accelerator.scaler is None:
            total = total + self.norm
        if self.trainer.args.world_size > 1:
            total = self.trainer.accelerator.reduce(total, "sum")
        return not torch.isfinite(total).item()

    def _describe(self) -> NonFiniteLossError:
        batches = [(names, {name: term.item() for name, term in terms.items()}) for names, terms in self._batches]
        broken = [batch for batch in batches if not all(abs(value) < float("inf") for value in batch[1].values())]
        names, terms = (broken or batches or [((), {})])[0]
        facts = [f"{name} {value:.4g}" for name, value in terms.items()]
        facts += [f"learning rate {self.trainer.optimizer.param_groups[0]['lr']:.4g}"]
        facts += [f"gradient norm {float(self.norm):.4g}"] if self.norm is not None else []
        images = names if broken else [name for names, _ in batches for name in names]
        listed = f"; images {', '.join(images[:_SHOWN_NAMES])}" if images else ""
        advice = ["a lower learning_rate or warmup_steps", "max_grad_norm"]
        if hasattr(self.trainer, "loss_module"):
            advice.append("lower weights of the distillation terms (or reduction='mean', where the loss has it)")
        advice += ["a look at these images and their labels"] if broken else []
        advice += ["bf16 in place of fp16"] if self.trainer.args.fp16 else []
        kind, what = (NonFiniteLossError, "the loss is") if broken else (NonFiniteGradientError, "the gradients are")
        step = self.trainer.state.global_step + 1
        return kind(f"step {step}: {what} not finite ({', '.join(facts)}){listed}. To try: {', '.join(advice)}.")


class TrainingInterrupted(KeyboardInterrupt):
    """A training was stopped by a signal, after it had saved a checkpoint.

    Attributes:
        checkpoint: folder of that checkpoint.
        exit_status: what a command should end with: 128 + number of the signal.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: str):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; everything is saved in {checkpoint}")
        self.checkpoint, self.exit_status = checkpoint, 128 + signal_number


class Interruption(TrainerCallback):
    """Listens for SIGTERM (how clusters announce that a machine is taken back) and SIGINT (Ctrl-C).

    The first signal to any process has all finish the step and save; a second SIGINT ends the process at once.
    transformers' enable_jit_checkpoint writes no marker, waits for 3 s, and knows neither Ctrl-C nor other processes.
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
        """While `model` is evaluated, a signal has the finished step saved at once, but where processes would have to
        wait for each other."""
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
        self._stopped = self._asked
        if args.world_size > 1:
            asked = torch.tensor(self._asked, device=args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
            self._stopped = int(asked.item())
        if self._stopped:
            if control.should_evaluate:
                self._save()  # the process may not be given the time that the evaluation takes
            control.should_training_stop = control.should_save = True

    on_evaluate = on_step_end

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._stopped:  # the Trainer has saved
            folder = str(checkpoint_folder(args.output_dir, state.global_step))
            raise TrainingInterrupted(self._stopped, state.global_step, folder)

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
    """Give a loader workers that leave signals to the main process, and a random generator of its own: starting workers
    draws a seed, which would shift dropout where a resumed run starts them at another time."""
    generator, start = torch.Generator().manual_seed(seed), partial(_start_worker, loader.worker_init_fn)
    # accelerate iterates over a loader within its own, and makes another one of the outer's settings to skip batches.
    for part in {loader, getattr(loader, "base_dataloader", loader)}:
        part.generator = generator
        if part.num_workers:
            part.worker_init_fn = start
    return loader


def _start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    """Outlive a Ctrl-C or SIGTERM to all of a job, with which the run saves itself, but not SIGTERM from the parent."""
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
