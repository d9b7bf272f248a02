"""Arguments of a training run: our options together with transformers' `TrainingArguments`."""

from __future__ import annotations

import logging
import warnings
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from transformers import TrainingArguments, get_scheduler

from ..data.samples import TrainingSamples
from ..data.statistics import count_labels
from ..features import layer_names
from ..losses import validate_loss_spec
from ..losses.task import TaskLoss
from .distributed import DEFAULT_BATCH_SIZE, device_batch_size, images_per_step, use_one_gpu_per_process
from .options import DEFAULT_STEPS, DistillationOptions, SegmentationOptions, check_options, plain_value

if TYPE_CHECKING:
    from transformers.trainer_utils import SaveStrategy

logger = logging.getLogger(__name__)

_DEFAULT_EPOCHS = 3.0
_SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")  # of an evaluation

# Arguments of transformers that would do nothing here.
WITHOUT_EFFECT = frozenset(
    "label_smoothing_factor prediction_loss_only include_for_metrics batch_eval_metrics eval_do_concat_batches "
    "eval_use_gather_object eval_accumulation_steps label_names include_num_input_tokens_seen "
    "average_tokens_across_devices neftune_noise_alpha use_cache use_liger_kernel liger_kernel_config "
    "length_column_name do_train do_eval do_predict".split()
)


@dataclass
class SegmentationTrainingArguments(SegmentationOptions, TrainingArguments):  # type: ignore[misc]
    """`transformers.TrainingArguments` with the paper's schedule as defaults, and what segmentation adds.

    Defaults that differ from transformers': SGD with momentum 0.9, learning rate 0.02, weight decay 1e-4 on all
    weights, polynomial decay of power 0.9 to 0 over 40 000 steps, no gradient clipping, the last incomplete batch
    dropped, a NaN loss shown as it is, best checkpoint (where asked for) by mean IoU.

    Raises:
        ValueError: a value of another type or out of range, or that has no effect here or contradicts another.
    """

    if TYPE_CHECKING:  # what `__post_init__` leaves of options that may be left out, or are words at first
        output_dir: str = "trainer_output"
        num_train_epochs: float = _DEFAULT_EPOCHS
        per_device_train_batch_size: int = DEFAULT_BATCH_SIZE
        data_seed: int | None = None
        class_weights: list[float] | None = None  # numbers once a trainer has them: see `settle_class_weights`
        save_strategy: SaveStrategy = SaveStrategy.STEPS

    def __post_init__(self) -> None:
        for one in fields(self):
            default = one.default_factory() if one.default_factory is not MISSING else one.default
            if one.name in WITHOUT_EFFECT and (value := getattr(self, one.name)) != default:
                raise ValueError(f"{one.name}={value!r} would have no effect in this trainer. Leave it out.")
        if (order := self.train_sampling_strategy) not in ("random", "sequential"):
            raise ValueError(f"train_sampling_strategy={order!r} would have no effect: give random or sequential.")
        check_options(self)
        self._settle_length()
        if self.lr_scheduler_kwargs is None:
            polynomial = plain_value(self.lr_scheduler_type) == "polynomial"
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0} if polynomial else {}
        if self.optim_args is None and plain_value(self.optim) == "sgd":
            self.optim_args = "momentum=0.9"
        if self.data_seed is None:  # else the order of samples would hang on torch's seed, which differs over ranks
            self.data_seed = self.seed
        wanted = self.per_device_train_batch_size
        self.per_device_train_batch_size = wanted or DEFAULT_BATCH_SIZE
        super().__post_init__()
        self.per_device_train_batch_size = device_batch_size(
            self.total_batch_size, wanted, self.world_size, self.gradient_accumulation_steps
        )
        use_one_gpu_per_process(self)
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: images and labels are read from the raw columns.")
        self._check_schedule()
        if (name := self.metric_for_best_model) is not None and not name.endswith(_SCORES):
            known = ", ".join(_SCORES)
            raise ValueError(f"metric_for_best_model={name!r} is not among the scores of an evaluation: {known}.")
        if self.fp16 and self.device.type == "cpu":  # accelerate would say nothing
            logger.warning("fp16=True does nothing on the CPU: this training is in float32. bf16=True works there.")

    def check_warmup(self, steps: int) -> None:
        """Raise ValueError unless the learning rate has risen before a run of so many steps ends."""
        if self.get_warmup_steps(steps) >= steps:
            raise ValueError(f"warmup_steps={self.warmup_steps:g} must be less than the run's {steps} steps.")

    def _settle_length(self) -> None:
        if self.max_steps == 0:
            raise ValueError(f"max_steps=0 would train nothing; give 1 or more, or leave it out for {DEFAULT_STEPS}.")
        if self.num_train_epochs is None:
            self.num_train_epochs = _DEFAULT_EPOCHS  # as transformers has it, whatever it then does with it
        elif self.max_steps == DEFAULT_STEPS:
            self.max_steps = -1
        elif self.max_steps > 0:
            given = f"max_steps={self.max_steps} and num_train_epochs={self.num_train_epochs:g}"
            raise ValueError(f"{given} exclude each other: max_steps=-1 switches a recipe's max_steps off.")
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
                f"lr_scheduler_type={kind!r} cannot be made with options {self.lr_scheduler_kwargs}: {error}"
            ) from error


@dataclass
class DistillationTrainingArguments(DistillationOptions, SegmentationTrainingArguments):  # type: ignore[misc]
    """What a distillation adds: the loss and its options, the layers to distil, clipping of the loss's own weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is not None:
            validate_loss_spec(self.loss, self.loss_kwargs)
        for name in ("student_layer", "teacher_layer"):
            if isinstance(layers := getattr(self, name), list) and len(layers) == 1:
                setattr(self, name, layers[0])
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


def check_pairs(of_student: tuple[str, ...], of_teacher: tuple[str, ...]) -> None:
    """Raise ValueError unless each of the student's layers has one of the teacher's."""
    if len(of_student) != len(of_teacher):
        raise ValueError(
            f"student_layer names {len(of_student)} map(s) ({', '.join(of_student)}) and teacher_layer "
            f"{len(of_teacher)} ({', '.join(of_teacher)}): maps are compared in pairs, so name as many of each."
        )


def refuse_where_divided(args: SegmentationTrainingArguments) -> None:
    """Raise for what needs whole weights on every process, where FSDP or DeepSpeed keep parts of them."""
    if args.channels_last or args.ema_decay is not None:
        raise ValueError("channels_last and ema_decay need whole weights, unlike FSDP and DeepSpeed: leave them out.")


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


def enable_gradient_checkpointing(student: Any, options: dict[str, Any] | None) -> None:
    """Do now what the Trainer does when training begins, so that a student that cannot is found out early."""
    if not hasattr(student, "gradient_checkpointing_enable"):
        kind = type(student).__name__
        raise ValueError(f"{kind} lacks gradient_checkpointing_enable: leave gradient_checkpointing out.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of transformers have another name for it
        student.gradient_checkpointing_enable(options)


def settle_class_weights(args: SegmentationTrainingArguments, train_dataset: Any) -> None:
    """Replace `class_weights="balanced"` by numbers from the training labels, rounded so that a recipe repeats them."""
    if args.class_weights != "balanced":
        return
    TaskLoss(kind=args.task_loss, class_weights=[1.0])  # refused where they have no effect, before all is read
    if not isinstance(train_dataset, TrainingSamples):
        raise ValueError(
            f"class_weights='balanced' needs TrainingSamples, and train_dataset is a {type(train_dataset).__name__}: "
            "give one number for each class."
        )
    mine = range(args.process_index, len(train_dataset), args.world_size)
    labels = (train_dataset.dataset, train_dataset.num_labels, train_dataset.ignore_index)
    counted = count_labels(*labels, indices=mine, progress=not args.disable_tqdm and args.process_index == 0)
    counted.pixels[:] = reduce(torch.from_numpy(counted.pixels).to(args.device), "sum").cpu().numpy()
    args.class_weights = counted.balanced_weights.round(6).tolist()
    if args.process_index == 0:
        logger.info("class_weights, balanced over %d labels: %s", len(train_dataset), args.class_weights)
