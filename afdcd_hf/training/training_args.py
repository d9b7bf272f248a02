"""Arguments of a training run: our options together with transformers' `TrainingArguments`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments, get_scheduler

from ..data.samples import TrainingSamples
from ..features import layer_names
from ..losses import validate_loss_spec
from ..messages import close_names
from .distributed import DEFAULT_BATCH_SIZE, device_batch_size, images_per_step, use_one_gpu_per_process
from .option_values import check_options, plain_value
from .options import DEFAULT_STEPS, DistillationOptions, SegmentationOptions

if TYPE_CHECKING:
    from transformers.trainer_utils import SaveStrategy

logger = logging.getLogger(__name__)

_DEFAULT_EPOCHS = 3.0
_SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")  # of an evaluation

# Ranges of transformers' own numbers; those of ours stand at the options.
_RANGES = {
    "adam_beta1": {"at_least": 0, "below": 1},
    "adam_beta2": {"at_least": 0, "below": 1},
    "adam_epsilon": {"above": 0},
    "eval_delay": {"at_least": 0},
    "dataloader_prefetch_factor": {"at_least": 1},
    "torch_empty_cache_steps": {"at_least": 1},
    "ddp_timeout": {"at_least": 1},
    "data_seed": {"at_least": 0, "below": 2**32},
}
# Arguments of transformers that would do nothing here, by the reason why.
WITHOUT_EFFECT = {
    name: reason
    for reason, names in {
        "the task loss is the plain cross entropy": "label_smoothing_factor",
        "evaluations run through evaluate_segmenter, one image at a time": "prediction_loss_only include_for_metrics "
        "batch_eval_metrics eval_do_concat_batches eval_use_gather_object eval_accumulation_steps label_names",
        "it is about language models": "include_num_input_tokens_seen average_tokens_across_devices "
        "neftune_noise_alpha use_cache use_liger_kernel liger_kernel_config",
        "images have no length to group them by": "length_column_name",
        "`afdcd train` and `distill` always train, and evaluate at the end": "do_train",
        "eval_strategy says whether to evaluate during training": "do_eval",
        "`afdcd predict` does that": "do_predict",
    }.items()
    for name in names.split()
}


# Arguments of transformers.Trainer that would do nothing here.
_UNUSED = {
    "compute_metrics": "evaluations count class pairs as they go; use evaluate_segmenter for other figures",
    "compute_loss_func": "the loss is the arguments' task_weight, aux_weight and loss; override compute_loss instead",
    "preprocess_logits_for_metrics": "evaluations keep no logits",
    "model_init": "the model is given as it is",
}


@dataclass
class SegmentationTrainingArguments(SegmentationOptions, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with the paper's schedule as defaults, and what segmentation adds.

    Defaults that differ from transformers': SGD with momentum 0.9, learning rate 0.02, weight decay 1e-4 on all
    weights, polynomial decay of power 0.9 to 0 over 40 000 steps, no gradient clipping, the last incomplete batch
    dropped, a NaN loss shown as it is, best checkpoint (where asked for) by mean IoU.

    Raises:
        ValueError: a value of another type or out of range, an argument that would have no effect here, or arguments
            that contradict each other.
    """

    if TYPE_CHECKING:  # what `__post_init__` leaves of options that may be left out, or are words at first
        output_dir: str = "trainer_output"
        num_train_epochs: float = _DEFAULT_EPOCHS
        per_device_train_batch_size: int = DEFAULT_BATCH_SIZE
        data_seed: int | None = None
        class_weights: list[float] | None = None  # numbers once a trainer has them: see `settle_class_weights`
        save_strategy: SaveStrategy = SaveStrategy.STEPS

    def __post_init__(self) -> None:
        self._refuse_without_effect()
        check_options(self, _RANGES)
        self._settle_length()
        if self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0} if self._schedule() == "polynomial" else {}
        if self.optim_args is None and plain_value(self.optim) == "sgd":
            self.optim_args = "momentum=0.9"
        if self.data_seed is None:  # else the order of samples would hang on torch's seed, which differs over ranks
            self.data_seed = self.seed
        wanted = self.per_device_train_batch_size
        self.per_device_train_batch_size = DEFAULT_BATCH_SIZE if wanted is None else wanted
        super().__post_init__()
        self.per_device_train_batch_size = device_batch_size(
            self.total_batch_size, wanted, self.world_size, self.gradient_accumulation_steps
        )
        use_one_gpu_per_process(self)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: images and labels are read from the raw columns.")
        self._check_schedule()
        name = self.metric_for_best_model
        if name is not None and not name.endswith(_SCORES):
            raise ValueError(
                f"metric_for_best_model={name!r} is not among the scores of an evaluation: {', '.join(_SCORES)}."
                f"{close_names(name, _SCORES)}"
            )
        if self.fp16 and self.device.type == "cpu":  # accelerate would say nothing
            logger.warning("fp16=True does nothing on the CPU: this training is in float32. bf16=True works there.")

    def check_warmup(self, steps: int) -> None:
        """Raise ValueError unless the learning rate has risen before a run of so many steps ends."""
        if self.get_warmup_steps(steps) >= steps:
            raise ValueError(
                f"warmup_steps={self.warmup_steps:g} must be less than the run's {steps} steps: the learning rate "
                "would still be rising when it ends."
            )

    def _refuse_without_effect(self) -> None:
        for one in fields(self):
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if one.name in WITHOUT_EFFECT and getattr(self, one.name) != default:
                raise ValueError(
                    f"{one.name}={getattr(self, one.name)!r} would have no effect: {WITHOUT_EFFECT[one.name]}. Leave "
                    "it out."
                )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} would have no effect: images have no length "
                "to group them by. Give random or sequential."
            )

    def _settle_length(self) -> None:
        """`max_steps` and `num_train_epochs` exclude each other."""
        if self.max_steps == 0:
            raise ValueError(f"max_steps=0 would train nothing; give 1 or more, or leave it out for {DEFAULT_STEPS}.")
        by_epochs = self.num_train_epochs is not None
        if self.max_steps == DEFAULT_STEPS and by_epochs:
            self.max_steps = -1
        elif by_epochs and self.max_steps > 0:
            raise ValueError(
                f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs:g} exclude each other: give "
                "one of them (max_steps=-1 switches a recipe's max_steps off)."
            )
        if self.max_seconds is not None and self.max_steps <= 0:
            raise ValueError(
                f"max_seconds needs max_steps > 0, not {self.max_steps}: the steps that the schedule (warm-up, say) is "
                "written for."
            )
        if self.num_train_epochs is None:  # as transformers has it, whatever it then does with it
            self.num_train_epochs = _DEFAULT_EPOCHS

    def _schedule(self) -> str:
        return plain_value(self.lr_scheduler_type)

    def _check_schedule(self) -> None:
        steps = self.max_steps if self.max_steps > 0 else DEFAULT_STEPS
        if self.max_steps > 0:
            self.check_warmup(steps)
        try:
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=self.learning_rate)
            warmup = self.get_warmup_steps(steps)
            get_scheduler(self.lr_scheduler_type, optimizer, warmup, steps, self.lr_scheduler_kwargs)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"lr_scheduler_type={self._schedule()!r} cannot be made with learning_rate={self.learning_rate:g} and "
                f"lr_scheduler_kwargs={self.lr_scheduler_kwargs}: {error}"
            ) from error


@dataclass
class DistillationTrainingArguments(DistillationOptions, SegmentationTrainingArguments):  # type: ignore[misc]
    """What a distillation adds: the loss and its options, the layers to distil, clipping of the loss's own weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None:
            validate_loss_spec(self.loss, self.loss_kwargs)
        self.student_layer = _one_or_several("student_layer", self.student_layer)
        self.teacher_layer = _one_or_several("teacher_layer", self.teacher_layer)
        if self.student_layer is not None and self.teacher_layer is not None:
            check_pairs(layer_names(self.student_layer), layer_names(self.teacher_layer))

    @property
    def distils_at_times(self) -> bool:
        """Whether there are steps without the teacher."""
        return self.distill_every > 1 or self.distill_until < 1

    def distils_at(self, step: int, share_done: float) -> bool:
        """Whether optimizer step `step` (from 0), before which that share of the training is done, has the teacher."""
        within = self.distill_until == 1 or share_done < self.distill_until
        return within and step % self.distill_every == 0


DistillationConfig = DistillationTrainingArguments  # arguments are called so in trl


def check_pairs(student_layers: Sequence[str], teacher_layers: Sequence[str]) -> None:
    """Raise ValueError unless each of the student's layers has one of the teacher's."""
    if len(student_layers) != len(teacher_layers):
        raise ValueError(
            f"student_layer names {len(student_layers)} map(s) ({', '.join(student_layers)}) and teacher_layer "
            f"{len(teacher_layers)} ({', '.join(teacher_layers)}): maps are compared in pairs, so name as many of "
            "each; the same layer may be named twice."
        )


def refuse_unused(given: Mapping[str, Any]) -> None:
    """Raise for arguments of `transformers.Trainer` that would be taken and dropped."""
    for name, value in given.items():
        if name not in _UNUSED:
            raise TypeError(f"{name!r} is not an argument of this trainer.")
        if value is not None:
            raise ValueError(f"{name} has no effect in this trainer: {_UNUSED[name]}.")


def refuse_where_divided(args: SegmentationTrainingArguments, divided: bool) -> None:
    """Raise for what needs whole weights on every process, where FSDP or DeepSpeed keep parts of them."""
    if divided and args.channels_last:
        raise ValueError("channels_last has no effect on weights that FSDP or DeepSpeed divide: leave it out.")
    if divided and args.ema_decay is not None:
        raise ValueError("ema_decay needs whole weights on every process, unlike under FSDP and DeepSpeed.")


def check_number_of_samples(train_dataset: Any, args: SegmentationTrainingArguments) -> None:
    """Raise where the Trainer would only warn, and save a model that was never trained."""
    batch = images_per_step(args)
    if isinstance(train_dataset, TrainingSamples):
        train_dataset.check_batch(args.per_device_train_batch_size)
    if args.dataloader_drop_last and hasattr(train_dataset, "__len__") and len(train_dataset) < batch:
        raise ValueError(
            f"The training set has {len(train_dataset)} samples, but a batch takes {batch}, and incomplete batches are "
            "dropped: use a smaller batch, or dataloader_drop_last=False."
        )


def enable_gradient_checkpointing(student: Any, args: SegmentationTrainingArguments) -> None:
    """Do now what the Trainer does when training begins, so that a student that cannot is found out early."""
    if not args.gradient_checkpointing:
        return
    if not hasattr(student, "gradient_checkpointing_enable"):
        raise ValueError(
            f"gradient_checkpointing needs a student with the method gradient_checkpointing_enable, which "
            f"{type(student).__name__} lacks: leave it out."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of transformers have another name for it
        student.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)


def _one_or_several(name: str, layers: str | list[str] | None) -> str | list[str] | None:
    """A single name by itself, however it was given."""
    if layers is None or isinstance(layers, str):
        return layers
    if not layers:
        raise ValueError(f"{name}=[] must name a module path, or several.")
    return layers[0] if len(layers) == 1 else layers
