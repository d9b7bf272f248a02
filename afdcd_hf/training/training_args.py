"""Arguments of a training run: our options combined with transformers' `TrainingArguments`."""

from __future__ import annotations

import logging
import warnings
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments, get_scheduler

from ..features import layer_names
from ..losses import validate_loss_spec
from .distributed import DEFAULT_BATCH_SIZE, device_batch_size, use_one_gpu_per_process
from .options import DEFAULT_STEPS, DistillationOptions, SegmentationOptions, check_options, plain_value

if TYPE_CHECKING:
    from transformers.trainer_utils import SaveStrategy

logger = logging.getLogger(__name__)

_DEFAULT_EPOCHS = 3.0
_SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")  # of an evaluation

# Arguments of transformers that would have no effect here.
WITHOUT_EFFECT = frozenset(
    "label_smoothing_factor prediction_loss_only include_for_metrics batch_eval_metrics eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps label_names include_num_input_tokens_seen "
    "average_tokens_across_devices neftune_noise_alpha use_cache use_liger_kernel liger_kernel_config "
    "length_column_name do_train do_eval do_predict".split()
)


@dataclass
class SegmentationTrainingArguments(SegmentationOptions, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with the paper's schedule as defaults, and options for segmentation.

    Defaults that differ from transformers': SGD with momentum 0.9, learning rate 0.02, weight decay 1e-4 on all
    weights, polynomial decay of power 0.9 to 0 over 40 000 steps, no gradient clipping, the last incomplete batch
    dropped, NaN losses not filtered from the log, best checkpoint (if requested) by mean IoU.

    Raises:
        ValueError: a value has the wrong type, is out of range, has no effect here, or contradicts another.
    """

    if TYPE_CHECKING:  # types after `__post_init__` of options that may be None or words before
        output_dir: str = "trainer_output"
        max_steps: int = -1
        num_train_epochs: float = _DEFAULT_EPOCHS
        per_device_train_batch_size: int = DEFAULT_BATCH_SIZE
        data_seed: int | None = None
        class_weights: list[float] | None = None  # a trainer replaces "balanced": `resolve_class_weights`
        save_strategy: SaveStrategy = SaveStrategy.STEPS

    def __post_init__(self) -> None:
        for field in fields(self):
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            if field.name in WITHOUT_EFFECT and (value := getattr(self, field.name)) != default:
                raise ValueError(f"{field.name}={value!r} would have no effect in this trainer. Leave it out.")
        if (order := self.train_sampling_strategy) not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy={order!r} would have no effect: give random or sequential.")
        check_options(self)
        self._resolve_max_steps()
        if self.lr_scheduler_kwargs is None:
            polynomial = plain_value(self.lr_scheduler_type) == "polynomial"
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0} if polynomial else {}
        if self.optim_args is None and plain_value(self.optim) == "sgd":
            self.optim_args = "momentum=0.9"
        if self.data_seed is None:  # else the sample order would depend on torch's seed, which differs between ranks
            self.data_seed = self.seed
        per_device = self.per_device_train_batch_size
        self.per_device_train_batch_size = per_device or DEFAULT_BATCH_SIZE
        super().__post_init__()
        self.per_device_train_batch_size = device_batch_size(
            self.total_batch_size, per_device, self.world_size, self.gradient_accumulation_steps
        )
        use_one_gpu_per_process(self)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: images and labels are read from the raw columns.")
        self._check_schedule()
        if (name := self.metric_for_best_model) is not None and not name.endswith(_SCORES):
            known = ", ".join(_SCORES)
            raise ValueError(f"metric_for_best_model={name!r} is not among the scores of an evaluation: {known}.")
        if self.fp16 and self.device.type == "cpu":  # accelerate ignores it silently
            logger.warning("fp16=True has no effect on the CPU: this run trains in float32. bf16=True works there.")

    def check_warmup(self, steps: int) -> None:
        """Raise ValueError unless the warm-up ends before a run of this many steps does."""
        if self.get_warmup_steps(steps) >= steps:
            raise ValueError(f"warmup_steps={self.warmup_steps:g} must be less than the run's {steps} steps.")

    def _resolve_max_steps(self) -> None:
        if self.max_steps == 0:
            raise ValueError(f"max_steps=0 would train nothing; give 1 or more, or leave it out for {DEFAULT_STEPS}.")
        if self.max_steps is None:  # else it has priority, if positive, as in transformers
            self.max_steps = DEFAULT_STEPS if self.num_train_epochs is None else -1
        if self.num_train_epochs is None:
            self.num_train_epochs = _DEFAULT_EPOCHS  # transformers' default
        if self.max_seconds is not None and self.max_steps <= 0:
            raise ValueError(f"max_seconds needs max_steps > 0, not {self.max_steps}: the length of the schedule.")

    def _check_schedule(self) -> None:
        steps = self.max_steps if self.max_steps > 0 else DEFAULT_STEPS
        if self.max_steps > 0:
            self.check_warmup(steps)
        kind, optimizer = plain_value(self.lr_scheduler_type), torch.optim.SGD([torch.zeros(1)], lr=self.learning_rate)
        try:
            get_scheduler(kind, optimizer, self.get_warmup_steps(steps), steps, self.lr_scheduler_kwargs)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"lr_scheduler_type={kind!r} cannot be created with options {self.lr_scheduler_kwargs}: {error}"
            ) from error


@dataclass
class DistillationTrainingArguments(DistillationOptions, SegmentationTrainingArguments):  # type: ignore[misc]
    """Adds the options of distillation: loss, layers to distil, and clipping of the loss's own weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None:
            validate_loss_spec(self.loss, self.loss_kwargs)
        for name in ("student_layer", "teacher_layer"):
            if isinstance(layers := getattr(self, name), list) and len(layers) == 1:
                setattr(self, name, layers[0])
        if self.student_layer is not None and self.teacher_layer is not None:
            check_layer_pairs(layer_names(self.student_layer), layer_names(self.teacher_layer))

    @property
    def skips_teacher(self) -> bool:
        """Whether some steps run without the teacher."""
        return self.distill_every > 1 or self.distill_until < 1

    def uses_teacher_at(self, step: int, share_done: float) -> bool:
        """Whether optimizer step `step` (from 0), which begins at this share of the training, uses the teacher."""
        within = self.distill_until == 1 or share_done < self.distill_until
        return within and step % self.distill_every == 0


DistillationConfig = DistillationTrainingArguments  # the naming convention of trl


def check_layer_pairs(of_student: tuple[str, ...], of_teacher: tuple[str, ...]) -> None:
    """Raise ValueError unless student and teacher have the same number of layers."""
    if len(of_student) != len(of_teacher):
        raise ValueError(
            f"student_layer names {len(of_student)} map(s) ({', '.join(of_student)}) and teacher_layer "
            f"{len(of_teacher)} ({', '.join(of_teacher)}): maps are compared in pairs, so give equal numbers of both."
        )


def check_sharded_options(args: SegmentationTrainingArguments) -> None:
    """Raise for options that need the full weights on every process, which FSDP and DeepSpeed shard."""
    if args.channels_last or args.ema_decay is not None:
        raise ValueError("channels_last and ema_decay need full weights, unlike FSDP and DeepSpeed: leave them out.")


def resolve_best_metric(args: SegmentationTrainingArguments, eval_dataset: Any) -> None:
    """Raise ValueError if the metric of the best checkpoint is not a score on one of several evaluation sets.

    Where no best checkpoint is asked for, transformers need not look for the metric.
    """
    name = args.metric_for_best_model
    if name is None or not isinstance(eval_dataset, dict):
        return
    known = [f"{key}_{score}" for key in eval_dataset for score in _SCORES]
    if name.removeprefix("eval_") in known:
        return
    strategies = {plain_value(args.save_strategy), plain_value(args.lr_scheduler_type)}
    if args.load_best_model_at_end or strategies & {"best", "reduce_lr_on_plateau"}:
        raise ValueError(
            f"metric_for_best_model={name!r} does not say which of the evaluation sets it is of: give one of "
            f"{', '.join(known)}."
        )
    args.metric_for_best_model = None


def enable_gradient_checkpointing(student: Any, options: dict[str, Any] | None) -> None:
    """Enable gradient checkpointing as the Trainer would later, so that an unsupported student is found early."""
    if not hasattr(student, "gradient_checkpointing_enable"):
        kind = type(student).__name__
        raise ValueError(f"{kind} does not support gradient_checkpointing: leave it out.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of transformers rename it
        student.gradient_checkpointing_enable(options)
