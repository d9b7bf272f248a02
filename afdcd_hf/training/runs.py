"""One run from a recipe: `afdcd train`, `afdcd distill` and the scripts all end here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from transformers import set_seed

from ..data.loading import load_split
from ..data.samples import TrainingSamples
from ..data.streaming import StreamedSamples
from ..data.transforms import RandomScaleCropFlip
from ..folder_lock import LOCK_NAME, held_alone
from ..hub.card_facts import CardFacts
from ..models.loading import load_model
from ..recipes import load_recipe
from .arguments import build_arguments, merge_arguments, training_part
from .checkpoints import checkpoint_to_resume
from .disk_space import check_writable
from .distillation_trainer import DistillationTrainer
from .new_model import build_model, origin_of
from .options import DataArguments, TeacherArguments
from .preflight import preflight
from .report import prepare_facts, write_recipe, write_report
from .teacher_input import processor_of
from .trainer import SegmentationTrainer
from .training_args import SegmentationTrainingArguments


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
    return _run(config, argv, distils=False)


def distill(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a student with a teacher's help; as `train`, e.g. with `argv=["--teacher", "runs/teacher"]`."""
    return _run(config, argv, distils=True)


def _run(config: str | Path | None, argv: Sequence[str], *, distils: bool) -> FinishedRun:
    recipe = load_recipe(config) if config else {}
    given = merge_arguments(recipe if distils else training_part(recipe), argv, distils=distils)
    model_args, *others, data, args = build_arguments(given, distils=distils)
    teacher_args: Any = others[0] if distils else TeacherArguments()
    if distils and teacher_args.teacher is None:
        raise ValueError("A distillation needs --teacher: the folder or Hub id of a trained model.")
    with _output_of(args):
        teacher = load_model(teacher_args.teacher, needs_logits=False) if distils else None
        set_seed(args.seed)
        teachers_processor = processor_of(teacher_args.teacher) if distils else None
        model, processor = build_model(model_args, data.classes(), teachers_processor)
        parts = {"processing_class": processor, **_datasets(data, args, processor, teacher_args)}
        trainer: SegmentationTrainer
        if teacher is None:
            trainer = SegmentationTrainer(model, args, **parts)
        else:
            trainer = DistillationTrainer(model, teacher, args, teacher_processor=teachers_processor, **parts)
        facts = prepare_facts(trainer, data, config, teacher_args.teacher, origin_of(model_args))
        if args.preflight:
            preflight(trainer, data.classes())
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        seconds = time.perf_counter() - start
        trainer.save_model(_internal_call=True)  # or it would be pushed before its report is there
        trainer.save_state()
        trainer.accelerator.wait_for_everyone()
        folder = Path(args.output_dir)
        try:
            card = write_report(trainer, data, facts, seconds)
            if trainer.is_world_process_zero():
                settled = {"class_weights": args.class_weights} if "class_weights" in given else {}  # as numbers
                write_recipe(folder, {**given, **settled})
            if args.push_to_hub:
                trainer.push_to_hub()
        except Exception as error:
            raise RuntimeError(
                f"The training is finished and the model is saved in {folder}, but then came a "
                f"{type(error).__name__}: {error}. After fixing the cause, score it with `afdcd evaluate --model "
                f"{folder}`."
            ) from error
        return FinishedRun(folder, card)


def _datasets(
    data: DataArguments, args: SegmentationTrainingArguments, processor: Any, teacher_args: TeacherArguments
) -> dict[str, Any]:
    unlabelled = teacher_args.unlabelled_choice(data)
    names = ("scales", "flip_probability", "color_jitter", "blur_probability", "max_rotation")
    augmentation = {name: getattr(data, name) for name in names}
    rows, evaluated = (load_split(**data.choice(part)) for part in ("train", "eval"))
    transform = RandomScaleCropFlip(processor, (data.crop_size[0], data.crop_size[1]), **augmentation)
    of_all: dict[str, Any] = {"num_labels": len(data.classes()), "seed": args.seed}
    samples: TrainingSamples | StreamedSamples
    if data.streaming:
        samples = StreamedSamples(rows, transform, shuffle_buffer=data.shuffle_buffer, **of_all)
    else:
        samples = TrainingSamples(
            rows,
            transform,
            unlabelled=None if unlabelled is None else load_split(**unlabelled),
            unlabelled_share=teacher_args.unlabelled_share,
            cutmix_probability=data.cutmix_probability,
            classmix_probability=data.classmix_probability,
            **of_all,
        )
    return {"train_dataset": samples, "eval_dataset": evaluated}


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
        elif main and folder.is_dir() and any(path.name != LOCK_NAME for path in folder.iterdir()):
            raise FileExistsError(
                f"{folder} is not empty. Resume that run with --resume_from_checkpoint last, or give another "
                "--output_dir."
            )
        yield
