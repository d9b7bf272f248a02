"""The supervised trainer, for teachers and baselines, on which the distillation trainer builds."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..data.samples import collate_samples
from ..data.streaming import StreamedSamples
from ..evaluation.segmenter import evaluate_segmenter
from ..folder_lock import lock_folder
from ..inference.segment import InferenceSettings
from ..losses.task import TaskLoss
from . import datasets, distributed, training_args
from .callbacks import AveragedWeights, Randomness, TimeBudget
from .checkpoints import RAW_STUDENT_NAME, CheckpointCallback, check_complete, checkpoint_to_resume
from .hub_push import HubTrainer
from .progress import StepTimer, TermMeans, shows_progress_bars, summarize_speed, use_log_lines_without_terminal
from .stopping import Guard, Interruption, TrainingInterrupted, prepare_workers
from .training_args import SegmentationTrainingArguments


class SegmentationTrainer(HubTrainer):
    """`transformers.Trainer` for segmenters: loss terms in the log, evaluation in constant memory, exact resumption.

    Args:
        model: returns `.logits` `(B, K, h, w)` for `model(pixel_values=...)`.
        args: settings.
        train_dataset: `TrainingSamples`, `StreamedSamples` (needs `max_steps`), or any torch dataset of
            `pixel_values` and `labels`, also in torch's `Subset` or `ConcatDataset`; its `ignore_index`, if it has one,
            holds for the task loss, else the model's.
        eval_dataset: raw dataset or stream with PIL images in `image` and `label`, or a dict of several; scored by
            `evaluate_segmenter`.
        processing_class: image processor of the model, saved with it and used for evaluation.
        data_collator: collates samples into a batch.
        callbacks, optimizers, optimizer_cls_and_kwargs: as for `transformers.Trainer`.

    Attributes:
        speed: card facts on the speed of the last training, including steps before it was resumed; empty until the end.

    Raises:
        ValueError: fewer training samples than one batch, or arguments that this model or machine does not support.
    """

    def __init__(
        self,
        model: nn.Module,
        args: SegmentationTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Sequence[Mapping[str, Any]] | dict[str, Sequence[Mapping[str, Any]]] | None = None,
        processing_class: Any = None,
        data_collator: Callable[[list], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
    ):
        datasets.check_samples(train_dataset, args, model)
        datasets.resolve_class_weights(args, train_dataset)
        datasets.check_evaluation_rows(eval_dataset)
        training_args.resolve_best_metric(args, eval_dataset)
        model = distributed.synchronise_batch_norm(model, args)
        student = getattr(model, "student", model)
        if student is model and not datasets.checks_itself(train_dataset):  # a distillation has made its first batch
            datasets.first_batch(train_dataset, data_collator, model)
        distributed.resolve_find_unused_parameters(args, student)
        if args.channels_last:
            student.to(memory_format=torch.channels_last)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or collate_samples,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            training_args.check_sharded_options(args)
        # Our loss is a mean over pixels, so the Trainer must divide it by the number of accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.task_loss = TaskLoss.for_model(model, args, datasets.stated(train_dataset, "ignore_index"))
        self.terms = TermMeans(report=self.is_world_process_zero())
        self.speed: dict[str, Any] = {}
        self._whole_student: nn.Module | None = None
        if self.is_fsdp_enabled:  # every process keeps an unsharded copy for evaluating and saving
            distributed.check_fsdp(self.accelerator.state.fsdp_plugin)
            self._whole_student = copy.deepcopy(self.student).eval().requires_grad_(False)
        use_log_lines_without_terminal(self)
        self.timer, self.interruption = StepTimer(args.device), Interruption(args, self.save_now)
        self.budget = None if args.max_seconds is None else TimeBudget(args.max_seconds, self.timer)
        self.average = None if args.ema_decay is None else AveragedWeights(self.student, args.ema_decay)
        self.checkpoints, self.guard = CheckpointCallback(self), Guard(self)
        # The timer follows callbacks that take time between steps; the guard checks after all others.
        own = (Randomness(train_dataset), self.checkpoints, self.timer, self.budget, self.average, self.guard)
        for callback in filter(None, (*own, self.interruption)):
            self.add_callback(callback)
        if args.gradient_checkpointing:
            training_args.enable_gradient_checkpointing(self.student, args.gradient_checkpointing_kwargs)

    @property
    def trained_module(self) -> nn.Module:
        """The module that the optimizer trains, unwrapped."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def student(self) -> Any:
        """The trained model, unwrapped; in a distillation, a part of `trained_module`."""
        return getattr(self.trained_module, "student", self.trained_module)

    @property
    def evaluated_student(self) -> nn.Module:
        """The model that is evaluated and saved: the student, its average (`ema_decay`), or under FSDP a full copy."""
        if self._whole_student is not None:
            return self._whole_student
        return self.student if self.average is None else self.average.model

    @property
    def share_done(self) -> float:
        """Share of training done, 0 to 1, by steps or, with `max_seconds`, by time; 0 before training begins."""
        if self.budget is not None:
            return self.budget.share_used
        return self.state.global_step / self.state.max_steps if self.state.max_steps else 0.0

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Train as transformers does, but resume only from complete checkpoints and save one on errors and signals.

        `resume_from_checkpoint` is a checkpoint's folder, or True or "last" for the last complete one in `output_dir`.

        Raises:
            TrainingInterrupted: after SIGTERM or SIGINT (Ctrl-C), with a checkpoint saved.
            NonFiniteLossError: the loss, its gradients or the weights are not finite.
            FileExistsError: another process writes to the output folder.
            FileNotFoundError: there is no complete checkpoint to resume from.
            ValueError: the given checkpoint is not complete, or does not fit this run.
            OSError: a checkpoint cannot be written (earlier ones are kept), or an image cannot be read.
        """
        with lock_folder(self.args.output_dir) if self.args.process_index == 0 else nullcontext():
            checkpoint = checkpoint_to_resume(self.args, resume_from_checkpoint)
            self.timer.reset()
            self.speed = {}
            self.checkpoints.begin(checkpoint)
            try:
                with self.interruption.listening(), self.guard.report_last_checkpoint():
                    output = super().train(checkpoint, trial, ignore_keys_for_eval)
            except TrainingInterrupted:  # transformers did not end training: close the bar, finish the pushes
                self.callback_handler.on_train_end(self.args, self.state, self.control)
                self._finish_current_push()
                raise
            finally:
                self.is_in_train = False
                self._end_autocast()
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            check_complete(Path(self.state.best_model_checkpoint))
            if self.average is not None:  # the loaded weights are an average
                self.average.restart()
        return output

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Return no epochs for a finished run, and unlimited epochs for one with a time budget."""
        epochs, steps, *others, max_steps = super().set_initial_training_values(args, dataloader)
        if self.budget is not None:
            finished, epochs = self.budget.used >= self.budget.seconds, sys.maxsize
            if isinstance(self.train_dataset, StreamedSamples):  # a second epoch would begin the stream again
                steps = sys.maxsize
        else:
            finished = self.checkpoints.resumed_step >= max_steps
        return (0 if finished else epochs, steps, *others, max_steps)

    def get_train_dataloader(self) -> Any:
        """Build a loader whose workers do not disturb the run; with `dataloader_drop_last`, all steps are complete."""
        args, samples = self.args, self.train_dataset
        if samples is None:
            return super().get_train_dataloader()
        if not isinstance(samples, StreamedSamples):
            loader = self._get_dataloader(
                dataset=samples,
                description="Training",
                batch_size=self._train_batch_size,
                sampler_fn=lambda dataset: distributed.trim_to_whole_steps(self._get_train_sampler(dataset), args),
                is_training=True,
            )
            return prepare_workers(loader, args.seed)
        samples.share = args.process_index, args.world_size  # accelerate would have one process read for all
        names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context")
        options = {name: getattr(args, f"dataloader_{name}") for name in names}
        loader = DataLoader(samples, self._train_batch_size, collate_fn=self.data_collator, **options)
        own = {"num_processes": 1, "process_index": 0, "put_on_device": True, "dispatch_batches": False}
        return prepare_workers(prepare_data_loader(loader, args.device, **own), args.seed)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Decay all weights, as in the released code; with `decay_all=False`, use transformers' choice."""
        if self.args.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the loss of one batch, and collect its terms for the log."""
        pixel_values = inputs["pixel_values"]
        if self.args.channels_last:
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        self.timer.lap("data")
        self.timer.images += len(pixel_values)
        loss, terms, outputs = self._run(model, pixel_values, inputs["labels"])
        self.guard.watch(terms, inputs.get("names"))
        # An epoch's last step may accumulate fewer batches, but all steps have equal weight, as in the loss.
        self.terms.add(terms, 1 / getattr(self, "current_gradient_accumulation_steps", 1))
        return (loss, outputs) if return_outputs else loss

    def _run(self, model: nn.Module, pixel_values: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor], Any]:
        """Return the loss, its detached terms, and the model's outputs."""
        outputs = model(pixel_values=pixel_values)
        self.timer.lap("student")
        terms = self.task_loss(outputs, labels)
        self.timer.lap("loss")
        loss = torch.stack(list(terms.values())).sum()
        return loss, {name: term.detach() for name, term in terms.items()}, outputs

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add every loss term, averaged over ranks and the steps since the last line, as `loss_<name>`.

        Also adds `images_per_second`, `time_<part>` (seconds per step) and `peak_memory_mb`, and a summary at the end.
        """
        if "loss" in logs and (means := self.terms.take(self.accelerator)):
            logs |= {"loss": sum(means.values()), **{f"loss_{name}": mean for name, mean in means.items()}}
            logs |= self.timer.take(self.accelerator)
        elif "train_runtime" in logs:
            rest = {"step": self.state.global_step, **self.timer.take(self.accelerator)}  # since the last line
            self.speed = speed = summarize_speed([*self.state.log_history, rest])
            if speed:
                names = ("seconds_in_steps", "images_per_second")
                logs |= {f"train_{name}": round(speed[name], 3) for name in names}
                logs |= {f"train_time_{part}": float(f"{each:.5g}") for part, each in speed["time_split"].items()}
            if self.budget is not None:  # transformers computes it from the planned number of steps
                steps, batch = self.state.global_step - self.checkpoints.resumed_step, distributed.images_per_step
                logs["train_samples_per_second"] = round(steps * batch(self.args) / logs["train_runtime"], 3)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the student with `evaluate_segmenter` on `eval_dataset` (as in the constructor), and log the scores."""
        datasets.check_evaluation_rows(eval_dataset)
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if isinstance(dataset, dict):
            parts = [self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{key}") for key, part in dataset.items()]
            return {name: value for metrics in parts for name, value in metrics.items()}
        if dataset is None or self.processing_class is None:
            raise ValueError("Evaluation needs eval_dataset and processing_class (the image processor): give both.")
        student = self.evaluated_student
        distributed.broadcast_buffers(self.args.world_size, self.student, student)
        if self._whole_student is not None:
            self._whole_student.load_state_dict(distributed.gather_full_tensors(self.student.state_dict()))
        start = time.perf_counter()
        with self.interruption.save_on_signal_during(student):
            scores = self.score(
                student,
                dataset,
                batch_size=self.args.per_device_eval_batch_size,
                num_workers=self.args.dataloader_num_workers,
                progress=shows_progress_bars(self.args),
            )
        seconds = time.perf_counter() - start
        metrics = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
        metrics |= {"runtime": round(seconds, 4), "samples_per_second": round(scores["num_images"] / seconds, 3)}
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Not supported: transformers' result would hold the logits of all images at once, gigabytes here."""
        raise NotImplementedError(
            "predict would hold the logits of all images at once. Use trainer.evaluate(dataset, "
            'metric_key_prefix="test"), or for a label map '
            "afdcd_hf.segment_image(trainer.evaluated_student, processor, image)."
        )

    def score(self, model: nn.Module, rows: Any, **options: Any) -> dict[str, Any]:
        """Run `evaluate_segmenter(model, rows, ...)` with this trainer's image processor and classes.

        Runs in float32, whatever the training precision, unless `bf16_full_eval` or `fp16_full_eval` is set. The scores
        in the log thus equal those that `evaluate_segmenter` computes for the saved folder.
        """
        config = getattr(self.student, "config", None)
        precision = "bf16" if self.args.bf16_full_eval else "fp16" if self.args.fp16_full_eval else "fp32"
        with _own_forward(model):
            return evaluate_segmenter(
                model,
                rows,
                processor=self.processing_class,
                num_labels=getattr(config, "num_labels", None) or datasets.stated(self.train_dataset, "num_labels"),
                settings=InferenceSettings(precision=precision),
                **options,
            )

    def _end_autocast(self) -> None:
        """Give the trained model its own `forward` back, without the autocast that accelerate wrapped around it."""
        module = self.trained_module
        if "_original_forward" in vars(module) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            original = vars(module).pop("_original_forward")
            del module.forward
            if module.forward != original:  # not its class's
                module.forward = original
            self.model_wrapped = self.model  # so that another training wraps it again
            vars(module).pop("_is_accelerate_prepared", None)

    def save_now(self) -> None:
        """Save a checkpoint of the last finished step, outside transformers' schedule."""
        self._save_checkpoint(self.model, None)
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def modules_to_resume(self) -> dict[str, nn.Module]:
        """Modules whose weights a checkpoint stores besides the evaluated student: file name -> module."""
        return {} if self.average is None else {RAW_STUDENT_NAME: self.student}

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the student and, into a checkpoint, the state needed to resume."""
        if state_dict is not None and self.trained_module is not self.student:
            named = state_dict.items()
            state_dict = {name.removeprefix("student."): t for name, t in named if name.startswith("student.")}
        self.checkpoints.save(Path(output_dir or self.args.output_dir), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load what `_save` has written."""
        if self.is_fsdp_enabled:  # FSDP's own files hold all weights
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.checkpoints.load(Path(resume_from_checkpoint))


@contextmanager
def _own_forward(model: Any) -> Iterator[None]:
    """Temporarily remove the autocast that accelerate wraps around the trained model's `forward`."""
    wrapped = model.__dict__.get("forward")
    if "_original_forward" in model.__dict__:
        model.forward = model._original_forward
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
