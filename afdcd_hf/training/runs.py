"""Complete runs from a recipe, with results, curves, card and recipe next to the weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import set_seed

from ..atomic_io import atomic_write
from ..charts import data_title, plot_training_curves
from ..cost import count_macs_at
from ..cost.machine import library_versions, machine_name
from ..data.loading import load_split
from ..data.samples import TrainingSamples
from ..data.statistics import fingerprint, is_generated
from ..data.streaming import StreamedSamples
from ..data.transforms import RandomScaleCropFlip
from ..evaluation.results import dataset_context, save_results
from ..evaluation.segmenter import evaluate_segmenter
from ..folder_lock import LOCK_NAME, lock_folder
from ..hub import folder_facts
from ..hub.card_facts import FACTS_NAME, RECIPE_NAME, CardFacts, TrainingFacts, read_facts, write_facts
from ..hub.model_card import render_card, write_card
from ..messages import plain_message, public_name, without_tokens
from ..model_utils import ignore_index_of
from ..models.loading import load_model, load_processor
from ..recipes import load_recipe
from ..structured_files import read_yaml
from .checkpoints import checkpoint_to_resume
from .distillation import DistillationTrainer
from .distributed import images_per_step
from .new_model import build_model, initial_weights
from .options import DataArguments, TeacherArguments
from .preflight import check_writable, preflight
from .progress import shows_progress_bars
from .recipe_arguments import build_arguments, merge_arguments, public_value, training_part
from .teacher import load_teacher_processor
from .trainer import SegmentationTrainer
from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)

_HYPERPARAMETERS = (
    "loss", "loss_kwargs", "student_layer", "teacher_layer", "loss_max_grad_norm", "task_weight", "aux_weight",
    "task_loss", "class_weights", "optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps",
    "max_seconds", "ema_decay",
)  # fmt: skip
# Keys not written to a recipe: specific to this run or machine, or secret.
_LEFT_OUT = {"output_dir", "resume_from_checkpoint", "data_dir", "run_name", "local_rank", "logging_dir", "push_to_hub"}


class FinishedRun(NamedTuple):
    """The folder of a run, and the facts on its card (on the main process only)."""

    folder: Path
    card: CardFacts | None


def train(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a model on the labels alone, as a teacher or baseline.

    Args:
        config: recipe name or path. In a distillation recipe, the options of teacher and loss are ignored, which gives
            the student's baseline with the same budget.
        argv: options that override the recipe, e.g. `["--max_steps", "100"]`.

    Returns:
        The folder, with the trained model, `results.json`, curves and card, and the card's facts.
    """
    given = load_recipe(config) if config else {}
    if (recipe := training_part(given)) != given:
        logger.info("%s is a recipe for a distillation: training without its teacher and loss", config)
    return _run(config, merge_arguments(recipe, argv, distils=False), distils=False)


def distill(config: str | Path | None = None, argv: Sequence[str] = ()) -> FinishedRun:
    """Train a student with a teacher, e.g. with `argv=["--teacher", "runs/teacher"]`; otherwise like `train`."""
    recipe = load_recipe(config) if config else {}
    return _run(config, merge_arguments(recipe, argv, distils=True), distils=True)


def _run(config: str | Path | None, given: dict[str, Any], *, distils: bool) -> FinishedRun:
    model_args, *others, data, args = build_arguments(given, distils=distils)
    teacher_args: Any = others[0] if distils else TeacherArguments()
    if distils and teacher_args.teacher is None:
        raise ValueError("Distillation needs --teacher: the folder or Hub id of a trained model.")
    folder, main = Path(args.output_dir), args.process_index == 0
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, not a folder: give another --output_dir.")
    if main:  # checks the nearest existing parent, so that a later error leaves no empty folder behind
        check_writable(next(path for path in (folder, *folder.absolute().parents) if path.exists()))
    with lock_folder(folder) if main else nullcontext():
        if args.resume_from_checkpoint is not None:
            args.resume_from_checkpoint = checkpoint_to_resume(args, args.resume_from_checkpoint)
        if main:
            _check_may_be_written(folder, args.resume_from_checkpoint)
        before = read_finished(folder)
        teacher = load_model(teacher_args.teacher, needs_logits=False) if distils else None
        set_seed(args.seed)
        teacher_processor = load_teacher_processor(teacher_args.teacher) if distils else None
        model, processor = build_model(model_args, data.classes(), teacher_processor)
        ignore_index = ignore_index_of(model)
        parts = {"processing_class": processor, **_datasets(data, args, processor, teacher_args, ignore_index)}
        trainer: SegmentationTrainer
        if teacher is None:
            trainer = SegmentationTrainer(model, args, **parts)
        else:
            trainer = DistillationTrainer(model, teacher, args, teacher_processor=teacher_processor, **parts)
        trainer.checkpoints.options = {**vars(model_args), **vars(teacher_args), **vars(data)}
        facts = prepare_facts(trainer, data, config, teacher_args.teacher, initial_weights(model_args), before)
        if args.preflight:
            preflight(trainer, data.classes())
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        seconds = time.perf_counter() - start
        trainer.save_model(_internal_call=True)  # otherwise it would be pushed before its report is written
        done = trainer.state.global_step
        reported = before.training.iterations if before is not None and before.measured is not None else None
        if reported == done == trainer.checkpoints.resumed_step:
            card = before if main else None  # it was finished already, and its report stays as it is
        else:
            resolved = {"class_weights": args.class_weights} if "class_weights" in given else {}  # as numbers
            card = _save_report(trainer, data, {**given, **resolved}, facts, seconds)
        if args.push_to_hub:
            trainer.push_to_hub()
        return FinishedRun(folder, card)


def _save_report(
    trainer: SegmentationTrainer, data: DataArguments, given: Mapping[str, Any], facts: CardFacts | None, seconds: float
) -> CardFacts | None:
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    folder = Path(trainer.args.output_dir)
    try:
        if trainer.is_world_process_zero():
            write_recipe(folder, given)
        return write_report(trainer, data, facts, seconds)
    except Exception as error:
        raise RuntimeError(
            f"The training is finished and the model is saved in {folder}, but its report failed: "
            f"{type(error).__name__}: {plain_message(error)} "
            f"After fixing the cause, run `afdcd evaluate --model {folder}`."
        ) from error


def _check_may_be_written(folder: Path, checkpoint: str | None) -> None:
    """Raise FileExistsError unless the folder is new or empty, or holds the checkpoint to resume from."""
    if checkpoint is not None and Path(checkpoint).absolute().parent.resolve() == folder.resolve():
        return
    if folder.is_dir() and any(path.name != LOCK_NAME for path in folder.iterdir()):
        how = "Resume that run with --resume_from_checkpoint last, or give another --output_dir."
        raise FileExistsError(f"{folder} is not empty. {how}")


def _datasets(
    data: DataArguments,
    args: SegmentationTrainingArguments,
    processor: Any,
    teacher_args: TeacherArguments,
    ignore_index: int,
) -> dict[str, Any]:
    names = ("scales", "flip_probability", "color_jitter", "blur_probability", "max_rotation")
    augmentation = {"ignore_index": ignore_index, **{name: getattr(data, name) for name in names}}
    unlabelled = teacher_args.unlabelled_choice(data)
    rows, evaluated = (load_split(**data.choice(part)) for part in ("train", "eval"))
    transform = RandomScaleCropFlip(processor, (data.crop_size[0], data.crop_size[1]), **augmentation)
    options: dict[str, Any] = {"num_labels": len(data.classes()), "seed": args.seed, "ignore_index": ignore_index}
    samples: TrainingSamples | StreamedSamples
    if data.streaming:
        samples = StreamedSamples(rows, transform, shuffle_buffer=data.shuffle_buffer, **options)
    else:
        options |= {name: getattr(data, name) for name in ("cutmix_probability", "classmix_probability")}
        options["unlabelled"] = None if unlabelled is None else load_split(**unlabelled)
        samples = TrainingSamples(rows, transform, unlabelled_share=teacher_args.unlabelled_share, **options)
    return {"train_dataset": samples, "eval_dataset": evaluated}


def prepare_facts(
    trainer: SegmentationTrainer,
    data: DataArguments,
    recipe_name: str | Path | None,
    teacher_name: str | None,
    origin: Mapping[str, Any],
    before: CardFacts | None,
) -> CardFacts | None:
    """Collect the card's facts known before training, and check them by rendering it; None off the main process.

    `before` is the finished card of a run that is resumed: what its owner stated there is kept.
    """
    if not trainer.is_world_process_zero():
        return None
    args, crop, train = trainer.args, (data.crop_size[0], data.crop_size[1]), trainer.train_dataset.dataset
    settings = {name: public_value(name, getattr(args, name, None)) for name in _HYPERPARAMETERS}
    settings = {name: value for name, value in settings.items() if value is not None}
    if getattr(args, "skips_teacher", False):
        settings |= {name: getattr(args, name) for name in ("distill_every", "distill_until")}
    if args.load_best_model_at_end:  # a model chosen by its score on the evaluated split
        settings |= {name: getattr(args, name) for name in ("load_best_model_at_end", "metric_for_best_model")}
    settings |= {"total batch": images_per_step(args), "crop": f"{crop[0]}x{crop[1]}"}
    sizes: dict[str, Any] = {}  # unknown for a stream
    if not data.streaming:
        sizes = {"num_images": len(trainer.eval_dataset), "train_images": len(train)}
        generated = is_generated(data.dataset)
        sizes |= {"fingerprint": fingerprint(trainer.eval_dataset, of_pixels=generated)}
        sizes |= {"train_fingerprint": fingerprint(train, of_pixels=generated)}
    teacher_config = getattr(getattr(trainer, "teacher", None), "config", None)
    try:
        facts = CardFacts(
            model_name=Path(args.output_dir).resolve().name,  # no local paths on a card
            **folder_facts.network_facts(trainer.student),
            **origin,
            macs=count_macs_at(trainer.student, [crop])[0],
            macs_size=crop,
            dataset=folder_facts.dataset_facts(
                data.dataset, split=data.eval_split, train_split=data.train_split, **sizes
            ),
            training=TrainingFacts(
                recipe=public_name(recipe_name) if recipe_name else None,
                hyperparameters=settings,
                seed=args.seed,
                peak_memory_of="GPU" if args.device.type == "cuda" else "process",
                hardware=machine_name(),
                versions=library_versions(),
            ),
            teacher=public_name(teacher_name) if teacher_name else None,
            teacher_architecture=None if teacher_config is None else folder_facts.describe(teacher_config),
            citations=getattr(getattr(trainer, "loss_module", None), "citations", []),
        )
        facts = facts if before is None else _with_facts_before(facts, before, Path(args.output_dir))
        render_card(facts)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"The model card of this run could not be written: {error}") from error
    return facts


def read_finished(folder: Path) -> CardFacts | None:
    """Read the facts of a finished run; they are written last, so None means unfinished."""
    return read_facts(folder) if (folder / FACTS_NAME).is_file() else None


def _with_facts_before(facts: CardFacts, before: CardFacts, folder: Path) -> CardFacts:
    """Carry over what the owner of the finished run in the folder stated, and note a change of the teacher."""
    before, recipe = folder_facts.with_current_name(before, folder), folder / RECIPE_NAME
    # the teacher as the run names it, which on the card may be its owner's name for it
    first = read_yaml(recipe).get("teacher") if recipe.is_file() else None
    if first and facts.teacher and first != facts.teacher:
        note = f"Distilled from {before.teacher}, then resumed and distilled from {facts.teacher}."
        before = replace(before, teacher=facts.teacher, notes=[*before.notes, note])
    return folder_facts.with_owners_facts(facts, before)


def write_report(
    trainer: SegmentationTrainer, data: DataArguments, facts: CardFacts | None, seconds: float
) -> CardFacts | None:
    """Score the saved folder (not the model in memory) on all ranks; rank 0 writes the report, the facts last."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    options: dict[str, Any] = {"batch_size": args.per_device_eval_batch_size}
    options |= {"processor": load_processor(str(folder)), "num_workers": args.dataloader_num_workers}
    model = load_model(str(folder)).to(args.device)
    scores = evaluate_segmenter(model, trainer.eval_dataset, progress=shows_progress_bars(args), **options)
    if facts is None:
        return None
    context = dataset_context(**data.choice("eval"))
    name = folder.resolve().name  # no local paths on a card
    results = save_results(folder / folder_facts.RESULTS_NAME, scores, model=name, **context)
    if any("loss" in entry for entry in trainer.state.log_history):
        curves = {name: trainer.state.log_history}
        plot_training_curves(curves, folder / folder_facts.CURVES_NAME, title=data_title(results["protocol"]))
    training = replace(
        facts.training,
        hyperparameters={**facts.training.hyperparameters, "total batch": images_per_step(args)},  # may be auto-found
        iterations=trainer.state.global_step,
        seconds=None if args.resume_from_checkpoint else seconds,  # only the last part of a resumed run was timed
        **trainer.speed,
    )
    measured = folder_facts.measured_results(results, facts.repo_id or name)
    pictures = folder_facts.known_pictures(folder, facts.pictures)
    # No predictions on dataset images: most licences do not allow redistribution.
    facts = replace(facts, measured=measured, training=training, pictures=pictures)
    write_card(folder, facts)
    write_facts(folder, facts)
    return facts


def write_recipe(folder: Path, given: Mapping[str, Any]) -> Path:
    """Write the merged options of recipe and command line as a recipe without local paths, and return its path."""
    kept = [key for key in given if key not in _LEFT_OUT and not key.startswith("hub_")]
    lines = {key: public_value(key, given[key]) for key in kept}
    command = f"afdcd {'distill' if 'loss' in lines else 'train'} --config {RECIPE_NAME} --output_dir FOLDER"
    text = f"# To repeat this run: {command}\n# (plus --data_dir, and the paths of files on your machine)\n"
    text += yaml.safe_dump(lines, sort_keys=False, allow_unicode=True)
    with atomic_write(folder / RECIPE_NAME) as part:
        part.write_text(without_tokens(text), encoding="utf-8")
    return folder / RECIPE_NAME
