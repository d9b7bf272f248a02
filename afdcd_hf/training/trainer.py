"""The supervised trainer: teachers, baselines, and what distillation builds on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import Trainer

from ..data.samples import TrainingSamples, collate_samples
from ..evaluation.segmenter import evaluate_segmenter
from ..losses.task import TaskLoss
from .callbacks import EpochCallback, report_first_terms
from .checkpoints import Checkpoints
from .ema import WeightAveraging
from .guards import Guards
from .hub_push import HubPush
from .pace import Pace
from .precision import (
    enable_gradient_checkpointing,
    evaluation_settings,
    own_forward,
    warn_of_missing_half_precision,
)
from .progress import shows_bars, use_own_progress
from .randomness import RankSeedCallback
from .scale_out import (
    ShardedStudent,
    choose_unused_parameter_search,
    images_per_step,
    of_whole_batches,
    synchronise_batch_norm,
)
from .timing import Timing
from .training_args import SegmentationTrainingArguments


class SegmentationTrainer(Pace, Timing, Guards, ShardedStudent, WeightAveraging, HubPush, Checkpoints, Trainer):
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
        model = synchronise_batch_norm(model, args)
        choose_unused_parameter_search(args, getattr(model, "student", model))
        kwargs.setdefault("data_collator", collate_samples)
        if args.channels_last:
            getattr(model, "student", model).to(memory_format=torch.channels_last)
        super().__init__(model=model, args=args, train_dataset=train_dataset, **kwargs)
        # Our loss is a mean over pixels; the Trainer has to divide it by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.task_loss = TaskLoss.for_model(model, args.task_weight, args.aux_weight)
        use_own_progress(self)
        self.add_callback(RankSeedCallback())
        if isinstance(train_dataset, TrainingSamples):
            self.add_callback(EpochCallback(train_dataset))
        self._term_sums: dict[str, Tensor] = {}
        self._term_count = 0.0  # in optimizer steps
        self._terms_reported = False
        warn_of_missing_half_precision(args)
        if args.channels_last and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError("channels_last has no effect on weights that FSDP or DeepSpeed divide: leave it out.")
        self._start_average()
        self._keep_whole_student()
        enable_gradient_checkpointing(self.student, args)

    @property
    def student(self) -> nn.Module:
        """The network that is trained, without any wrapper."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def _get_train_sampler(self, train_dataset=None):
        """As in transformers; with `dataloader_drop_last`, an epoch is of whole optimizer steps only."""
        return of_whole_batches(super()._get_train_sampler(train_dataset), self.args)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All weights decay, as in the released code; with `decay_all=False` transformers' choice."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def train(self, *args, **kwargs):
        """As in transformers; the log starts afresh, without the terms that an earlier training left unlogged."""
        self._term_sums, self._term_count = {}, 0
        return super().train(*args, **kwargs)

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        if self.args.channels_last:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return inputs

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], return_outputs=False, num_items_in_batch=None):
        """Task loss of one batch; its terms go to the log."""
        with self.timer("student"):
            outputs = model(pixel_values=inputs["pixel_values"])
        with self.timer("loss"):
            terms = self.task_loss(outputs, inputs["labels"])
        self._record({name: term.detach() for name, term in terms.items()}, inputs.get("names"))
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
        self._gather_student()
        start = time.perf_counter()
        with self.timer("evaluation"), own_forward(self.evaluated_student):
            scores = evaluate_segmenter(
                self.evaluated_student,
                dataset,
                processor=self.processing_class,
                num_labels=self._num_labels(),
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
                settings=evaluation_settings(self.args),
                progress=shows_bars(self.args),
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
            averaged = [] if self.average is None else self.average.model.buffers()
            for buffer in (*self.student.buffers(), *averaged):
                buffer.copy_(broadcast(buffer.clone(), from_process=0))

    def _record(self, terms: dict[str, Tensor], names: Sequence[str] | None) -> None:
        self._watch(terms, names)
        if not self._terms_reported:
            self._terms_reported = True
            if self.is_world_process_zero():
                report_first_terms({name: term.item() for name, term in terms.items()})
        # An epoch's last step may accumulate fewer batches: each step counts as much as another, as in the loss.
        share = 1 / getattr(self, "current_gradient_accumulation_steps", 1)
        for name, term in terms.items():
            self._term_sums[name] = self._term_sums.get(name, 0.0) + share * term
        self._term_count += share


def _check_number_of_samples(train_dataset, args: SegmentationTrainingArguments) -> None:
    """The Trainer would only warn, and save a network that was never trained."""
    batch = images_per_step(args)
    if args.dataloader_drop_last and hasattr(train_dataset, "__len__") and len(train_dataset) < batch:
        raise ValueError(
            f"The training set has {len(train_dataset)} samples, but a batch takes {batch}, and incomplete batches are "
            "dropped: use a smaller batch, or dataloader_drop_last=False."
        )
