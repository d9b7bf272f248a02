"""The trainer with a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers import set_seed

from ..data.samples import collate_samples
from ..features import Activations, LayerTap, run_tapped, run_to_maps
from ..losses.base import DistillationLoss
from ..models.loading import load_model
from ..models.mask_classification import with_logits
from .class_weights import settle_class_weights
from .distillation import prepare_distillation
from .distributed import check_clipping, rank_generator, synchronise_batch_norm
from .saving import LOSS_WEIGHTS_NAME
from .teacher import compile_like_student, running_teacher, stops_early
from .teacher_input import processor_of, with_own_input
from .trainer import SegmentationTrainer
from .training_args import DistillationTrainingArguments


class DistillationTrainer(SegmentationTrainer):
    """Trains a student with a teacher's help; Af-DCD unless the arguments name another loss.

    Student and loss weights train as one module, so that they are synchronised over ranks, stepped and resumed
    together; a checkpoint holds `model.safetensors` (the student, loads with `from_pretrained`) and
    `distillation.safetensors` (the loss's weights, for resuming only). The teacher stays in eval mode and is neither
    trained nor saved.

    Args:
        model: the student; returns `.logits` for `model(pixel_values=...)`.
        teacher: likewise, with the same classes, or without logits (a DINOv3, say) for losses on maps alone; or the
            folder or Hub id of a saved one.
        args: settings; `student_layer` and `teacher_layer` name the maps to distil, one or as many pairs as you like.
        train_dataset: `TrainingSamples`, or any torch dataset of `pixel_values` and `labels`. One sample is looked at
            here, to check that layers exist and shapes fit before anything is trained.
        loss: a loss already built, in place of one that the arguments name (`loss=None` there); it has been given the
            channels of the maps to distil.
        teacher_processor: the teacher's image processor, where it normalises otherwise than the student's
            (`processing_class`): the teacher then gets images as it knows them. By default that of its folder, if the
            teacher is one.
        options: as for `SegmentationTrainer`.

    Raises:
        ValueError: unknown layers, class counts that differ, or maps that the loss cannot compare.
        OSError: there is no saved teacher of that name.
    """

    args: DistillationTrainingArguments

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | str | Path,
        args: DistillationTrainingArguments,
        *,
        train_dataset: Any = None,
        loss: DistillationLoss | None = None,
        teacher_processor: Any = None,
        **options: Any,
    ):
        set_seed(args.seed)  # the loss's weights are drawn here, before the Trainer sets the seed
        model = synchronise_batch_norm(model, args)  # before hooks are registered: it replaces layers
        first = next(iter(() if train_dataset is None else train_dataset), None)
        if first is None:
            raise ValueError(
                "DistillationTrainer needs a train_dataset with at least one sample, to check shapes with."
            )
        settle_class_weights(args, train_dataset)  # what the task loss is built with
        batch: dict[str, Any] = collate_samples([first])
        if isinstance(teacher, (str, Path)):
            if teacher_processor is None and options.get("processing_class") is not None:
                teacher_processor = processor_of(teacher)
            teacher = load_model(teacher, needs_logits=False)
        given = teacher = with_logits(teacher)
        if teacher_processor is not None:
            if options.get("processing_class") is None:
                raise ValueError("teacher_processor needs processing_class: the student's image processor.")
            teacher = with_own_input(teacher, options["processing_class"], teacher_processor)
        prepared = prepare_distillation(model, teacher, args, batch, loss)
        composite, teacher_layers, self.teacher_has_logits = prepared
        composite.loss = synchronise_batch_norm(composite.loss, args)
        super().__init__(composite, args, train_dataset=train_dataset, **options)
        check_clipping(self.is_deepspeed_enabled, args.loss_max_grad_norm)
        given.to(args.device)  # a copy shares its weights
        self.teacher = teacher.to(args.device).eval()
        faster = {"fold": args.fold_teacher_batch_norm, "channels_last": args.channels_last}
        running = running_teacher(self.teacher, batch["pixel_values"], teacher_layers, **faster)
        self._teacher_taps = [LayerTap(running, layer) for layer in teacher_layers]
        self._teacher_stops_early = not self.loss_module.reads_teacher_logits and stops_early(
            running, batch["pixel_values"], self._teacher_taps, self.accelerator
        )
        # After the tap is in place. Not accelerate's prepare_model: it would leave the caller's teacher changed.
        self._run_teacher = compile_like_student(running, self.accelerator)
        # The losses are timed inside the module that is trained, unless it is compiled as a whole.
        self._forward_part = (
            "forward" if self.accelerator.state.dynamo_plugin.backend != DynamoBackend.NO else "student"
        )
        for each in (composite.task_loss, composite.loss) if self._forward_part == "student" else ():
            each.register_forward_pre_hook(lambda *_: self.timer.lap("student"))
            each.register_forward_hook(lambda *_: self.timer.lap("loss"))
        # the one of the random masks, which differs from process to process
        self.loss_module.generator = rank_generator(args.seed, args.process_index, args.device)
        self.generators = [self.loss_module.generator]

    @property
    def student(self) -> Any:
        """The model that is trained, evaluated and saved, without any wrapper."""
        return self.trained_module.student

    @property
    def loss_module(self) -> Any:
        """The distillation loss with its weights (align, projector)."""
        return self.trained_module.loss

    def _run(self, model: nn.Module, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Any]:
        """With the distillation loss, at the steps that have it."""
        teacher = None
        if self.args.distils_at(self.state.global_step, self.share_done):
            teacher = self._teach(pixel_values)
            self.timer.lap("teacher")
        outputs = model(pixel_values=pixel_values, labels=labels, teacher=teacher)
        self.timer.lap(self._forward_part)
        return outputs["loss"], outputs["terms"], outputs

    @torch.no_grad()  # not inference_mode: its tensors cannot take part in the projector's backward pass
    def _teach(self, pixel_values: Tensor) -> Activations:
        with self.accelerator.autocast():
            if self._teacher_stops_early:
                return run_to_maps(self._run_teacher, pixel_values, self._teacher_taps)
            return run_tapped(self._run_teacher, pixel_values, self._teacher_taps)[1]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Any:
        """Clip the loss's own weights to `loss_max_grad_norm`, as the released code does; the student's are free.

        The Trainer calls this once before every optimizer step, after its own clipping; the norm it reports is the one
        before ours.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        weights = [parameter for parameter in self.loss_module.parameters() if parameter.grad is not None]
        if weights and self.args.loss_max_grad_norm > 0:
            # Gradients are already unscaled here (fp16): super() asks accelerate for their norm.
            nn.utils.clip_grad_norm_(weights, self.args.loss_max_grad_norm)
        return norm

    def modules_to_resume(self) -> dict[str, nn.Module]:
        """With the loss, for its weights."""
        return {**super().modules_to_resume(), LOSS_WEIGHTS_NAME: self.loss_module}
