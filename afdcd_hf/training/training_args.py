"""Arguments of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..features import layer_names
from ..losses import validate_loss_spec
from ..recipes import parse_json_object
from .distributed import DEFAULT_BATCH_SIZE, device_batch_size, use_one_gpu_per_process


@dataclass
class SegmentationTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the paper's schedule as defaults, and what segmentation adds.

    Defaults that differ from transformers': SGD with momentum 0.9, learning rate 0.02, weight decay 1e-4 on all
    weights, polynomial decay of power 0.9 to 0 over 40 000 steps, no gradient clipping, the last incomplete batch
    dropped, a NaN loss shown as it is, best checkpoint (where asked for) by mean IoU.
    """

    learning_rate: float = field(default=0.02, metadata={"help": "Initial learning rate."})
    optim: str = field(default="sgd", metadata={"help": "Optimizer, by transformers' names."})
    optim_args: str | None = field(
        default=None, metadata={"help": "Further arguments of the optimizer; for sgd the default is momentum=0.9."}
    )
    weight_decay: float = field(default=1e-4, metadata={"help": "Weight decay."})
    decay_all: bool = field(
        default=True,
        metadata={"help": "Apply weight decay to biases and normalisation too, as the released code does."},
    )
    lr_scheduler_type: str = field(default="polynomial", metadata={"help": "Schedule, by transformers' names."})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Arguments of the schedule; for polynomial the default is power 0.9, lr_end 0."}
    )
    max_steps: int = field(default=40_000, metadata={"help": "Optimizer steps; -1 trains num_train_epochs epochs."})
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Train for this many seconds of training steps, however many fit: learning rate and distill_until "
            "follow the clock, and max_steps is only what the schedule is written for. Evaluations and saving do not "
            "count."
        },
    )
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip all gradients to this norm; 0 does not clip."})
    per_device_train_batch_size: int | None = field(
        default=None,
        metadata={"help": f"Images per process and step; {DEFAULT_BATCH_SIZE}, or what total_batch_size makes it."},
    )
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "Images per process in evaluations."})
    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per optimizer step over all processes and accumulation steps; sets "
            "per_device_train_batch_size."
        },
    )
    sync_batch_norm: bool | None = field(
        default=None,
        metadata={
            "help": "Batch-norm statistics over the images of all GPUs; by default where more than one process trains "
            "on GPUs."
        },
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last incomplete batch: batch norm suffers from very small ones."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: we read other columns."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide NaN and infinite losses from the log."})
    metric_for_best_model: str | None = field(
        default="mean_iou", metadata={"help": "What load_best_model_at_end keeps."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether that metric is to be high."})
    task_weight: float = field(default=1.0, metadata={"help": "Weight of the cross entropy on the labels."})
    aux_weight: float = field(default=0.4, metadata={"help": "Weight of the auxiliary head's cross entropy."})
    check_finite: bool = field(
        default=True,
        metadata={
            "help": "Stop at a step whose loss or gradients are not finite, with the last good state saved. Waits for "
            "the device once a step."
        },
    )
    preflight: bool = field(
        default=True,
        metadata={"help": "Look at images, labels, teacher and disk before the first step; takes a few seconds."},
    )
    channels_last: bool = field(
        default=False,
        metadata={
            "help": "Lay out images, student and teacher channels last, which convolutions often run faster on; equal "
            "up to rounding, but dropout draws others. Saved files are as ever."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights with this decay, e.g. 0.999; none "
            "by default."
        },
    )

    def __post_init__(self):
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = parse_json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        if self.lr_scheduler_kwargs is None:
            polynomial = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) == "polynomial"
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0} if polynomial else {}
        if self.optim_args is None and str(getattr(self.optim, "value", self.optim)) == "sgd":
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
        for name in ("task_weight", "aux_weight"):
            _check_not_negative(name, getattr(self, name))
        self._check_max_seconds()
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie between 0 and 1, e.g. 0.999; leave it out for none.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: images and labels are read from the raw columns.")

    def _check_max_seconds(self) -> None:
        if self.max_seconds is None:
            return
        if not math.isfinite(self.max_seconds) or self.max_seconds <= 0:
            raise ValueError(f"max_seconds={self.max_seconds} must be a number above 0; leave it out for no limit.")
        if self.max_steps <= 0:
            raise ValueError(
                f"max_seconds needs max_steps > 0, not {self.max_steps}: the steps that the schedule (warm-up, say) is "
                "written for."
            )


@dataclass
class DistillationTrainingArguments(SegmentationTrainingArguments):
    """What a distillation adds: the loss and its options, the layers to distil, clipping of the loss's own weights."""

    loss: str = field(
        default="af_dcd", metadata={"help": "Distillation loss, or several joined by '+', e.g. 'kd+af_dcd'."}
    )
    loss_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Options per loss, e.g. {'af_dcd': {'feature_weight': 2e-6, 'contrast_weight': 5e-3}}; in "
                  "recipes and on the command line written as af_dcd.feature_weight."},
    )  # fmt: skip
    # one name may also be given as it is; HfArgumentParser does not know "str | list[str] | None"
    student_layer: list[str] | None = field(
        default=None,
        metadata={
            "help": "Module path of the student's map; our networks' last backbone map by default. Several paths "
            "distil several pairs of maps."
        },
    )
    teacher_layer: list[str] | None = field(
        default=None, metadata={"help": "Likewise for the teacher: as many, in the order of the student's."}
    )
    fold_teacher_batch_norm: bool = field(
        default=False,
        metadata={
            "help": "Run a copy of the teacher whose batch norm is part of its convolutions: faster, and equal up to "
            "rounding, which is checked on an image."
        },
    )
    distill_every: int = field(
        default=1,
        metadata={
            "help": "Run the teacher, and add its loss, at every n-th optimizer step only; the steps between learn "
            "from the labels alone and take no longer than without a teacher."
        },
    )
    distill_until: float = field(
        default=1.0,
        metadata={
            "help": "Share of the training (of its steps; with max_seconds, of its time) after which the student "
            "learns from the labels alone, e.g. 0.5."
        },
    )
    loss_max_grad_norm: float = field(
        default=15.0,
        metadata={
            "help": "Clip the gradients of the loss's own weights (align, projector) to this L2 norm; 0 does not."
        },
    )

    def __post_init__(self):
        if isinstance(self.loss_kwargs, str):
            self.loss_kwargs = parse_json_object("loss_kwargs", self.loss_kwargs)
        super().__post_init__()
        validate_loss_spec(self.loss, self.loss_kwargs)
        self.student_layer = _one_or_several(self.student_layer)
        self.teacher_layer = _one_or_several(self.teacher_layer)
        if self.student_layer is not None and self.teacher_layer is not None:
            check_pairs(layer_names(self.student_layer), layer_names(self.teacher_layer))
        _check_not_negative("loss_max_grad_norm", self.loss_max_grad_norm)
        if type(self.distill_every) is not int or self.distill_every < 1:
            raise ValueError(f"distill_every={self.distill_every!r} must be a whole number, 1 or more.")
        if not 0 < self.distill_until <= 1:
            raise ValueError(
                f"distill_until={self.distill_until} is a share of the training: above 0, and 1 for all of it. For the "
                "student alone use `afdcd train`."
            )

    @property
    def distils_at_times(self) -> bool:
        """Whether there are steps without the teacher."""
        return self.distill_every > 1 or self.distill_until < 1

    def distils_at(self, step: int, share_done: float) -> bool:
        """Whether optimizer step `step` (from 0), before which that share of the training is done, has the teacher."""
        within = self.distill_until == 1 or share_done < self.distill_until
        return within and step % self.distill_every == 0


def check_pairs(student_layers: Sequence[str], teacher_layers: Sequence[str]) -> None:
    """Raise ValueError unless each of the student's layers has one of the teacher's."""
    if len(student_layers) != len(teacher_layers):
        raise ValueError(
            f"student_layer names {len(student_layers)} map(s) ({', '.join(student_layers)}) and teacher_layer "
            f"{len(teacher_layers)} ({', '.join(teacher_layers)}): maps are compared in pairs, so name as many of "
            "each; the same layer may be named twice."
        )


def _one_or_several(layers: str | Sequence[str] | None) -> str | list[str] | None:
    """A single name by itself, however it was given."""
    if layers is None or isinstance(layers, str):
        return layers
    if not layers or not all(isinstance(name, str) for name in layers):
        raise ValueError(f"student_layer and teacher_layer take a module path, or a list of them, not {layers!r}.")
    return layers[0] if len(layers) == 1 else list(layers)


def _check_not_negative(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value} must be a finite number, 0 or more.")
