"""Arguments of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..losses import validate_loss_spec
from ..recipes import parse_json_object


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
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip all gradients to this norm; 0 does not clip."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Images per process and step."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "Images per process in evaluations."})
    total_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Images per optimizer step over all processes and accumulation steps; sets "
            "per_device_train_batch_size."
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

    def __post_init__(self):
        if isinstance(self.lr_scheduler_kwargs, str):
            self.lr_scheduler_kwargs = parse_json_object("lr_scheduler_kwargs", self.lr_scheduler_kwargs)
        if self.lr_scheduler_kwargs is None:
            polynomial = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type)) == "polynomial"
            self.lr_scheduler_kwargs = {"power": 0.9, "lr_end": 0.0} if polynomial else {}
        if self.optim_args is None and str(getattr(self.optim, "value", self.optim)) == "sgd":
            self.optim_args = "momentum=0.9"
        super().__post_init__()
        for name in ("task_weight", "aux_weight"):
            _check_not_negative(name, getattr(self, name))
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be False: images and labels are read from the raw columns.")
        if self.total_batch_size is not None:
            self._derive_device_batch_size()

    def _derive_device_batch_size(self) -> None:
        share = self.world_size * self.gradient_accumulation_steps
        if self.total_batch_size < 1 or self.total_batch_size % share:
            raise ValueError(
                f"total_batch_size={self.total_batch_size} cannot be shared by {self.world_size} process(es) with "
                f"{self.gradient_accumulation_steps} accumulation step(s): it must be a multiple of {share}."
            )
        self.per_device_train_batch_size = self.total_batch_size // share


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
    student_layer: str | None = field(
        default=None, metadata={"help": "Module path of the student's map; our networks' last backbone map by default."}
    )
    teacher_layer: str | None = field(default=None, metadata={"help": "Likewise for the teacher."})
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
        _check_not_negative("loss_max_grad_norm", self.loss_max_grad_norm)


def _check_not_negative(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}={value} must be a finite number, 0 or more.")
