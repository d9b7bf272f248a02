"""What a checkpoint holds, and how it is written whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_callback import ExportableState

from ..atomic_io import written_whole
from .data_workers import prepare_workers
from .interruption import Interruption, InterruptionCallback
from .resuming import Resuming, checkpoint_to_resume
from .whole_checkpoints import (
    SAVING,
    checkpoints_of,
    files_written_whole,
    install,
    remove_oldest,
    write_manifest,
)

STATE_NAME = "trainer_state.json"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch.save and safetensors have their own for a full disk


class Checkpoints(Resuming):
    """Saving and loading of a trainer; mixed into `SegmentationTrainer` in front of `transformers.Trainer`.

    A checkpoint holds the student as `from_pretrained` reads it, and all that a resumed run needs to end with the same
    weights to the bit: the loss's weights, optimizer, schedule, scaler, state of the run and, for every process, the
    states of the random generators and what has been summed up for the next line of the log.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As in transformers, from a checkpoint that is known to be whole; stopped by a signal, it saves one first.

        Args:
            resume_from_checkpoint: a checkpoint's folder; True or "last" for the last whole one in `output_dir`.
            args: as for `transformers.Trainer.train`.
            kwargs: likewise.

        Raises:
            TrainingInterrupted: After SIGTERM or SIGINT (Ctrl-C), with a checkpoint saved.
            FileNotFoundError: If there is no whole checkpoint to resume from.
            ValueError: If the named one is not whole, or does not fit the networks.
            OSError: If a checkpoint cannot be written; the ones before it stay whole.
        """
        resume = checkpoint_to_resume(self.args, resume_from_checkpoint)
        self._interruption = Interruption(self.args)
        callback = InterruptionCallback(self._interruption, lambda: self._save_checkpoint(self.model_wrapped, None))
        self.add_callback(callback)
        try:
            with self._interruption.listening():
                return super().train(resume, *args, **kwargs)
        finally:
            self.remove_callback(callback)

    def get_train_dataloader(self):
        """As in transformers; starting data workers neither draws from the global generator nor lets signals end them.

        A worker that is started again in a resumed run would otherwise shift all that is drawn afterwards.
        """
        return prepare_workers(super().get_train_dataloader(), self.args)

    def _extra_state(self) -> dict[str, dict[str, Tensor]]:
        """Further tensors to resume with: file name -> their names and values. Nothing by default."""
        return {}

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` under another name, and rename it when it is whole on the disk."""
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        target = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        part = target.with_name(SAVING + target.name)
        parts = [lambda: _make_empty(part) if self.args.should_save else None]
        parts += [lambda: self.save_model(str(part), _internal_call=True)]
        if not self.args.save_only_model:
            parts += [
                lambda: self._save_optimizer_and_scheduler(str(part)),
                lambda: self._save_scaler(str(part)),
                lambda: self._save_rng_state(str(part)),
            ]
        parts += [lambda: self._finish_checkpoint(part, target) if self.args.should_save else None]
        try:
            for write in parts:
                self._together(write, target)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(part, ignore_errors=True)
            raise
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _together(self, write: Callable[[], None], target: Path) -> None:
        """Write a part of a checkpoint; where one process fails all do, so that none waits for it for ever."""
        error = None
        try:
            write()
        except Exception as caught:
            error = caught
        messages = gather_object([None if error is None else f"{type(error).__name__}: {error}"])
        if isinstance(error, WRITE_ERRORS):
            raise OSError(_why_not_written(target, error)) from error
        if error is not None:
            raise error
        if failed := [message for message in messages if message is not None]:
            raise OSError(f"{target} could not be written by another process: {failed[0]}")

    def _finish_checkpoint(self, part: Path, target: Path) -> None:
        """The run's state, the manifest, the name; then older checkpoints go."""
        best = self.state.best_global_step and target.with_name(f"checkpoint-{self.state.best_global_step}")
        if best and (best == target or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        callbacks = [*self.callback_handler.callbacks, self.control]
        for callback in (callback for callback in callbacks if isinstance(callback, ExportableState)):
            name, stored = type(callback).__name__, self.state.stateful_callbacks
            if isinstance(stored[name], list):
                stored[name].append(callback.state())
            else:
                stored[name] = callback.state()
        self.state.save_to_json(str(part / STATE_NAME))
        write_manifest(part, self._facts())
        install(part, target)
        remove_oldest(target.parent, self.args.save_total_limit, keep={target, best or target})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the student alone, in the form that `from_pretrained` reads, with its image processor and settings.

        Unlike transformers' own method it writes no pickled `training_args.bin`: the settings go to a JSON file.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        try:
            with files_written_whole(folder) as part:
                self._write_student(part, self._student_weights(state_dict))
        except SafetensorError as error:
            raise OSError(f"the student could not be written to {folder}: {error}") from error

    def _write_student(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        student = self.evaluated_student
        if isinstance(student, PreTrainedModel):
            student.save_pretrained(folder, state_dict=weights)
        else:
            weights = weights if weights is not None else student.state_dict()
            save_file(_contiguous(weights), folder / "model.safetensors")
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")

    def _student_weights(self, state_dict: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return state_dict

    def save_state(self) -> None:
        """As in transformers, but the file is there whole or not at all."""
        if self.args.should_save:
            with written_whole(Path(self.args.output_dir) / STATE_NAME) as part:
                self.state.save_to_json(str(part))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        for name, tensors in self._extra_state().items():
            if self.args.should_save and tensors:
                save_file(_contiguous(tensors), Path(output_dir) / name)

    def _save_rng_state(self, output_dir: str) -> None:
        """Called on every process."""
        super()._save_rng_state(output_dir)
        save_file(self._log_sums(), Path(output_dir) / f"log_sums_{self.args.process_index}.safetensors")
        if (generator := self._generator()) is not None:
            path = Path(output_dir) / f"mask_generator_{self.args.process_index}.safetensors"
            save_file({"state": generator.get_state()}, path)

    def _log_sums(self) -> dict[str, Tensor]:
        """What has been summed up since the last line of the log, in float64."""
        sums = {f"term.{name}": torch.as_tensor(total) for name, total in self._term_sums.items()}
        counts = {"terms": self._term_count, "step": self._globalstep_last_logged, **self.timer.look().as_counts()}
        sums |= {"loss": self._tr_loss, **{name: torch.tensor(count) for name, count in counts.items()}}
        return {name: tensor.detach().cpu().double() for name, tensor in sums.items()}

    def _finalize_training(self, *args, **kwargs):
        """An interrupted training has no end: no best model is loaded, and no checkpoint removed."""
        if self._interruption.stopped:
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
            self._finish_current_push()
            self.is_in_train = False
            self._interruption.raise_stopped(self.state.global_step)
        return super()._finalize_training(*args, **kwargs)


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _why_not_written(target: Path, error: Exception) -> str:
    """One line with the path, the cause, and how much room there is."""
    cause = getattr(error, "strerror", None) or next(iter(str(error).strip().splitlines()), type(error).__name__)
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**20
    kept = [path for path in checkpoints_of(target.parent) if path != target]
    kept_text = f" The checkpoints before it are kept, the newest is {kept[0]}." if kept else ""
    return f"{target} could not be written: {cause} ({free:.1f} MiB are free there).{kept_text}"
