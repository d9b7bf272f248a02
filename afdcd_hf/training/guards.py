"""Stopping a training at the step where it breaks, with the last good state saved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .agreement import Agreement
from .last_step import LastStep

_SHOWN_NAMES = 16


class NonFiniteLossError(ValueError):
    """The loss became infinite or NaN; the message has its terms, the images and what to try."""


class NonFiniteGradientError(NonFiniteLossError):
    """The loss is finite, but its gradients are not."""


# What an error is raised as again, with our message: the first kind that it is one of.
_KINDS = (NonFiniteGradientError, NonFiniteLossError, FileNotFoundError, OSError, ValueError, RuntimeError)


class Guards:
    """Ends a training early and cleanly; mixed into `SegmentationTrainer` in front of its checkpoints.

    - A loss, or gradients, that are not finite stop the run before the optimizer uses them. Infinite gradients are
      normal while a GradScaler (fp16) looks for its scale; there, only the loss is looked at.
    - An image that cannot be read stops it too.

    Either way the state after the last finished step is saved as an ordinary checkpoint first: resuming from it goes on
    as if nothing had happened. Several processes stop together, all with the message of the one concerned.
    """

    _last_step: LastStep | None = None

    def train(self, *args, **kwargs):
        """As in transformers; raises `NonFiniteLossError`, or what reading an image raised, after saving."""
        self._last_step = None  # made with the first batch, when everything is on its device
        return super().train(*args, **kwargs)

    def get_batch_samples(self, *args, **kwargs):
        """As in transformers, once an optimizer step; images that cannot be read stop all ranks."""
        if self._last_step is None:
            self._begin_watching()
        self._watched: list[tuple[Sequence[str], Mapping[str, Tensor]]] = []
        batches, failure = ([], None), None
        try:
            batches = super().get_batch_samples(*args, **kwargs)
        except Exception as error:
            failure = error
        self._stop_if_any(failure)
        return batches

    def _begin_watching(self) -> None:
        generator = getattr(getattr(self, "loss_module", None), "generator", None)
        module = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self._last_step = LastStep(module, [generator] if generator is not None else [])
        self._keep_last_step()
        self._first_step = self.state.global_step
        self._agreement = Agreement(self.args.world_size, self.args.ddp_timeout)

    def _keep_last_step(self) -> None:
        self._last_step.keep()
        self._last_sums = self._tr_loss.clone(), dict(self._term_sums), self._term_count

    def _restore_last_step(self) -> None:
        self._last_step.restore()
        self.model.zero_grad()
        # What the next line of the log is made of, and saved for a resumed run: the broken loss is in it already.
        loss, self._term_sums, self._term_count = self._last_sums
        self._tr_loss.copy_(loss)

    def _watch(self, terms: Mapping[str, Tensor], names: Sequence[str] | None) -> None:
        """Remember a batch's detached terms until its step is checked; nothing is read back from the device here."""
        if self.args.check_finite and self._last_step is not None:
            self._watched.append((names or (), terms))

    def _get_grad_norm(self, model: nn.Module, grad_norm=None):
        """As in transformers, which calls it before every optimizer step; the place to stop."""
        norm = super()._get_grad_norm(model, grad_norm)
        if self.args.check_finite:
            self._stop_if_any(self._not_finite(norm))
        return norm

    def _maybe_log_save_evaluate(self, *args, **kwargs) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._keep_last_step()

    def _evaluate(self, *args, **kwargs):
        try:
            return super()._evaluate(*args, **kwargs)
        except (OSError, ValueError) as error:
            if self.args.world_size > 1:  # the others are already waiting for this rank's counts
                raise
            self._keep_last_step()  # the step before this evaluation is finished
            self._stop_if_any(error)

    def _not_finite(self, norm: Tensor | float | None) -> NonFiniteLossError | None:
        """The error of this rank's step, if there is one; waits once for the device."""
        terms = [term.float() for _, batch in self._watched for term in batch.values()]
        # A sum is finite only if all its parts are.
        sums = [torch.stack(terms).sum()] if terms else []
        if norm is not None and self.accelerator.scaler is None:
            sums.append(torch.as_tensor(norm, dtype=torch.float32, device=self.args.device))
        if not sums or torch.isfinite(torch.stack(sums)).all().item():
            return None
        return self._describe(norm)

    def _describe(self, norm: Tensor | float | None) -> NonFiniteLossError:
        batches = [(names, {name: term.item() for name, term in terms.items()}) for names, terms in self._watched]
        broken = [batch for batch in batches if not all(map(_is_finite, batch[1].values()))]
        names, terms = (broken or batches or [((), {})])[0]
        kind, what = (NonFiniteLossError, "the loss is") if broken else (NonFiniteGradientError, "the gradients are")
        facts = [f"{name} {value:.4g}" for name, value in terms.items()]
        facts += [f"learning rate {self._get_learning_rate():.4g}"]
        facts += [f"gradient norm {float(norm):.4g}"] if norm is not None else []
        images = names if broken else [name for names, _ in batches for name in names]
        return kind(f"step {self.state.global_step + 1}: {what} not finite ({', '.join(facts)}){_listed(images)}.")

    def _stop_if_any(self, error: Exception | None) -> None:
        """On every rank: if one has an error, save the last good state together and raise its message."""
        told = (_kind(error), plain_message(error)) if error is not None else None
        news = self._agreement.news(told)
        if not news:
            return
        # One rank's NaN loss makes the gradients of all ranks NaN: the loss tells more.
        rank, (kind, message) = min(news, key=lambda item: item[1][0] is NonFiniteGradientError)
        where = f"process {rank}: " if self.args.world_size > 1 else ""
        text = f"{where}{message} {self._save_last_good()}"
        if issubclass(kind, NonFiniteLossError):
            text += f" To try: {self._advice(kind)}."
        raise kind(text) from error

    def _save_last_good(self) -> str:
        """Write the checkpoint of the last finished step, if it is not there; what has been done, in words."""
        self._restore_last_step()
        step = self.state.global_step
        if step == self._first_step:
            return "No step had been finished since the start, so there is nothing to save."
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        if not self._agreement.news(folder.is_dir() or None):
            try:
                self._save_checkpoint(self.model, None)
            except (OSError, RuntimeError) as error:
                return f"The state after step {step} could not be saved: {error}"
        return f"The state after step {step} is saved in {folder}: once this is mended, resume from it."

    def _advice(self, kind: type[NonFiniteLossError]) -> str:
        advice = ["a lower learning_rate or warmup_steps", "max_grad_norm"]
        if hasattr(self, "loss_module"):
            advice.append("lower weights of the distillation terms (or reduction='mean', where the loss has it)")
        if kind is NonFiniteLossError:
            advice.append("a look at these images and their labels")
        if self.args.fp16:
            advice.append("bf16 in place of fp16")
        return ", ".join(advice)


def plain_message(error: Exception) -> str:
    """An error's message, without the traceback that a data worker of torch's puts around it."""
    text = str(error)
    if not text.startswith("Caught "):
        return _ended(text or type(error).__name__)
    found = re.findall(rf"^(?:[\w.<>]+\.)?{re.escape(type(error).__name__)}: ", text, flags=re.MULTILINE)
    return _ended(text.rsplit(f"\n{found[-1]}", 1)[-1] if found else text)


def _ended(text: str) -> str:
    text = " ".join(text.split())
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _kind(error: Exception) -> type[Exception]:
    return next((kind for kind in _KINDS if isinstance(error, kind)), RuntimeError)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"; images {', '.join(names[:_SHOWN_NAMES])}{more}" if names else ""
