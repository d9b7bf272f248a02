"""What a trainer refuses or warns of at its start, because it would have no effect or come to nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..data.samples import TrainingSamples
from .distributed import images_per_step
from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)

_UNUSED = {
    "compute_metrics": "evaluations count class pairs as they go; use evaluate_segmenter for other figures",
    "compute_loss_func": "the loss is the arguments' task_weight, aux_weight and loss; override compute_loss instead",
    "preprocess_logits_for_metrics": "evaluations keep no logits",
    "model_init": "the model is given as it is",
}


def refuse_unused(given: Mapping[str, Any], args: SegmentationTrainingArguments) -> None:
    """Arguments of `transformers.Trainer` that would be taken and dropped."""
    for name, value in given.items():
        if name not in _UNUSED:
            raise TypeError(f"{name!r} is not an argument of this trainer.")
        if value is not None:
            raise ValueError(f"{name} has no effect in this trainer: {_UNUSED[name]}.")
    if args.label_smoothing_factor:
        raise ValueError(f"label_smoothing_factor={args.label_smoothing_factor} has no effect: leave it out.")


def refuse_where_divided(args: SegmentationTrainingArguments, divided: bool) -> None:
    """What needs whole weights on every process, where FSDP or DeepSpeed keep parts of them."""
    if divided and args.channels_last:
        raise ValueError("channels_last has no effect on weights that FSDP or DeepSpeed divide: leave it out.")
    if divided and args.ema_decay is not None:
        raise ValueError("ema_decay needs whole weights on every process, unlike under FSDP and DeepSpeed.")


def check_number_of_samples(train_dataset: Any, args: SegmentationTrainingArguments) -> None:
    """The Trainer would only warn, and save a model that was never trained."""
    batch = images_per_step(args)
    if isinstance(train_dataset, TrainingSamples):
        train_dataset.check_batch(args.per_device_train_batch_size)
    if args.dataloader_drop_last and hasattr(train_dataset, "__len__") and len(train_dataset) < batch:
        raise ValueError(
            f"The training set has {len(train_dataset)} samples, but a batch takes {batch}, and incomplete batches are "
            "dropped: use a smaller batch, or dataloader_drop_last=False."
        )


def warn_of_missing_half_precision(args: SegmentationTrainingArguments) -> None:
    """accelerate takes `fp16` for float32 on the CPU, and says nothing."""
    if args.fp16 and args.device.type == "cpu":
        logger.warning("fp16=True does nothing on the CPU: this training is in float32. bf16=True works there.")
