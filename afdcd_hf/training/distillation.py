"""Distillation: the trained module, which holds student and loss, and the trainer with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers import set_seed

from ..features import Activations, LayerTap, default_layer, layer_names, run_tapped, run_to_maps
from ..losses import build_loss, needs_feature_map
from ..losses.base import DistillationLoss
from ..losses.cirkd import queue_names
from ..losses.task import TaskLoss
from ..models.loading import load_model, with_logits
from .checkpoints import LOSS_WEIGHTS_NAME
from .datasets import first_batch, resolve_class_weights, stated
from .distributed import check_clipping, synchronise_batch_norm
from .teacher import adapt_input, feature_maps, load_teacher_processor, observe, optimize_teacher, stops_early
from .trainer import SegmentationTrainer
from .training_args import DistillationTrainingArguments, check_layer_pairs


class DistillationModel(nn.Module):
    """Student and distillation loss in one module, so that both are synchronised, optimised and resumed together.

    Args:
        student: returns `.logits` `(B, K, h, w)` for `student(pixel_values=...)`.
        loss: distillation loss with its weights (align, projector).
        task_loss: loss on the labels.
        student_layer: path of the feature map to distil, or several; None if the loss needs none.
    """

    student: Any  # an `nn.Module` with those methods of transformers' models that the Trainer calls
    loss: DistillationLoss
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False

    def __init__(
        self,
        student: nn.Module,
        loss: DistillationLoss,
        task_loss: TaskLoss,
        student_layer: str | Sequence[str] | None = None,
    ):
        super().__init__()
        self.student, self.loss, self.task_loss = student, loss, task_loss
        self._taps = [LayerTap(student, layer) for layer in layer_names(student_layer)]
        # read by DDP: these buffers are large and equal on all processes, so they need no broadcast at every step
        self._ddp_params_and_buffers_to_ignore = queue_names(self)
        # read by transformers: `model.safetensors` holds the student only
        self._keys_to_ignore_on_save = [name for name in self.state_dict() if not name.startswith("student.")]
        self.register_load_state_dict_pre_hook(_accept_students_names)

    @property
    def config(self):
        """The student's configuration, read by the Trainer."""
        return getattr(self.student, "config", None)

    def tie_weights(self) -> None:
        """Tie the student's weights; called by transformers after loading a saved student."""
        if hasattr(self.student, "tie_weights"):
            self.student.tie_weights()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Enable the student's gradient checkpointing; called by the Trainer."""
        self.student.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Enable the student's gradient checkpointing, under its name in newer versions of transformers."""
        self.student.activation_checkpointing_enable(**options)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, teacher: Activations | None = None
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        """Run one forward pass on `(B, 3, H, W)` images and `(B, H, W)` int64 labels.

        Returns:
            `loss` (scalar), `logits` (detached) and `terms` (name -> weighted, detached scalar; only those of the task
            if `teacher` is None). Without labels, only `logits`.
        """
        if labels is None:
            return {"logits": self.student(pixel_values=pixel_values).logits}
        outputs, activations = run_tapped(self.student, pixel_values, self._taps)
        terms = self.task_loss(outputs, labels)
        if teacher is not None:
            terms = {**terms, **self.loss(activations, teacher, labels)}
        return {
            "loss": torch.stack(list(terms.values())).sum(),
            "logits": outputs.logits.detach(),
            "terms": {name: term.detach() for name, term in terms.items()},
        }


def _accept_students_names(module: nn.Module, state_dict: dict[str, Tensor], *_: Any) -> None:
    """Accept a saved student's state dict by adding the prefix `student.`, for `load_best_model_at_end`."""
    if not any(name.startswith(("student.", "loss.")) for name in state_dict):
        for name in list(state_dict):
            state_dict[f"student.{name}"] = state_dict.pop(name)


class DistillationTrainer(SegmentationTrainer):
    """Trains a student with a teacher; the loss is Af-DCD unless the arguments name another.

    A checkpoint holds `model.safetensors` (the student, loads with `from_pretrained`) and `distillation.safetensors`
    (the loss's weights, for resuming only). The teacher stays in eval mode and is neither trained nor saved.

    Args:
        model: the student; returns `.logits` for `model(pixel_values=...)`.
        teacher: a model with the same interface and classes, or one without logits (such as DINOv3) for losses that
            compare feature maps only; or the folder or Hub id of a saved model.
        args: settings; `student_layer` and `teacher_layer` name one or more pairs of feature maps to distil.
        train_dataset: `TrainingSamples`, or any torch dataset of `pixel_values` and `labels`. Its first sample is run
            through both models and the loss before training, as a check.
        loss: a loss already built for the channels of the feature maps, with `loss=None` in the arguments.
        teacher_processor: the teacher's image processor, if it normalises differently from the student's
            (`processing_class`); the teacher then gets its own normalisation. By default, that of its folder.
        options: as for `SegmentationTrainer`.

    Raises:
        ValueError: unknown layers, different numbers of classes, or feature maps that the loss cannot compare.
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
        batch = first_batch(train_dataset, options.get("data_collator"), model)
        if batch is None:
            raise ValueError("DistillationTrainer needs a train_dataset with at least one sample to check shapes with.")
        resolve_class_weights(args, train_dataset)  # before the task loss is built with them
        if isinstance(teacher, (str, Path)):
            if teacher_processor is None and options.get("processing_class") is not None:
                teacher_processor = load_teacher_processor(teacher)
            teacher = load_model(teacher, needs_logits=False)
        given = teacher = with_logits(teacher)
        if teacher_processor is not None:
            if options.get("processing_class") is None:
                raise ValueError("teacher_processor needs processing_class: the student's image processor.")
            teacher = adapt_input(teacher, options["processing_class"], teacher_processor)
        composite, layers, self.teacher_has_logits = prepare_distillation(
            model, teacher, args, batch, TaskLoss.for_model(model, args, stated(train_dataset, "ignore_index")), loss
        )
        composite.loss = synchronise_batch_norm(composite.loss, args)
        super().__init__(composite, args, train_dataset=train_dataset, **options)
        check_clipping(self.is_deepspeed_enabled, args.loss_max_grad_norm)
        if self.optimizer is not None:
            _check_optimizer(self.optimizer, composite.loss)
        given.to(args.device)  # a copy shares its weights
        self.teacher = teacher.to(args.device).eval()
        faster = {"fold": args.fold_teacher_batch_norm, "channels_last": args.channels_last}
        running = optimize_teacher(self.teacher, batch["pixel_values"], layers, **faster)
        self._teacher_taps = [LayerTap(running, layer) for layer in layers]
        self._teacher_stops_early = not self.loss_module.reads_teacher_logits and stops_early(
            running, batch["pixel_values"], self._teacher_taps, self.accelerator
        )
        plugin = self.accelerator.state.dynamo_plugin
        compiled = plugin.backend != DynamoBackend.NO
        # Compiled after the taps are in place. accelerate's prepare_model would modify the caller's teacher.
        self._run_teacher: Any = torch.compile(running, **plugin.to_kwargs()) if compiled else running
        # The losses are timed inside the trained module, unless it is compiled as a whole.
        self._forward_part = "forward" if compiled else "student"
        for each in () if compiled else (composite.task_loss, composite.loss):
            each.register_forward_pre_hook(lambda *_: self.timer.lap("student"))
            each.register_forward_hook(lambda *_: self.timer.lap("loss"))

    @property
    def loss_module(self) -> Any:
        """The distillation loss with its weights (align, projector)."""
        return self.trained_module.loss

    def _run(self, model: nn.Module, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Add the distillation loss, at the steps that use the teacher."""
        teacher = None
        if self.args.uses_teacher_at(self.state.global_step, self.share_done):
            teacher = self._teach(pixel_values)
            self.timer.lap("teacher")
        outputs = model(pixel_values=pixel_values, labels=labels, teacher=teacher)
        self.timer.lap(self._forward_part)
        return outputs["loss"], outputs["terms"], outputs

    @torch.no_grad()  # not inference_mode, whose tensors cannot be used in the projector's backward pass
    def _teach(self, pixel_values: Tensor) -> Activations:
        with self.accelerator.autocast():
            if self._teacher_stops_early:
                return run_to_maps(self._run_teacher, pixel_values, self._teacher_taps)
            return run_tapped(self._run_teacher, pixel_values, self._teacher_taps)[1]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Any:
        """Clip the gradients of the loss's own weights, not the student's, as the released code does."""
        norm = super()._get_grad_norm(model, grad_norm)
        weights = [parameter for parameter in self.loss_module.parameters() if parameter.grad is not None]
        if weights and self.args.loss_max_grad_norm > 0:
            # Gradients are already unscaled here (fp16): super() has accelerate compute their norm.
            nn.utils.clip_grad_norm_(weights, self.args.loss_max_grad_norm)
        return norm

    def modules_to_resume(self) -> dict[str, nn.Module]:
        """Add the loss, for its weights."""
        return {**super().modules_to_resume(), LOSS_WEIGHTS_NAME: self.loss_module}


def prepare_distillation(
    student: nn.Module,
    teacher: nn.Module,
    args: DistillationTrainingArguments,
    batch: dict[str, Tensor],
    task_loss: TaskLoss,
    loss: DistillationLoss | None = None,
) -> tuple[DistillationModel, tuple[str, ...], bool]:
    """Return the module to train, the teacher's layers (none if only logits are compared), and if it has logits.

    One batch is run through both models and the loss, so that whatever cannot work raises ValueError before training.
    """
    if (loss is None) == (args.loss is None):
        raise ValueError("Give the loss once: by name in the arguments, or as DistillationTrainer(loss=...).")
    layers: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
    if loss.needs_feature_map if loss is not None else needs_feature_map(str(args.loss), args.loss_kwargs):
        of_student = layer_names(args.student_layer) or (default_layer(student, "student"),)
        of_teacher = layer_names(args.teacher_layer) or (default_layer(teacher, "teacher"),)
        check_layer_pairs(of_student, of_teacher)
        layers = of_student, of_teacher
    images = batch["pixel_values"]
    seen, taught = observe(student, images, layers[0]), observe(teacher, images, layers[1])
    num_classes = _check_classes(student, teacher, seen, taught)
    if loss is None:
        own, others = ([each.shape[1] for each in feature_maps(outputs)] or None for outputs in (seen, taught))
        loss = build_loss(str(args.loss), args.loss_kwargs, own, others, num_classes)
    readers = [each.name for each in getattr(loss, "losses", {"": loss}).values() if each.reads_teacher_logits]
    if taught.logits is None and readers:
        raise ValueError(
            f"The teacher, a {type(teacher).__name__}, has no class scores (.logits of shape (B, K, h, w)), which the "
            f"loss {' and '.join(readers)} reads: choose a loss on feature maps only, or wrap it: as_segmenter."
        )
    _try_loss(loss, seen, taught, batch["labels"])
    distilled = DistillationModel(student, loss, task_loss, layers[0])
    return distilled, layers[1], taught.logits is not None


@torch.no_grad()
def _try_loss(loss: DistillationLoss, student: Activations, teacher: Activations, labels: Tensor) -> None:
    """Compute the loss as in training, where the teacher may stop at its maps; ValueError if it then needs logits."""
    if loss.reads_teacher_logits:
        loss(student, teacher, labels)
        return
    try:
        loss(student, teacher._replace(logits=None), labels)
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"The loss {loss.name!r} gets no teacher.logits, because it has map_terms alone, and fails: {error}. If it "
            "reads them, set reads_teacher_logits = True in its class."
        ) from error


def _check_optimizer(optimizer: torch.optim.Optimizer, loss: nn.Module) -> None:
    """Raise ValueError if a given optimizer would leave weights of the loss untrained."""
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if left_out := [name for name, each in loss.named_parameters() if each.requires_grad and id(each) not in own]:
        raise ValueError(
            f"The given optimizer lacks {len(left_out)} trainable weights of the loss, such as {left_out[0]}, which "
            'would stay untrained. Give optimizer_cls_and_kwargs=(torch.optim.AdamW, {"lr": 1e-3}) instead, or set '
            "trainer.optimizer afterwards, with trainer.loss_module.parameters() among its parameters."
        )


def _check_classes(student: nn.Module, teacher: nn.Module, seen: Activations, taught: Activations) -> int:
    """Return the student's number of classes; ValueError if a teacher with logits has different classes."""
    if seen.logits is None:
        raise ValueError(f"The student, a {type(student).__name__}, returns no .logits (B, K, h, w); use as_segmenter.")
    count = seen.logits.shape[1]
    if taught.logits is None:
        return count
    if count != taught.logits.shape[1]:
        raise ValueError(
            f"The student has {count} classes and the teacher {taught.logits.shape[1]}. Give the student the teacher's "
            "num_labels, or use a teacher trained on these classes."
        )
    for index, (own, other) in enumerate(zip(_class_names(student), _class_names(teacher), strict=False)):
        if own != other:
            what = f"Class {index} is {own!r} for the student and {other!r} for the teacher"
            raise ValueError(f"{what}: their id2label must agree, or the teacher teaches the wrong classes.")
    return count


def _class_names(model: nn.Module) -> list[str]:
    """Return the class names of the configuration; none if they are the placeholders LABEL_0, LABEL_1, ..."""
    id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = [id2label[index] for index in sorted(id2label)]
    return [] if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names
