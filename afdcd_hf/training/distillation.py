"""The one module that is trained in a distillation: the student together with the loss's own weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..features import Activations, LayerTap, default_layer, layer_names, run_tapped
from ..losses import build_loss, needs_feature_map
from ..losses.base import DistillationLoss
from ..losses.cirkd import queue_names
from ..losses.task import TaskLoss
from ..model_utils import device_of, evaluating
from .training_args import DistillationTrainingArguments, check_pairs

_STUDENT = "student."


class DistillationModel(nn.Module):
    """Student and distillation loss, wrapped once so that both are synchronised, stepped and resumed together.

    The teacher stays outside: it is never trained, never wrapped and never saved.

    Args:
        student: returns `.logits` `(B, K, h, w)` for `student(pixel_values=...)`.
        loss: distillation loss with its weights (align, projector).
        task_loss: cross entropy on the labels.
        student_layer: the map to distil, or several; None where the loss needs none.
    """

    student: Any  # an `nn.Module`, with such methods of transformers' as the Trainer calls
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
        self.student = student
        self.loss = loss
        self.task_loss = task_loss
        self._taps = [LayerTap(student, layer) for layer in layer_names(student_layer)]
        # torch's name for what DDP shall not send around at every step: these are large and equal on all processes
        self._ddp_params_and_buffers_to_ignore = queue_names(self)
        # transformers' name for what a saved model does not hold: `model.safetensors` is the student
        self._keys_to_ignore_on_save = [name for name in self.state_dict() if not name.startswith(_STUDENT)]
        self.register_load_state_dict_pre_hook(_accept_students_names)

    @property
    def config(self):
        """The student's configuration, which the Trainer reads."""
        return getattr(self.student, "config", None)

    def tie_weights(self) -> None:
        """The student's; transformers calls this when it has loaded a saved student."""
        if hasattr(self.student, "tie_weights"):
            self.student.tie_weights()

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """The student's; loss and teacher keep little. The Trainer calls it, or under its newer name the next one."""
        self.student.gradient_checkpointing_enable(**options)

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """The student's."""
        self.student.activation_checkpointing_enable(**options)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, teacher: Activations | None = None
    ) -> dict[str, Tensor | dict[str, Tensor]]:
        """One training pass.

        Args:
            pixel_values: `(B, 3, H, W)`.
            labels: `(B, H, W)` int64.
            teacher: the teacher's activations for the same batch; None for a step without it.

        Returns:
            `loss` (scalar), `logits` (detached) and `terms` (name -> weighted, detached scalar), which are the task's
            alone without a teacher; `logits` alone without labels, so that the module can also be used for plain
            prediction.
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
    """Let the weights of a saved student be loaded into the module that trains it, as `load_best_model_at_end` does."""
    if state_dict and not any(name.startswith((_STUDENT, "loss.")) for name in state_dict):
        for name in list(state_dict):
            state_dict[_STUDENT + name] = state_dict.pop(name)


@torch.no_grad()
def observe(model: nn.Module, pixel_values: Tensor, layers: Sequence[str]) -> Activations:
    """Run a model in eval mode on one batch and return what a loss would see of it; its mode is restored.

    Used before training, to learn the channel counts and to fail early on a wrong model or layer.
    """
    try:
        inspect.signature(model.forward).bind(pixel_values=None)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be called as model(pixel_values=...): {error}. Wrap it: "
            "afdcd_hf.as_segmenter(model)."
        ) from error
    taps: list[LayerTap] = []
    try:
        taps.extend(LayerTap(model, layer) for layer in layers)
        with evaluating(model):
            _, seen = run_tapped(model, pixel_values.to(device_of(model)), taps)
    finally:
        for tap in taps:
            tap.remove()
    for layer, feature_map in zip(layers, _maps(seen), strict=True):
        _check_layout(layer, feature_map.shape[1:], pixel_values.shape[2:])
    return seen


def prepare_distillation(
    student: nn.Module,
    teacher: nn.Module,
    args: DistillationTrainingArguments,
    batch: dict[str, Tensor],
    loss: DistillationLoss | None = None,
) -> tuple[DistillationModel, tuple[str, ...], bool]:
    """Build the module to train, after showing one batch to both models and to the loss.

    Whatever cannot work (a layer that is not there, other classes, maps that do not fit the loss) is found here, before
    the first step.

    Args:
        student: to be trained.
        teacher: with the same classes; or without logits, for losses that read none of them.
        args: settings; they name the loss, where none is given.
        batch: `pixel_values` and `labels` of one sample or more.
        loss: already built, for the channels of the maps to distil; `args.loss` is None then.

    Returns:
        The module, the teacher's layers (none where the loss compares logits only), and whether the teacher has logits.
    """
    if (loss is None) == (args.loss is None):
        raise ValueError(
            "Give the loss once: by name (loss=... in the arguments), or as an instance, DistillationTrainer(loss=...) "
            f"with loss=None in the arguments. There it is {args.loss!r}, and the instance is {type(loss).__name__}."
        )
    layers: tuple[tuple[str, ...], tuple[str, ...]] = (), ()
    if loss.needs_feature_map if loss is not None else needs_feature_map(str(args.loss), args.loss_kwargs):
        of_student = layer_names(args.student_layer) or (default_layer(student, "student"),)
        of_teacher = layer_names(args.teacher_layer) or (default_layer(teacher, "teacher"),)
        check_pairs(of_student, of_teacher)  # the first of the student is compared with the first of the teacher
        layers = of_student, of_teacher
    seen, taught = (
        observe(model, batch["pixel_values"], names) for model, names in zip((student, teacher), layers, strict=True)
    )
    num_classes = _check_classes(student, teacher, seen, taught)
    if loss is None:
        of_both = ([each.shape[1] for each in _maps(activations)] or None for activations in (seen, taught))
        student_channels, teacher_channels = of_both
        loss = build_loss(str(args.loss), args.loss_kwargs, student_channels, teacher_channels, num_classes=num_classes)
    readers = [each.name for each in getattr(loss, "losses", {"": loss}).values() if each.reads_teacher_logits]
    if taught.logits is None and readers:
        raise ValueError(
            f"The teacher, a {type(teacher).__name__}, has no class scores (.logits of shape (B, K, h, w)), which the "
            f"loss {' and '.join(readers)} reads: choose one that compares maps alone, such as af_dcd or fitnet. If it "
            "is a segmenter that returns them otherwise, wrap it: afdcd_hf.as_segmenter(network)."
        )
    with torch.no_grad():
        loss(seen, taught, batch["labels"])
    task_loss = TaskLoss.for_model(student, args.task_weight, args.aux_weight, args.task_loss, args.class_weights)
    return DistillationModel(student, loss, task_loss, layers[0]), layers[1], taught.logits is not None


def _maps(seen: Activations) -> list[Tensor]:
    return [each for each in (seen.feature_map, *seen.further_maps) if each is not None]


def _check_layout(layer: str, sizes: Sequence[int], image: Sequence[int]) -> None:
    """Refuse a map whose first two sizes look like the image's height and width, where its last two do not.

    Channels last cannot be told for sure: where both readings have the image's shape, the map is taken as it is.
    """
    height, width = image

    def like_the_image(rows: int, columns: int) -> bool:
        return rows <= height and columns <= width and abs(columns - rows * width / height) <= 1

    if ":" not in layer and like_the_image(*sizes[:2]) and not like_the_image(*sizes[1:]):
        raise ValueError(
            f"Layer {layer!r} gives a map of shape {tuple(sizes)} for an image of {height}x{width}, which looks like "
            f"channels last: write '{layer}:nhwc'."
        )


def _check_classes(student: nn.Module, teacher: nn.Module, seen: Activations, taught: Activations) -> int:
    """The student's number of classes, which a teacher with logits shares."""
    if seen.logits is None:
        raise ValueError(
            f"The student, a {type(student).__name__}, returns no .logits of shape (B, K, h, w); wrap it: "
            "afdcd_hf.as_segmenter(network)."
        )
    if taught.logits is None:
        return seen.logits.shape[1]
    counts = seen.logits.shape[1], taught.logits.shape[1]
    if counts[0] != counts[1]:
        raise ValueError(
            f"The student has {counts[0]} classes and the teacher {counts[1]}. Give the student the teacher's "
            "num_labels, or take a teacher trained on these classes."
        )
    own, theirs = _class_names(student), _class_names(teacher)
    for index, (ours, other) in enumerate(zip(own, theirs, strict=False)):
        if ours != other:
            raise ValueError(
                f"Class {index} is {ours!r} for the student and {other!r} for the teacher: their id2label must agree, "
                "or the teacher teaches the wrong classes."
            )
    return counts[0]


def _class_names(model: nn.Module) -> list[str]:
    """Names in the configuration; none where there are only transformers' placeholders LABEL_0, LABEL_1, ..."""
    id2label = getattr(getattr(model, "config", None), "id2label", None) or {}
    names = [id2label[index] for index in sorted(id2label)]
    return [] if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names
