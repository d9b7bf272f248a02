"""What a run leaves beside its weights: `results.json`, training curves and a model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..charts import plot_training_curves
from ..cost import count_macs_at
from ..data.fingerprint import fingerprint, is_generated
from ..evaluation.results import dataset_context, library_versions, machine_name, save_results
from ..evaluation.segmenter import evaluate_segmenter
from ..hub.card_facts import CardFacts, DatasetFacts, TrainingFacts
from ..hub.facts_file import write_facts
from ..hub.folder_facts import (
    CURVES_NAME,
    RESULTS_NAME,
    dataset_facts,
    describe,
    known_pictures,
    measured_results,
    network_facts,
    public_name,
)
from ..hub.model_card import render_card, write_card
from ..models.loading import load_model, load_processor
from .distillation_trainer import DistillationTrainer
from .distributed import images_per_step
from .option_values import plain_value
from .options import DataArguments
from .progress import shows_bars
from .timing import Speed
from .trainer import SegmentationTrainer
from .training_args import DistillationTrainingArguments, SegmentationTrainingArguments

_HYPERPARAMETERS = (
    "loss", "loss_kwargs", "student_layer", "teacher_layer", "loss_max_grad_norm", "task_weight", "aux_weight",
    "task_loss", "class_weights", "optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps",
    "max_seconds",
)  # fmt: skip


class Origin(NamedTuple):
    """The weights that a model started from: an id on the Hub, or words."""

    base_model: str | None
    words: str | None = None


def prepare_facts(
    trainer: SegmentationTrainer,
    data: DataArguments,
    *,
    recipe_name: str | Path | None,
    teacher_name: str | None,
    origin: Origin,
) -> CardFacts | None:
    """All that a card says before anything is trained or scored, tried by rendering it; None off the main process.

    Names of recipe and teacher may be paths: what is written has their last part only.

    Args:
        trainer: the trainer, before the training.
        data: images and labels.
        recipe_name: name or file of the recipe.
        teacher_name: folder or Hub id of the teacher.
        origin: the weights that the model started from.

    Raises:
        ValueError: something that the card could not say, such as the MACs of a model that refuses the crop's size.
    """
    if not trainer.is_world_process_zero():
        return None
    crop = (data.crop_size[0], data.crop_size[1])
    try:
        facts = CardFacts(
            model_name=Path(trainer.args.output_dir).resolve().name,  # paths are left out of what is to be shared
            **network_facts(trainer.student),
            macs=count_macs_at(trainer.student, [crop])[0],
            macs_size=crop,
            dataset=_dataset_facts(trainer, data),
            training=_training_facts(trainer.args, data, recipe_name),
            teacher=public_name(teacher_name) if teacher_name else None,
            teacher_architecture=_teacher_architecture(trainer),
            base_model=origin.base_model,
            started_from=origin.words,
            citations=trainer.loss_module.citations if isinstance(trainer, DistillationTrainer) else [],
        )
        render_card(facts)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"The model card of this run could not be written: {error}") from error
    return facts


def write_report(
    trainer: SegmentationTrainer, data: DataArguments, facts: CardFacts | None, seconds: float
) -> CardFacts | None:
    """Score the saved folder (not the model in memory) and write results, curves, facts and card into it.

    Runs on all ranks, which share the evaluation; only the main process writes, and returns the card's facts.

    Args:
        trainer: the trainer, after the training.
        data: images and labels.
        facts: of `prepare_facts`.
        seconds: wall-clock time of the training.
    """
    folder = Path(trainer.args.output_dir)
    model = load_model(str(folder)).to(trainer.args.device)
    scores = evaluate_segmenter(
        model,
        trainer.eval_dataset,
        processor=load_processor(str(folder)),
        batch_size=trainer.args.per_device_eval_batch_size,
        num_workers=trainer.args.dataloader_num_workers,
        progress=shows_bars(trainer.args),
    )
    if facts is None:
        return None
    results = save_results(
        folder / RESULTS_NAME, scores, model=facts.model_name, **dataset_context(**data.choice("eval"))
    )
    if any("loss" in entry for entry in trainer.state.log_history):
        plot_training_curves({facts.model_name: trainer.state.log_history}, folder / CURVES_NAME)
    facts = replace(
        facts,
        measured=measured_results(results, facts.model_name),
        training=_with_speed(facts.training or TrainingFacts(), trainer, seconds),
        pictures=known_pictures(folder),  # images of the data set are not drawn: most may not be published again
    )
    write_facts(folder, facts)
    write_card(folder, facts)
    return facts


def _dataset_facts(trainer: SegmentationTrainer, data: DataArguments) -> DatasetFacts:
    generated, train = is_generated(data.dataset), trainer.train_dataset.dataset
    return dataset_facts(
        data.dataset,
        split=data.eval_split,
        num_images=len(trainer.eval_dataset),
        fingerprint=fingerprint(trainer.eval_dataset, of_pixels=generated),
        train_split=data.train_split,
        train_images=len(train),
        train_fingerprint=fingerprint(train, of_pixels=generated),
    )


def _teacher_architecture(trainer: SegmentationTrainer) -> str | None:
    config = getattr(getattr(trainer, "teacher", None), "config", None)
    return None if config is None else describe(config)


def _training_facts(
    args: SegmentationTrainingArguments, data: DataArguments, recipe_name: str | Path | None
) -> TrainingFacts:
    settings = {
        name: plain_value(getattr(args, name)) for name in _HYPERPARAMETERS if getattr(args, name, None) is not None
    }
    if isinstance(args, DistillationTrainingArguments) and args.distils_at_times:
        settings |= {"distill_every": args.distill_every, "distill_until": args.distill_until}
    settings |= {"total batch": images_per_step(args), "crop": f"{data.crop_size[0]}x{data.crop_size[1]}"}
    return TrainingFacts(
        recipe=public_name(recipe_name) if recipe_name else None,
        hyperparameters=settings,
        seed=args.seed,
        peak_memory_of="GPU" if args.device.type == "cuda" else "process",
        hardware=machine_name(),
        versions=library_versions(),
    )


def _with_speed(facts: TrainingFacts, trainer: SegmentationTrainer, seconds: float) -> TrainingFacts:
    speed = trainer.speed or Speed()
    resumed = bool(trainer.args.resume_from_checkpoint)  # then only its last part was clocked
    settings = {**facts.hyperparameters, "total batch": images_per_step(trainer.args)}  # auto_find_batch_size
    return replace(
        facts,
        hyperparameters=settings,
        iterations=trainer.state.global_step,
        seconds=None if resumed else seconds,
        seconds_in_steps=speed.total_seconds if speed.steps else None,
        images_per_second=speed.images_per_second,
        time_split=speed.split,
        peak_memory_mb=speed.peak_memory_mb,
    )
