"""How models run in a training: in which precision, compiled or not, with or without kept activations."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import TrainingArguments

from ..inference.segment import InferenceSettings


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Take off the autocast that accelerate has put around `model.forward`, and put it back afterwards.

    accelerate replaces `forward` of the model that the optimizer trains. That is the student itself in a supervised
    training, but the module around it in a distillation: without this, the same evaluation would run in bfloat16 here
    and in float32 there.
    """
    if "_original_forward" not in model.__dict__:
        yield
        return
    wrapped = model.__dict__["forward"]
    model.forward = model._original_forward
    try:
        yield
    finally:
        model.forward = wrapped


def evaluation_settings(args: TrainingArguments) -> InferenceSettings:
    """How evaluations during a training run: in float32, unless `bf16_full_eval` or `fp16_full_eval` asks for autocast.

    Mixed precision of the training (`bf16`, `fp16`) does not matter: the weights are float32, and a checkpoint's score
    in the log is the one that `evaluate_segmenter` gives the saved folder.
    """
    precision = "bf16" if args.bf16_full_eval else "fp16" if args.fp16_full_eval else "fp32"
    return InferenceSettings(precision=precision)


def compile_like_student(model: nn.Module, accelerator: Accelerator) -> Any:
    """The model compiled with the settings that accelerate compiles the student with; as it is without any."""
    plugin = accelerator.state.dynamo_plugin
    if plugin.backend == DynamoBackend.NO:
        return model
    return torch.compile(model, **plugin.to_kwargs())


def enable_gradient_checkpointing(student: Any, args: TrainingArguments) -> None:
    """Do now what the Trainer does when training begins, so that a student that cannot is found out early.

    Raises:
        ValueError: the student, or its backbone, has no gradient checkpointing.
    """
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
