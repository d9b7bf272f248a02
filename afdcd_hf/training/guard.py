"""Stopping a training at the step where it breaks, and telling what to resume from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from ..messages import plain_message
from .checkpoints import WRITE_ERRORS, checkpoint_folder, checkpoints_of, why_not_written

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

_SHOWN_NAMES = 16


class NonFiniteLossError(ValueError):
    """The loss, or weights to be saved, became infinite or NaN; of a loss the message has terms, images and advice."""


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradients are not."""


class Guard(TrainerCallback):
    """Stops a run before the optimizer uses a loss or gradients that are not finite, and tells what to resume from.

    Infinite gradients are normal while a GradScaler (fp16) looks for its scale; there, only the loss is looked at.
    Where the loss or the gradients are not finite, all processes stop together, with the message of the one concerned;
    the forward pass has spoilt batch norm's statistics, so the last checkpoint is what to resume from. So it is where
    one process of several fails alone. After any other error the last finished step is saved.
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
            if isinstance(error, NonFiniteLossError):
                raise type(error)(text) from error
            for kind in (OSError, ValueError, torch.OutOfMemoryError, RuntimeError):
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
        terms = [term.float() for _, batch in self._batches for term in batch.values()]
        if self.norm is not None and self.trainer.accelerator.scaler is None:
            terms.append(torch.as_tensor(self.norm, dtype=torch.float32, device=total.device))
        if terms:
            total = torch.stack(terms).sum()
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


def check_finite_weights(module: nn.Module, step: int) -> None:
    """Refuse to save weights, or statistics of batch norm, that are not finite: NonFiniteLossError names one."""
    named = [(name, tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist() if named else []
    broken = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
    if broken:
        raise NonFiniteLossError(
            f"step {step}: {len(broken)} of {len(named)} weights of the student are not finite, {broken[0]} for one: "
            "they are not saved."
        )
