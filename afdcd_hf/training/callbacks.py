"""What happens beside the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from ..data.samples import TrainingSamples
from .checkpoints import MARKER_NAME, STATE_NAME, checkpoint_folder, mark_complete
from .resuming import check_same_run, facts_of
from .saving import save_tensors

if TYPE_CHECKING:
    from .trainer import SegmentationTrainer


class EpochCallback(TrainerCallback):
    """Tells the training samples which epoch it is, so that augmentation differs from epoch to epoch.

    accelerate does this for iterable datasets and samplers only. Persistent data workers see it too: the number lies in
    shared memory.
    """

    def __init__(self, samples: TrainingSamples):
        self.samples = samples

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Called by the Trainer, also for the epoch in which a run is resumed."""
        self.samples.set_epoch(int(state.epoch or 0))


class CheckpointCallback(TrainerCallback):
    """Adds to transformers' checkpoints what our runs need to continue exactly, and marks them as complete.

    Attributes:
        unfinished: the checkpoint that is being written.
        saved_step: of the last one that was completed.
        resumed_step: with which this training began; 0 for a new one.
    """

    def __init__(self, trainer: SegmentationTrainer):
        self.trainer = trainer
        self.unfinished: Path | None = None
        self.saved_step: int | None = None
        self.resumed_step = 0

    def begin(self, checkpoint: Path | None) -> None:
        """Take back what each process alone knew, from a checkpoint that this run can continue."""
        trainer, rank = self.trainer, self.trainer.args.process_index
        self.unfinished, self.saved_step, self.resumed_step = None, None, 0
        if checkpoint is None:
            return
        check_same_run(checkpoint, self._facts(), trainer.args, trainer.is_deepspeed_enabled)
        self.resumed_step = TrainerState.load_from_json(str(checkpoint / STATE_NAME)).global_step
        path = _of_process(checkpoint, rank)
        if not path.is_file():  # plain transformers, or fewer processes
            return
        state = load_file(path)
        if len(list(checkpoint.glob("process_*"))) == trainer.args.world_size:  # or this would be a part of the sums
            terms = {name: each.to(trainer.args.device) for name, each in state.items() if name.startswith("terms.")}
            trainer.terms.load({name.removeprefix("terms."): each for name, each in terms.items()})
        for index, generator in enumerate(trainer.generators):
            generator.set_state(state[f"generator.{index}"])
        if trainer.budget is not None:
            trainer.budget.begin(state["seconds"].item())

    def write(self, folder: Path) -> None:
        """Begin a checkpoint: weights beside the student's, and the state of each process, which has to call this."""
        trainer, args = self.trainer, self.trainer.args
        folder.mkdir(parents=True, exist_ok=True)
        self.unfinished = folder
        if args.should_save:
            (folder / MARKER_NAME).unlink(missing_ok=True)
        if args.save_only_model:
            return
        for name, tensors in trainer.weights_to_resume().items():
            if args.should_save and tensors:
                save_tensors(tensors, folder / name)
        state = {f"terms.{name}": total for name, total in trainer.terms.state().items()}
        state |= {f"generator.{index}": each.get_state() for index, each in enumerate(trainer.generators)}
        if trainer.budget is not None:
            state["seconds"] = torch.tensor(trainer.budget.used, dtype=torch.float64)
        save_tensors(state, _of_process(folder, args.process_index))

    def on_train_begin(self, args, state, control, **kwargs):
        """The best checkpoint is found again where the whole output folder has been moved."""
        if state.best_global_step:
            best = checkpoint_folder(args.output_dir, state.best_global_step)
            if best.is_dir():
                state.best_model_checkpoint = str(best)

    def on_save(self, args, state, control, **kwargs):
        """transformers has written its files, too; on every process."""
        if self.unfinished is not None:
            self.trainer.accelerator.wait_for_everyone()
            if args.should_save:
                mark_complete(self.unfinished, {**self._facts(), "step": state.global_step})
            self.unfinished, self.saved_step = None, state.global_step

    def _facts(self) -> dict:
        samples = self.trainer.train_dataset
        return facts_of(self.trainer.args, len(samples) if hasattr(samples, "__len__") else None)


def _of_process(folder: Path, rank: int) -> Path:
    return folder / f"process_{rank}.safetensors"
