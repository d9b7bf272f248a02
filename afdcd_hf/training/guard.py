"""Stopping a training at the step where it breaks, with the last finished step saved."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import TrainerCallback

from ..losses.cirkd import queue_names
from ..messages import plain_message
from .checkpoints import WRITE_ERRORS, checkpoint_folder, checkpoints_of, why_not_written

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer

_SHOWN_NAMES = 16


class NonFiniteLossError(ValueError):
    """The loss became infinite or NaN; the message has its terms, the images and what to try."""


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradients are not."""


class NonFiniteWeightsError(NonFiniteLossError):
    """The weights that were to be saved are infinite or NaN."""


# What an error is raised as again, with our message: the first kind that it is one of.
_KINDS = (
    NonFiniteWeightsError, NonFiniteGradientError, NonFiniteLossError, FileNotFoundError, OSError, ValueError,
    torch.OutOfMemoryError, RuntimeError,
)  # fmt: skip


class LastStep:
    """What a step changes before the optimizer runs, as the last finished step left it: buffers, random states, means.

    A forward pass that ends in NaN has already spoilt batch norm's statistics, while weights and optimizer are still
    those of the last good step. A loss's queues are large and left as they are: see `ClassQueues` why that is enough.
    """

    def __init__(self, trainer: Any):
        self._generators, self._terms = trainer.generators, trainer.terms
        module, left_out = trainer.trained_module, set(queue_names(trainer.trained_module))
        self._buffers = [buffer for name, buffer in module.named_buffers() if name not in left_out]
        self._copies = [buffer.clone() for buffer in self._buffers]
        self.keep()

    @torch.no_grad()
    def keep(self) -> None:
        """Take the present state for the last good one."""
        if self._buffers:  # a few kernels, where a loop would launch one per tensor
            torch._foreach_copy_(self._copies, self._buffers)
        self._states = [generator.get_state() for generator in self._generators]
        self._torch, self._numpy, self._python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self._means = self._terms.state()

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the state that was kept last."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.set_state(state)
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)
        random.setstate(self._python)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
        self._terms.load(self._means)


class Guard(TrainerCallback):
    """Stops a run before the optimizer uses a loss or gradients that are not finite, and saves what can be saved.

    Infinite gradients are normal while a GradScaler (fp16) looks for its scale; there, only the loss is looked at.
    Where the loss or the gradients are not finite, all processes stop together, with the message of the one concerned.
    Any other error of one process among several ends it at once, and the last checkpoint is what to resume from.
    """

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer: Any = trainer
        self.norm: Tensor | float | None = None  # of this step's gradients; the trainer sets it
        self.begin()

    def begin(self) -> None:
        """A training begins; there is no step yet that could be saved."""
        self._batches: list[tuple[Sequence[str], Mapping[str, Tensor]]] = []
        self._last_step: LastStep | None = None
        self._between_steps = True

    def watch(self, terms: Mapping[str, Tensor], names: Sequence[str] | None) -> None:
        """Remember a batch's detached terms until its step is checked; nothing is read back from the device here."""
        self._batches.append((names or (), terms))

    def on_train_begin(self, args, state, control, **kwargs):
        self._last_step, self._first_step = LastStep(self.trainer), state.global_step

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
        self.on_log(args, state, control)

    def on_log(self, args, state, control, **kwargs):
        if self._last_step is not None and self._between_steps:
            self._last_step.keep()  # a line has taken the means; a later fault must not bring them back

    @contextmanager
    def telling_what_is_saved(self) -> Iterator[None]:
        """An error within gets a message that says what is saved, and stays of the same kind."""
        try:
            yield
        except Exception as error:
            folder, kind = self.trainer.checkpoints.unfinished, next((k for k in _KINDS if isinstance(error, k)), None)
            if isinstance(error, WRITE_ERRORS) and folder is not None:
                raise OSError(self._not_written(folder, error)) from error
            if self._last_step is None:  # nothing has begun
                raise
            text = f"{plain_message(error)} {self._save_last_step(error)}"
            if kind is None:
                raise
            advice = f" To try: {self._advice(error)}." if isinstance(error, NonFiniteLossError) else ""
            raise kind(text + advice) from error

    def _not_written(self, folder: Path, error: Exception) -> str:
        text = why_not_written(folder, error)
        if self.trainer.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        kept = checkpoints_of(self.trainer.args.output_dir)
        return f"{text} The checkpoints before it are kept, the newest is {kept[0]}." if kept else text

    def _save_last_step(self, error: Exception) -> str:
        """Write the checkpoint of the last finished step, if it is not there; what has been done, in words."""
        trainer, step = self.trainer, self.trainer.state.global_step
        if step == self._first_step:
            return "No step had been finished since the start, so there is nothing to save."
        together = trainer.args.world_size == 1 or isinstance(error, NonFiniteLossError)
        if not together or not self._between_steps or isinstance(error, NonFiniteWeightsError):
            newest = next(iter(checkpoints_of(trainer.args.output_dir)), None)
            return f"After fixing the cause, resume from {newest}." if newest else "No checkpoint had been saved yet."
        assert self._last_step is not None  # a training has begun
        self._last_step.restore()
        trainer.model.zero_grad()
        if trainer.checkpoints.saved_step != step:
            try:
                trainer.save_now()
            except (*WRITE_ERRORS, NonFiniteWeightsError) as failure:
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
        kind, what = (NonFiniteLossError, "the loss is") if broken else (NonFiniteGradientError, "the gradients are")
        facts = [f"{name} {value:.4g}" for name, value in terms.items()]
        facts += [f"learning rate {self.trainer.optimizer.param_groups[0]['lr']:.4g}"]
        facts += [f"gradient norm {float(self.norm):.4g}"] if self.norm is not None else []
        images = names if broken else [name for names, _ in batches for name in names]
        more = f" and {len(images) - _SHOWN_NAMES} more" if len(images) > _SHOWN_NAMES else ""
        listed = f"; images {', '.join(images[:_SHOWN_NAMES])}{more}" if images else ""
        return kind(f"step {self.trainer.state.global_step + 1}: {what} not finite ({', '.join(facts)}){listed}.")

    def _advice(self, error: NonFiniteLossError) -> str:
        advice = ["a lower learning_rate or warmup_steps", "max_grad_norm"]
        if hasattr(self.trainer, "loss_module"):
            advice.append("lower weights of the distillation terms (or reduction='mean', where the loss has it)")
        if type(error) is NonFiniteLossError:
            advice.append("a look at these images and their labels")
        if self.trainer.args.fp16:
            advice.append("bf16 in place of fp16")
        return ", ".join(advice)


def check_finite_weights(module: nn.Module, step: int) -> None:
    """Refuse to save weights, or statistics of batch norm, that are not finite.

    Raises:
        NonFiniteWeightsError: they are; the first ones are named.
    """
    named = [(name, tensor) for name, tensor in module.state_dict().items() if tensor.is_floating_point()]
    finite = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist() if named else []
    broken = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
    if broken:
        raise NonFiniteWeightsError(
            f"step {step}: {len(broken)} of {len(named)} weights of the student are not finite, {broken[0]} for one: "
            "they are not saved."
        )
