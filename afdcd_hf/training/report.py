"""What a run leaves beside its weights: `results.json`, training curves and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from transformers import AutoImageProcessor

from ..charts import plot_training_curves
from ..cost import count_macs_at
from ..data.fingerprint import fingerprint, is_generated
from ..evaluation.results import dataset_context, library_versions, machine_name, save_results
from ..evaluation.segmenter import evaluate_segmenter
from ..hub.card_facts import CardFacts, DatasetFacts, Picture, TrainingFacts
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
from ..hub.model_card import write_card
from ..models.loading import load_model
from .arguments import DataArguments, plain_value
from .distillation_trainer import DistillationTrainer
from .distributed import images_per_step
from .progress import shows_bars
from .timing import Speed
from .trainer import SegmentationTrainer
from .training_args import DistillationTrainingArguments

_HYPERPARAMETERS = (
    "loss", "loss_kwargs", "student_layer", "teacher_layer", "loss_max_grad_norm", "task_weight", "aux_weight",
    "optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "max_seconds",
)  # fmt: skip


class Origin(NamedTuple):
    """The weights that a network started from: an id on the Hub, or words."""

    base_model: str | None
    words: str | None = None


def write_report(
    trainer: SegmentationTrainer,
    data: DataArguments,
    *,
    recipe_name: str | Path | None,
    teacher_name: str | None,
    origin: Origin,
    seconds: float,
) -> CardFacts | None:
    """Score the saved folder (not the network in memory) and write results, curves, facts and card into it.

    Runs on all ranks, which share the evaluation; only the main process writes, and returns the card's facts. Names of
    recipe and teacher may be paths: what is written has their last part only.

    Args:
        trainer: the trainer, after the training.
        data: images and labels.
        recipe_name: name or file of the recipe.
        teacher_name: folder or Hub id of the teacher.
        origin: the weights that the network started from.
        seconds: wall-clock time of the training.
    """
    folder = Path(trainer.args.output_dir)
    model = load_model(str(folder)).to(trainer.args.device)
    scores = evaluate_segmenter(
        model,
        trainer.eval_dataset,
        processor=AutoImageProcessor.from_pretrained(folder),
        batch_size=trainer.args.per_device_eval_batch_size,
        num_workers=trainer.args.dataloader_num_workers,
        progress=shows_bars(trainer.args),
    )
    if not trainer.is_world_process_zero():
        return None
    context = dataset_context(**data.choice("eval"))
    name = folder.resolve().name  # paths are left out of what is to be shared
    results = save_results(folder / RESULTS_NAME, scores, model=name, **context)
    facts = CardFacts(
        model_name=name,
        **network_facts(model),
        macs=count_macs_at(model, [tuple(data.crop_size)])[0],
        macs_size=tuple(data.crop_size),
        dataset=_dataset_facts(trainer, data),
        measured=measured_results(results, name),
        training=_training_facts(trainer, data, recipe_name, seconds),
        teacher=public_name(teacher_name) if teacher_name else None,
        teacher_architecture=_teacher_architecture(trainer),
        base_model=origin.base_model,
        started_from=origin.words,
        pictures=_pictures(trainer, folder, name),
        citations=trainer.loss_module.citations if isinstance(trainer, DistillationTrainer) else [],
    )
    write_facts(folder, facts)
    write_card(folder, facts)
    return facts


def _pictures(trainer: SegmentationTrainer, folder: Path, name: str) -> list[Picture]:
    """Draws the curves. Images of the data set are not drawn: most may not be published again."""
    if any("loss" in entry for entry in trainer.state.log_history):
        plot_training_curves({name: trainer.state.log_history}, folder / CURVES_NAME)
    return known_pictures(folder)


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
    trainer: SegmentationTrainer,
    data: DataArguments,
    recipe_name: str | Path | None,
    seconds: float,
) -> TrainingFacts:
    args, speed = trainer.args, trainer.speed or Speed()
    settings = {
        name: plain_value(getattr(args, name)) for name in _HYPERPARAMETERS if getattr(args, name, None) is not None
    }
    if isinstance(args, DistillationTrainingArguments) and args.distils_at_times:
        settings |= {"distill_every": args.distill_every, "distill_until": args.distill_until}
    settings |= {"total batch": images_per_step(args), "crop": f"{data.crop_size[0]}x{data.crop_size[1]}"}
    resumed = bool(args.resume_from_checkpoint)  # then only its last part was clocked
    return TrainingFacts(
        recipe=public_name(recipe_name) if recipe_name else None,
        hyperparameters=settings,
        seed=args.seed,
        iterations=trainer.state.global_step,
        seconds=None if resumed else seconds,
        seconds_in_steps=speed.total_seconds if speed.steps else None,
        images_per_second=speed.images_per_second,
        time_split=speed.split,
        peak_memory_mb=speed.peak_memory_mb,
        peak_memory_of="GPU" if args.device.type == "cuda" else "process",
        hardware=machine_name(),
        versions=library_versions(),
    )
