"""Trainers: supervised, and with a teacher."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, set_seed

from ..data.samples import TrainingSamples, collate_samples
from ..evaluation.segmenter import evaluate_segmenter
from ..features import Activations, LayerTap, run_tapped
from ..losses.task import TaskLoss
from .callbacks import EpochCallback, report_first_terms
from .distillation import prepare_distillation
from .training_args import DistillationTrainingArguments, SegmentationTrainingArguments

LOSS_WEIGHTS_NAME = "distillation.safetensors"


class SegmentationTrainer(Trainer):
    """`transformers.Trainer` for segmenters: loss terms in the log, evaluation in constant memory.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        args: settings.
        train_dataset: `TrainingSamples`, or any torch dataset of `pixel_values` and `labels`.
        eval_dataset: raw dataset with PIL images in `image` and `label`; it is scored by `evaluate_segmenter`.
        processing_class: image processor of the model, saved beside it and used for evaluation.
        kwargs: as for `transformers.Trainer`.

    Raises:
        ValueError: fewer training samples than one batch takes.
    """

    def __init__(self, model: nn.Module, args: SegmentationTrainingArguments, *, train_dataset=None, **kwargs):
        _check_number_of_samples(train_dataset, args)
        kwargs.setdefault("data_collator", collate_samples)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        # Our loss is a mean over pixels; the Trainer has to divide it by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.task_loss = TaskLoss.for_model(model, args.task_weight, args.aux_weight)
        if isinstance(train_dataset, TrainingSamples):
            self.add_callback(EpochCallback(train_dataset))
        self._term_sums: dict[str, Tensor] = {}
        self._term_count = 0
        self._terms_reported = False

    @property
    def student(self) -> nn.Module:
        """The network that is trained, evaluated and saved, without any wrapper."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All weights decay, as in the released code; with `decay_all=False` transformers' choice."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def train(self, *args, **kwargs):
        """As in transformers; the log starts afresh, without the terms that an earlier training left unlogged."""
        self._term_sums, self._term_count = {}, 0
        return super().train(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs=False, num_items_in_batch=None):
        """Task loss of one batch; its terms go to the log."""
        outputs = model(pixel_values=inputs["pixel_values"])
        terms = self.task_loss(outputs, inputs["labels"])
        self._record({name: term.detach() for name, term in terms.items()})
        loss = torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every loss term, averaged over ranks and over the steps since the last line, as `loss_<name>`."""
        if "loss" in logs and self._term_count:
            sums = torch.stack(list(self._term_sums.values())) / self._term_count
            means = self.accelerator.reduce(sums, "mean").tolist()
            logs = {**logs, **{f"loss_{name}": mean for name, mean in zip(self._term_sums, means, strict=True)}}
            self._term_sums, self._term_count = {}, 0
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Sequence[Mapping[str, Any]] | dict[str, Sequence] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Score the student as `evaluate_segmenter` does; log and return `eval_mean_iou` and the like."""
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            parts = [self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{key}") for key, part in dataset.items()]
            return {name: value for metrics in parts for name, value in metrics.items()}
        if dataset is None:
            raise ValueError("There is nothing to evaluate on: give the Trainer an eval_dataset.")
        if self.processing_class is None:
            raise ValueError("Evaluation needs the image processor: give the Trainer processing_class=processor.")
        self._align_buffers()
        start = time.perf_counter()
        scores = evaluate_segmenter(
            self.student,
            dataset,
            processor=self.processing_class,
            num_labels=self._num_labels(),
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=not self.args.disable_tqdm,
        )
        seconds = time.perf_counter() - start
        metrics = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
        metrics |= {"runtime": round(seconds, 4), "samples_per_second": round(scores["num_images"] / seconds, 3)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _num_labels(self) -> int | None:
        """Of the student's configuration; of the training samples where it has none."""
        config = getattr(self.student, "config", None)
        return getattr(config, "num_labels", None) or getattr(self.train_dataset, "num_labels", None)

    def _align_buffers(self) -> None:
        """Give all ranks rank 0's batch-norm statistics: DDP lets them drift, and rank 0's are what is saved."""
        if self.args.world_size > 1:
            for buffer in self.student.buffers():
                buffer.copy_(broadcast(buffer.clone(), from_process=0))

    def _record(self, terms: dict[str, Tensor]) -> None:
        if not self._terms_reported:
            self._terms_reported = True
            if self.is_world_process_zero():
                report_first_terms({name: term.item() for name, term in terms.items()})
        for name, term in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + term
        self._term_count += 1

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the student alone, in the form that `from_pretrained` reads, with its image processor and settings.

        Unlike transformers' own method it writes no pickled `training_args.bin`: the settings go to a JSON file.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        weights = self._student_weights(state_dict)
        if isinstance(self.student, PreTrainedModel):
            self.student.save_pretrained(folder, state_dict=weights)
        else:
            weights = weights if weights is not None else self.student.state_dict()
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)
        (folder / "training_args.json").write_text(json.dumps(self.args.to_dict(), indent=2, default=str) + "\n")

    def _student_weights(self, state_dict: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return state_dict


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


def _check_number_of_samples(train_dataset, args: SegmentationTrainingArguments) -> None:
    """The Trainer would only warn, and save a network that was never trained."""
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and hasattr(train_dataset, "__len__") and len(train_dataset) < batch:
        raise ValueError(
            f"The training set has {len(train_dataset)} samples, but a batch takes {batch}, and incomplete batches are "
            "dropped: use a smaller batch, or dataloader_drop_last=False."
        )


def _first_batch(train_dataset) -> dict[str, Tensor]:
    if train_dataset is None or len(train_dataset) == 0:
        raise ValueError("DistillationTrainer needs a train_dataset with at least one sample, to check shapes with.")
    return collate_samples([train_dataset[0]])
