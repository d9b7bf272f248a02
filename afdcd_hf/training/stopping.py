"""Stopping a run, on errors and on signals, with a message that says what to resume from."""

from __future__ import annotations

import logging
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
from .checkpoints import WRITE_ERRORS, NonFiniteLossError, checkpoint_folder, checkpoints_of, write_error_message

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

logger = logging.getLogger(__name__)

CTRL_C_DEBOUNCE_SECONDS = 2.0
_SHOWN_NAMES = 16
_RERAISED = (OSError, ValueError, torch.OutOfMemoryError, RuntimeError)  # raised again with a longer message


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradients are not."""


class Guard(TrainerCallback):
    """Stops a run before the optimizer uses a non-finite loss or gradient, and says what to resume from.

    All processes stop together. The forward pass has corrupted batch norm statistics, so the run resumes from the last
    checkpoint, as it does if one of several processes fails alone. After any other error, the last step is saved.
    """

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer: Any = trainer
        self.norm: Tensor | float | None = None  # gradient norm of this step, set by the trainer
        self._batches: list[tuple[Sequence[str], Mapping[str, Tensor]]] = []
        self._first_step: int | None = None  # None before training begins

    def watch(self, terms: Mapping[str, Tensor], names: Sequence[str] | None) -> None:
        """Keep a batch's detached terms until its step is checked, without synchronising with the device."""
        self._batches.append((names or (), terms))

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step, self._between_steps = state.global_step, True

    def on_step_begin(self, args, state, control, **kwargs):
        self._batches = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if args.check_finite and self._is_non_finite():  # the only device synchronisation
            error = self._describe()
            if args.world_size > 1:
                errors = gather_object([(type(error), str(error))])
                # One rank's NaN loss makes all ranks' gradients NaN: report the loss, which says more.
                rank = min(range(len(errors)), key=lambda rank: errors[rank][0] is NonFiniteGradientError)
                error = errors[rank][0](f"process {rank}: {errors[rank][1]}")
            raise error
        self._between_steps = False

    def on_step_end(self, args, state, control, **kwargs):
        self._between_steps = True

    @contextmanager
    def report_last_checkpoint(self) -> Iterator[None]:
        """Extend the message of an error inside this context with what to resume from; its type stays the same."""
        self._first_step = None
        try:
            yield
        except Exception as error:
            unfinished = self.trainer.checkpoints.unfinished
            if isinstance(error, WRITE_ERRORS) and unfinished is not None:
                text = write_error_message(unfinished, error)
                if self.trainer.args.should_save:
                    shutil.rmtree(unfinished, ignore_errors=True)
                kept = checkpoints_of(self.trainer.args.output_dir)
                text += f" The checkpoints before it are kept, the newest is {kept[0]}." if kept else ""
                raise OSError(text) from error
            if self._first_step is None:
                raise
            text = f"{plain_message(error)} {self._save_last_step(error)}"
            for kind in (NonFiniteGradientError, NonFiniteLossError, *_RERAISED):
                if isinstance(error, kind):
                    raise kind(text) from error
            logger.error("%s", text)  # other types may not take a message, such as KeyError
            raise

    def _save_last_step(self, error: Exception) -> str:
        """Save a checkpoint of the last finished step, if possible; return a sentence on what is saved."""
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

    def _is_non_finite(self) -> bool:
        """Whether any term on any process, or the gradient norm, is not finite; their sum then is not finite either."""
        total = torch.zeros((), device=self.trainer.args.device)
        for term in (term for _, batch in self._batches for term in batch.values()):
            total = total + term.float()
        # infinite gradients are normal while a GradScaler (fp16) searches for its scale
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
    """A signal stopped the run, after a checkpoint was saved.

    Attributes:
        checkpoint: folder of that checkpoint.
        exit_status: exit status for a command: 128 + signal number.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: str):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}; everything is saved in {checkpoint}")
        self.checkpoint, self.exit_status = checkpoint, 128 + signal_number


class Interruption(TrainerCallback):
    """Handles SIGTERM (sent by clusters before pre-emption) and SIGINT (Ctrl-C).

    After the first signal to any process, all finish the step and save; a second SIGINT ends the process at once.
    transformers' enable_jit_checkpoint writes no marker, waits for 3 s, and handles neither Ctrl-C nor other processes.
    """

    def __init__(self, args: TrainingArguments, save: Callable[[], None]):
        self._args, self._save = args, save
        self._process, self._received_at = os.getpid(), 0.0
        self._previous: dict[int, Any] = {}
        self._received = self._agreed = 0  # signal received here, and signal that all processes agreed on

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside this context; a no-op outside the main thread, where Python does not allow it."""
        numbers = (signal.SIGINT,) if self._args.enable_jit_checkpoint else (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            self._restore()
            self._received = self._agreed = 0

    @contextmanager
    def save_on_signal_during(self, model: nn.Module) -> Iterator[None]:
        """Save the finished step as soon as a signal arrives while `model` is evaluated; single process only, because
        several would have to wait for each other."""
        saved = self._args.world_size > 1

        def save_once(*_: Any) -> None:
            nonlocal saved
            if self._received and not saved:
                saved = True
                self._save()

        handle = model.register_forward_pre_hook(save_once)
        try:
            yield
        finally:
            handle.remove()

    def on_step_end(self, args, state, control, **kwargs):
        self._agreed = self._received
        if args.world_size > 1:
            agreed = torch.tensor(self._received, device=args.device)
            torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
            self._agreed = int(agreed.item())
        if self._agreed:
            if control.should_evaluate:
                self._save()  # the process may be killed before the evaluation ends
            control.should_training_stop = control.should_save = True

    on_evaluate = on_step_end

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._agreed:  # the Trainer has saved by now
            folder = str(checkpoint_folder(args.output_dir, state.global_step))
            raise TrainingInterrupted(self._agreed, state.global_step, folder)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a data worker forked with this handler; the main process decides
            return
        # torchrun forwards Ctrl-C to processes that have already received it from the terminal
        forwarded = self._args.world_size > 1 and time.monotonic() - self._received_at < CTRL_C_DEBOUNCE_SECONDS
        if not self._received:
            self._received, self._received_at = number, time.monotonic()
            if self._args.process_index == 0:
                message = "finishing this step and saving a checkpoint (Ctrl-C again stops at once without saving)"
                # no logging here: the signal may have interrupted a logger that holds its lock
                os.write(2, f"\n{signal.Signals(number).name}: {message}\n".encode())
        elif number == signal.SIGINT and not forwarded:
            self._restore()
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def prepare_workers(loader: DataLoader, seed: int) -> DataLoader:
    """Make a loader's workers leave signals to the main process, and give it a separate random generator: starting
    workers draws a seed, which would shift dropout if a resumed run starts them at a different time."""
    generator, start = torch.Generator().manual_seed(seed), partial(_start_worker, loader.worker_init_fn)
    # accelerate iterates over an inner loader, but builds the loader that skips batches from the outer one's settings.
    for part in {loader, getattr(loader, "base_dataloader", loader)}:
        part.generator = generator
        if part.num_workers:
            part.worker_init_fn = start
    return loader


def _start_worker(worker_init: Callable[[int], None] | None, worker: int) -> None:
    """Ignore a Ctrl-C or SIGTERM sent to the whole job, so that the run can save, but obey SIGTERM from the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parent_sigterm, args=(os.getppid(),), daemon=True).start()
    if worker_init is not None:
        worker_init(worker)


def _exit_on_parent_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:  # a handler would not know the sender
        pass
    os._exit(0)
