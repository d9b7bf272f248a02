"""How a run goes on from a checkpoint as if it had never stopped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainingArguments

from .scale_out import images_per_step
from .speed import Speed
from .whole_checkpoints import check_whole, checkpoints_of, fault_of, last_whole_checkpoint, read_manifest, tidy

logger = logging.getLogger(__name__)


class Resuming:
    """Reads what `Checkpoints` has written; mixed into trainers with it."""

    def _load_extra_state(self, folder: str | Path) -> None:
        """Take back what `_extra_state` gave."""

    def _generator(self) -> torch.Generator | None:
        """The loss's own random generator, one for each process; None if it draws from torch's global one."""
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the student, strictly, and what `_extra_state` gave."""
        folder = Path(resume_from_checkpoint)
        self._check_same_run(folder)
        super()._load_from_checkpoint(resume_from_checkpoint, model=model if self.is_fsdp_enabled else self.student)
        self._load_extra_state(folder)

    def _load_best_model(self) -> None:
        # Only the student: what the loss had learned by then is of no use any more.
        best = Path(self.state.best_model_checkpoint)
        check_whole(best)
        super()._load_from_checkpoint(str(best), model=self.model if self.is_fsdp_enabled else self.student)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """transformers loads without being strict, and calls this with the names that did not match."""
        tied = getattr(self.student, "all_tied_weights_keys", None) or ()
        left_out = {*tied, *(getattr(self.student, "_keys_to_ignore_on_save", None) or ())}
        missing = [name for name in load_result.missing_keys if name not in left_out]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                "The checkpoint's weights do not fit this student. "
                f"Missing: {_few(missing)}; unexpected: {_few(load_result.unexpected_keys)}. "
                "Resume with the network that the run was started with."
            )
        if tied:
            self.student.tie_weights()

    def _init_training_state(self, *args, **kwargs):
        """As in transformers; a best checkpoint is found again where the whole output folder has been moved."""
        progress = super()._init_training_state(*args, **kwargs)
        if self.state.best_global_step:
            best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
            if best.is_dir():
                self.state.best_model_checkpoint = str(best)
        return progress

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Called on every process, right before the first step of a resumed run."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        rank = self.args.process_index
        manifest, sums = read_manifest(Path(checkpoint)), Path(checkpoint) / f"log_sums_{rank}.safetensors"
        # Of another number of processes these would be part of the sums only, and each process must have some.
        if manifest is not None and manifest["processes"] == self.args.world_size and sums.is_file():
            self._restore_log_sums(load_file(sums))
        if (generator := self._generator()) is None:
            return
        path = Path(checkpoint) / f"mask_generator_{rank}.safetensors"
        if path.is_file():
            generator.set_state(load_file(path)["state"])
        else:
            logger.warning("%s is missing: the loss's random masks start afresh.", path)

    def _restore_log_sums(self, sums: dict[str, Tensor]) -> None:
        device = self.args.device
        terms = {name.removeprefix("term."): total for name, total in sums.items() if name.startswith("term.")}
        self._term_sums = {name: total.float().to(device) for name, total in terms.items()}
        self._term_count = int(sums["terms"])
        self._globalstep_last_logged = int(sums["step"])
        self._tr_loss += sums["loss"].float().to(device)
        self.timer.go_on_from(Speed.of_counts({name: number.item() for name, number in sums.items()}))
        # train_loss is a mean over the steps of this call; what came before it will be added with the next line.
        self._total_loss_scalar -= sums["loss"].item()

    def _check_same_run(self, folder: Path) -> None:
        """Say what will make the continuation differ, and refuse what cannot be continued."""
        manifest = read_manifest(folder)
        resumable = manifest["resumable"] if manifest is not None else (folder / "scheduler.pt").is_file()
        if not resumable and not self.is_deepspeed_enabled:
            raise ValueError(
                f"{folder} holds the student only (save_only_model), without optimizer and schedule: it cannot be "
                "resumed. Start a new run from that student, on the command line with --model."
            )
        now = self._facts()
        effects = {
            "processes": "dropout and random masks differ from the uninterrupted run's",
            "images_per_step": "the order of the images and the meaning of the steps change",
            "training_samples": "the order of the images changes; is this the same dataset?",
            "seed": "the order and augmentation of the images change",
        }
        for name, effect in effects.items():
            if manifest is not None and manifest.get(name) != now[name]:
                what = name.replace("_", " ")
                logger.warning("%s: %s were %s, now %s: %s.", folder, what, manifest.get(name), now[name], effect)

    def _number_of_samples(self) -> int | None:
        return len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None

    def _facts(self) -> dict[str, Any]:
        """What a resumed run is held against."""
        return {
            "format": 1,
            "step": self.state.global_step,
            "resumable": not self.args.save_only_model,
            "processes": self.args.world_size,
            "images_per_step": images_per_step(self.args),
            "training_samples": self._number_of_samples(),
            "seed": self.args.seed,
            "versions": {module.__name__: module.__version__ for module in (torch, transformers, accelerate)},
        }


def checkpoint_to_resume(args: TrainingArguments, wanted: str | bool | None) -> str | None:
    """The folder to resume from, verified; leftovers of a killed run in the output folder are cleared away.

    The main process looks, and tells the others.

    Args:
        args: of the run.
        wanted: a checkpoint's folder; True or "last" for the last whole one in `args.output_dir`; None for none.

    Raises:
        FileNotFoundError: If there is no whole checkpoint, or no such folder.
        ValueError: If the named checkpoint is not whole.
    """
    found: list[Any] = [None, None]
    if args.process_index == 0:
        try:
            found[0] = _checkpoint_to_resume(Path(args.output_dir), wanted)
        except (OSError, ValueError) as error:
            found[1] = error
    if args.world_size > 1:
        broadcast_object_list(found, from_process=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def _checkpoint_to_resume(output: Path, wanted: str | bool | None) -> str | None:
    tidy(output)
    if wanted is None or wanted is False:
        return None
    if wanted is True or wanted in ("last", "true", "True"):
        return str(last_whole_checkpoint(output))
    check_whole(Path(wanted))
    beside = checkpoints_of(Path(wanted).parent)
    newer = [path.name for path in beside if _step(path) > _step(Path(wanted)) and fault_of(path) is None]
    if newer:
        logger.warning("%s is not the newest checkpoint of its run: there are %s too.", wanted, ", ".join(newer))
    return str(wanted)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
