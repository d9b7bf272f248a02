"""One training run from a recipe: `afdcd train`, `afdcd distill` and the scripts all end here."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn
from transformers import AutoImageProcessor, set_seed

from ..data.checks import check_classes
from ..data.loading import load_split
from ..data.samples import TrainingSamples
from ..data.transforms import RandomScaleCropFlip
from ..hub.card_facts import CardFacts
from ..hub.folder_facts import public_name
from ..models.loading import load_model
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from ..recipes import load_recipe
from .arguments import (
    DISTILL_ARGUMENTS,
    TRAIN_ARGUMENTS,
    DataArguments,
    ModelArguments,
    given_arguments,
    parse_arguments,
    training_part,
)
from .checkpoints import checkpoint_to_resume
from .disk_space import check_writable
from .distillation_trainer import DistillationTrainer
from .preflight import preflight
from .preprocessing import check_same_input, new_processor
from .recipe_file import write_recipe
from .report import Origin, write_report
from .trainer import SegmentationTrainer
from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)


class FinishedRun(NamedTuple):
    """A run's folder, and the facts on its card (on the main process)."""

    folder: Path
    card: CardFacts | None


def train(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a network on the labels alone: teachers and baselines.

    Args:
        config: recipe name or path. Of a distillation recipe, what concerns teacher and loss is left out: this is the
            student's baseline on the same budget.
        argv: options that override the recipe, e.g. `["--max_steps", "100"]`.

    Returns:
        The folder, with the trained model, `results.json`, curves and card, and the card's facts.
    """
    recipe = training_part(load_recipe(config)) if config else {}
    parsed = model_args, data, args = parse_arguments(TRAIN_ARGUMENTS, recipe, argv)
    _check_output(args)
    set_seed(args.seed)
    model, processor = build_model(model_args, data.classes())
    trainer = SegmentationTrainer(model, args, processing_class=processor, **_datasets(data, args, processor))
    given = given_arguments(parsed, recipe, argv)
    return _run(trainer, data, given, origin_of(model_args), recipe_name=config)


def distill(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a student with a teacher's help.

    Args:
        config: recipe name or path.
        argv: options that override the recipe, e.g. `["--teacher", "runs/teacher", "--kd.weight", "0.5"]`.

    Returns:
        The folder, with the trained student, `results.json`, curves and card, and the card's facts.
    """
    recipe = load_recipe(config) if config else {}
    parsed = model_args, teacher_args, data, args = parse_arguments(DISTILL_ARGUMENTS, recipe, argv)
    _check_output(args)
    if teacher_args.teacher is None:
        raise ValueError("A distillation needs --teacher: the folder or Hub id of a trained network.")
    teacher = load_model(teacher_args.teacher)
    set_seed(args.seed)
    teacher_processor = _processor_of(teacher_args.teacher)
    student, processor = build_model(model_args, data.classes(), teacher_processor)
    if teacher_processor is not None:
        check_same_input(processor, teacher_processor)
    trainer = DistillationTrainer(
        student, teacher, args, processing_class=processor, **_datasets(data, args, processor)
    )
    given = given_arguments(parsed, recipe, argv)
    origin = origin_of(model_args)
    return _run(trainer, data, given, origin, recipe_name=config, teacher_name=teacher_args.teacher)


def build_model(args: ModelArguments, classes: Sequence[str], teacher_processor=None) -> tuple[nn.Module, Any]:
    """The network to train and its image processor: a saved one, or a new one on a timm backbone.

    A new student takes over how its teacher's images are prepared, unless `args.preprocessing` says otherwise.
    """
    if args.model is not None:
        model, processor = load_model(args.model), AutoImageProcessor.from_pretrained(args.model)
        check_classes(model, classes)
        return model, processor
    pretrained = {"true": True, "false": False}.get(args.pretrained_backbone.lower(), args.pretrained_backbone)
    model = AfDcdForSemanticSegmentation.from_backbone(
        args.backbone,
        pretrained_backbone=pretrained,
        backbone_kwargs=args.backbone_kwargs,
        output_stride=args.output_stride,
        head=args.head,
        head_channels=args.head_channels,
        atrous_rates=args.atrous_rates,
        auxiliary_head=args.auxiliary_head,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    return model, new_processor(model, args.preprocessing, teacher_processor)


def origin_of(args: ModelArguments) -> Origin:
    """The weights that `build_model` starts from, as the card may say them: local paths stay private."""
    if args.model is not None:
        local = Path(args.model).exists()
        return Origin(None, f"the saved network {public_name(args.model)}") if local else Origin(args.model)
    weights = args.pretrained_backbone.lower()
    if weights == "false":
        return Origin(None, "random weights")
    if weights == "true":
        return Origin(timm.get_pretrained_cfg(args.backbone).hf_hub_id)
    return Origin(None, f"ImageNet weights of {args.backbone} from the file {public_name(args.pretrained_backbone)}")


def _datasets(data: DataArguments, args: SegmentationTrainingArguments, processor) -> dict[str, Any]:
    classes = data.classes()
    transform = RandomScaleCropFlip(
        processor,
        tuple(data.crop_size),
        scales=data.scales,
        flip_probability=data.flip_probability,
        color_jitter=data.color_jitter,
        blur_probability=data.blur_probability,
        max_rotation=data.max_rotation,
    )
    return {
        "train_dataset": TrainingSamples(
            load_split(**data.choice("train")), transform, num_labels=len(classes), seed=args.seed
        ),
        "eval_dataset": load_split(**data.choice("eval")),
    }


def _check_output(args: SegmentationTrainingArguments) -> None:
    """Refuse to write over an earlier run, and find its last whole checkpoint where that is to be resumed."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give another --output_dir, in which the run's files can lie.")
    if args.process_index == 0:  # where the folder is not there yet, it must not be left behind by a later error
        check_writable(next(path for path in (folder, *folder.absolute().parents) if path.exists()))
    if args.resume_from_checkpoint is not None:
        args.resume_from_checkpoint = checkpoint_to_resume(args, args.resume_from_checkpoint)
    if args.resume_from_checkpoint is None and args.process_index == 0 and folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty. Resume that run with --resume_from_checkpoint last, or give another --output_dir."
        )


def _processor_of(teacher: str):
    """The teacher's image processor, or None (with a warning) where its folder has none."""
    try:
        return AutoImageProcessor.from_pretrained(teacher)
    except (OSError, ValueError) as error:
        logger.warning("The teacher %s has no image processor, so its input cannot be checked: %s", teacher, error)
        return None


def _run(
    trainer: SegmentationTrainer,
    data: DataArguments,
    given: Mapping[str, Any],
    origin: Origin,
    recipe_name: str | Path | None,
    teacher_name: str | None = None,
) -> FinishedRun:
    if trainer.args.preflight:
        preflight(trainer, data.classes())
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    trainer.save_model(_internal_call=True)  # or it would be pushed before its report is there
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    card = write_report(
        trainer,
        data,
        recipe_name=recipe_name,
        teacher_name=teacher_name,
        origin=origin,
        seconds=seconds,
    )
    if trainer.is_world_process_zero():
        write_recipe(Path(trainer.args.output_dir), given)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    return FinishedRun(Path(trainer.args.output_dir), card)
