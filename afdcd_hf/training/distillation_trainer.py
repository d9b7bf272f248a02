"""The trainer with a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import set_seed

from ..data.samples import collate_samples
from ..features import Activations, LayerTap, run_tapped
from .distillation import prepare_distillation
from .trainer import SegmentationTrainer
from .training_args import DistillationTrainingArguments

LOSS_WEIGHTS_NAME = "distillation.safetensors"


class DistillationTrainer(SegmentationTrainer):
    """Trains a student with a teacher's help; Af-DCD unless the arguments name another loss.

    Student and loss weights train as one module, so that they are synchronised over ranks, stepped and resumed
    together; a checkpoint holds `model.safetensors` (the student, loads with `from_pretrained`) and
    `distillation.safetensors` (the loss's weights, for resuming only). The teacher stays in eval mode and is neither
    trained nor saved.

    Args:
        model: the student; returns `.logits` for `model(pixel_values=...)`.
        teacher: likewise, with the same classes.
        args: settings; `student_layer` and `teacher_layer` name the maps to distil.
        train_dataset: `TrainingSamples`, or any torch dataset of `pixel_values` and `labels`. One sample is looked at
            here, to check that layers exist and shapes fit before anything is trained.
        kwargs: as for `SegmentationTrainer`.

    Raises:
        ValueError: unknown layers, class counts that differ, or maps that the loss cannot compare.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, args: DistillationTrainingArguments, *, train_dataset=None, **kwargs
    ):
        set_seed(args.seed)  # the loss's weights are drawn here, before the Trainer sets the seed
        composite, teacher_layer = prepare_distillation(model, teacher, args, _first_batch(train_dataset))
        super().__init__(composite, args, train_dataset=train_dataset, **kwargs)
        self.teacher = self.accelerator.prepare_model(teacher, evaluation_mode=True).eval()
        self._teacher_tap = LayerTap(self.teacher, teacher_layer) if teacher_layer is not None else None

    @property
    def student(self) -> nn.Module:
        """The network that is trained, evaluated and saved, without any wrapper."""
        return super().student.student

    @property
    def loss_module(self) -> nn.Module:
        """The distillation loss with its weights (align, projector)."""
        return super().student.loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs=False, num_items_in_batch=None):
        """Task and distillation loss of one batch; all terms go to the log."""
        outputs = model(
            pixel_values=inputs["pixel_values"], labels=inputs["labels"], teacher=self._teach(inputs["pixel_values"])
        )
        self._record(outputs["terms"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    @torch.no_grad()  # not inference_mode: its tensors cannot take part in the projector's backward pass
    def _teach(self, pixel_values: Tensor) -> Activations:
        outputs, feature_map = run_tapped(self.teacher, pixel_values, self._teacher_tap)
        return Activations(outputs.logits, feature_map)

    def _get_grad_norm(self, model: nn.Module, grad_norm=None):
        """Clip the loss's own weights to `loss_max_grad_norm`, as the released code does; the student's are free.

        The Trainer calls this once before every optimizer step, after its own clipping; the norm it reports is the one
        before ours.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        weights = [parameter for parameter in self.loss_module.parameters() if parameter.grad is not None]
        if weights and self.args.loss_max_grad_norm > 0:
            # Gradients are already unscaled here (fp16): the line above asks accelerate for their norm.
            nn.utils.clip_grad_norm_(weights, self.args.loss_max_grad_norm)
        return norm

    def _student_weights(self, state_dict: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        if state_dict is None:
            return None
        prefix = "student."
        return {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        weights = self.loss_module.state_dict()
        if self.args.should_save and weights:
            save_file({name: t.contiguous() for name, t in weights.items()}, Path(output_dir) / LOSS_WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model=self.student)
        path = Path(resume_from_checkpoint) / LOSS_WEIGHTS_NAME
        if not self.loss_module.state_dict():
            return
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the weights of the distillation loss cannot be resumed. Resume from a checkpoint "
                "that DistillationTrainer wrote with save_only_model=False, or start a new run from that student."
            )
        self.loss_module.load_state_dict(load_file(path))

    def _load_best_model(self) -> None:
        # Only the student: what the loss had learned by then is of no use any more.
        super()._load_from_checkpoint(self.state.best_model_checkpoint, model=self.student)


def _first_batch(train_dataset) -> dict[str, Tensor]:
    if train_dataset is None or len(train_dataset) == 0:
        raise ValueError("DistillationTrainer needs a train_dataset with at least one sample, to check shapes with.")
    return collate_samples([train_dataset[0]])
