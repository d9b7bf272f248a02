"""One training run from a recipe: `afdcd train`, `afdcd distill` and the scripts all end here."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import nn
from transformers import set_seed

from ..data.checks import check_classes
from ..data.loading import load_split
from ..data.samples import TrainingSamples
from ..data.transforms import RandomScaleCropFlip
from ..folder_lock import LOCK_NAME, held_alone
from ..hub.card_facts import CardFacts
from ..hub.folder_facts import public_name
from ..models.loading import load_model, load_processor
from ..models.modeling_afdcd import AfDcdForSemanticSegmentation
from ..recipes import load_recipe
from .arguments import build_arguments, merge_arguments, training_part
from .checkpoints import checkpoint_to_resume
from .disk_space import check_writable
from .distillation_trainer import DistillationTrainer
from .options import DataArguments, ModelArguments, TeacherArguments
from .preflight import preflight
from .preprocessing import check_same_input, new_processor
from .recipe_file import write_recipe
from .report import Origin, prepare_facts, write_report
from .trainer import SegmentationTrainer
from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)


class FinishedRun(NamedTuple):
    """A run's folder, and the facts on its card (on the main process)."""

    folder: Path
    card: CardFacts | None


def train(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a model on the labels alone: teachers and baselines.

    Args:
        config: recipe name or path. Of a distillation recipe, what concerns teacher and loss is left out: this is the
            student's baseline on the same budget.
        argv: options that override the recipe, e.g. `["--max_steps", "100"]`.

    Returns:
        The folder, with the trained model, `results.json`, curves and card, and the card's facts.
    """
    given = merge_arguments(training_part(load_recipe(config)) if config else {}, argv, distils=False)
    model_args, data, args = build_arguments(given, distils=False)
    with _output_of(args):
        set_seed(args.seed)
        model, processor = build_model(model_args, data.classes())
        trainer = SegmentationTrainer(model, args, processing_class=processor, **_datasets(data, args, processor))
        return _run(trainer, data, given, origin_of(model_args), recipe_name=config)


def distill(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a student with a teacher's help.

    Args:
        config: recipe name or path.
        argv: options that override the recipe, e.g. `["--teacher", "runs/teacher", "--kd.weight", "0.5"]`.

    Returns:
        The folder, with the trained student, `results.json`, curves and card, and the card's facts.
    """
    given = merge_arguments(load_recipe(config) if config else {}, argv, distils=True)
    model_args, teacher_args, data, args = build_arguments(given, distils=True)
    if teacher_args.teacher is None:
        raise ValueError("A distillation needs --teacher: the folder or Hub id of a trained model.")
    with _output_of(args):
        teacher = load_model(teacher_args.teacher)
        set_seed(args.seed)
        teacher_processor = _processor_of(teacher_args.teacher)
        student, processor = build_model(model_args, data.classes(), teacher_processor)
        if teacher_processor is not None:
            check_same_input(processor, teacher_processor)
        parts = _datasets(data, args, processor, teacher_args)
        trainer = DistillationTrainer(student, teacher, args, processing_class=processor, **parts)
        origin = origin_of(model_args)
        return _run(trainer, data, given, origin, recipe_name=config, teacher_name=teacher_args.teacher)


def build_model(args: ModelArguments, classes: Sequence[str], teacher_processor: Any = None) -> tuple[nn.Module, Any]:
    """The model to train and its image processor: a saved one, or a new one on a timm backbone.

    A new student takes over how its teacher's images are prepared, unless `args.preprocessing` says otherwise.
    """
    if len(classes) < 2:
        raise ValueError(
            f"The dataset has one class ({', '.join(classes)}): cross entropy needs two or more. Name the background "
            "too, e.g. class_names: [background, crack], and give its pixels an id with label_map."
        )
    if args.model is not None:
        model, processor = load_model(args.model), load_processor(args.model)
        check_classes(model, classes)
        return model, processor
    model = AfDcdForSemanticSegmentation.from_backbone(
        args.backbone,
        pretrained_backbone=args.pretrained_backbone,
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
        return Origin(None, f"the saved model {public_name(args.model)}") if local else Origin(args.model)
    if args.pretrained_backbone is False:
        return Origin(None, "random weights")
    if args.pretrained_backbone is True:
        return Origin(timm.get_pretrained_cfg(args.backbone).hf_hub_id)
    return Origin(None, f"ImageNet weights of {args.backbone} from the file {public_name(args.pretrained_backbone)}")


def _datasets(
    data: DataArguments,
    args: SegmentationTrainingArguments,
    processor: Any,
    teacher_args: TeacherArguments | None = None,
) -> dict[str, Any]:
    classes = data.classes()
    unlabelled = None if teacher_args is None else teacher_args.unlabelled_choice(data)
    transform = RandomScaleCropFlip(
        processor,
        (data.crop_size[0], data.crop_size[1]),
        scales=data.scales,
        flip_probability=data.flip_probability,
        color_jitter=data.color_jitter,
        blur_probability=data.blur_probability,
        max_rotation=data.max_rotation,
    )
    return {
        "train_dataset": TrainingSamples(
            load_split(**data.choice("train")),
            transform,
            num_labels=len(classes),
            seed=args.seed,
            unlabelled=None if unlabelled is None else load_split(**unlabelled),
            unlabelled_share=0.5 if teacher_args is None else teacher_args.unlabelled_share,
        ),
        "eval_dataset": load_split(**data.choice("eval")),
    }


@contextmanager
def _output_of(args: SegmentationTrainingArguments) -> Iterator[None]:
    """Hold the output folder; refuse to write over an earlier run, and find its last whole checkpoint to resume."""
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give another --output_dir, in which the run's files can lie.")
    main = args.process_index == 0
    if main:  # where the folder is not there yet, it must not be left behind by a later error
        check_writable(next(path for path in (folder, *folder.absolute().parents) if path.exists()))
    with held_alone(folder) if main else nullcontext():
        if args.resume_from_checkpoint is not None:
            args.resume_from_checkpoint = checkpoint_to_resume(args, args.resume_from_checkpoint)
        others = folder.is_dir() and any(path.name != LOCK_NAME for path in folder.iterdir())
        if args.resume_from_checkpoint is None and main and others:
            raise FileExistsError(
                f"{folder} is not empty. Resume that run with --resume_from_checkpoint last, or give another "
                "--output_dir."
            )
        yield


def _processor_of(teacher: str) -> Any:
    """The teacher's image processor, or None (with a warning) where its folder has none."""
    try:
        return load_processor(teacher)
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
    folder = Path(trainer.args.output_dir)
    facts = prepare_facts(trainer, data, recipe_name=recipe_name, teacher_name=teacher_name, origin=origin)
    if trainer.args.preflight:
        preflight(trainer, data.classes())
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    seconds = time.perf_counter() - start
    trainer.save_model(_internal_call=True)  # or it would be pushed before its report is there
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    try:
        card = write_report(trainer, data, facts, seconds)
        if trainer.is_world_process_zero():
            write_recipe(folder, given)
        if trainer.args.push_to_hub:
            trainer.push_to_hub()
    except Exception as error:
        raise RuntimeError(
            f"The training is finished and the model is saved in {folder}, but then came a {type(error).__name__}: "
            f"{error}. After fixing the cause, score it with `afdcd evaluate --model {folder}`."
        ) from error
    return FinishedRun(folder, card)
