"""What a run leaves beside its weights: `results.json`, training curves, a model card and its recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..atomic_io import written_whole
from ..charts import data_title, plot_training_curves
from ..cost import count_macs_at
from ..data.statistics import fingerprint, is_generated
from ..evaluation.results import dataset_context, library_versions, machine_name, save_results
from ..evaluation.segmenter import evaluate_segmenter
from ..hub.card_facts import CardFacts, TrainingFacts, write_facts
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
from ..hub.push import RECIPE_NAME
from ..messages import without_tokens
from ..models.loading import load_model, load_processor
from .distillation_trainer import DistillationTrainer
from .distributed import images_per_step
from .option_values import plain_value
from .options import DataArguments
from .progress import shows_bars
from .timing import Speed
from .trainer import SegmentationTrainer

_HYPERPARAMETERS = (
    "loss", "loss_kwargs", "student_layer", "teacher_layer", "loss_max_grad_norm", "task_weight", "aux_weight",
    "task_loss", "class_weights", "optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps",
    "max_seconds",
)  # fmt: skip
# Of a recipe: what is of this one run, of this machine, or secret.
_LEFT_OUT = {"output_dir", "resume_from_checkpoint", "data_dir", "run_name", "hub_token", "local_rank", "logging_dir"}
# May be files or folders of this machine; such a one is written by its last name.
_MAY_BE_PATHS = {"teacher", "model", "pretrained_backbone", "dataset", "train_list", "eval_list"}


def prepare_facts(
    trainer: SegmentationTrainer,
    data: DataArguments,
    recipe_name: str | Path | None,
    teacher_name: str | None,
    origin: Mapping[str, Any],
) -> CardFacts | None:
    """All that a card says before anything is trained or scored, tried by rendering it; None off the main process.

    Names of recipe and teacher may be paths: what is written has their last part only. `origin` has the weights that
    the model started from, as facts of the card.

    Raises:
        ValueError: something that the card could not say, such as the MACs of a model that refuses the crop's size.
    """
    if not trainer.is_world_process_zero():
        return None
    args, crop, train = trainer.args, (data.crop_size[0], data.crop_size[1]), trainer.train_dataset.dataset
    settings = {name: plain_value(getattr(args, name, None)) for name in _HYPERPARAMETERS}
    settings = {name: value for name, value in settings.items() if value is not None}
    if getattr(args, "distils_at_times", False):
        settings |= {name: getattr(args, name) for name in ("distill_every", "distill_until")}
    settings |= {"total batch": images_per_step(args), "crop": f"{crop[0]}x{crop[1]}"}
    held: dict[str, Any] = {}  # what a stream does not say
    if not data.streaming:
        held = {"num_images": len(trainer.eval_dataset), "train_images": len(train)}
        generated = is_generated(data.dataset)
        held |= {"fingerprint": fingerprint(trainer.eval_dataset, of_pixels=generated)}
        held |= {"train_fingerprint": fingerprint(train, of_pixels=generated)}
    teachers_config = getattr(getattr(trainer, "teacher", None), "config", None)
    try:
        facts = CardFacts(
            model_name=Path(args.output_dir).resolve().name,  # paths are left out of what is to be shared
            **network_facts(trainer.student),
            **origin,
            macs=count_macs_at(trainer.student, [crop])[0],
            macs_size=crop,
            dataset=dataset_facts(
                data.dataset,
                split=data.eval_split,
                train_split=data.train_split,
                **held,
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
            teacher_architecture=None if teachers_config is None else describe(teachers_config),
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
    `facts` are of `prepare_facts`; the training took so many `seconds` of wall-clock time.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    scores = evaluate_segmenter(
        load_model(str(folder)).to(args.device),
        trainer.eval_dataset,
        processor=load_processor(str(folder)),
        batch_size=args.per_device_eval_batch_size,
        num_workers=args.dataloader_num_workers,
        progress=shows_bars(args),
    )
    if facts is None:
        return None
    context = dataset_context(**data.choice("eval"))
    results = save_results(folder / RESULTS_NAME, scores, model=facts.model_name, **context)
    if any("loss" in entry for entry in trainer.state.log_history):
        curves = {facts.model_name: trainer.state.log_history}
        plot_training_curves(curves, folder / CURVES_NAME, title=data_title(results["protocol"]))
    before, speed = facts.training or TrainingFacts(), trainer.speed or Speed()
    training = replace(
        before,
        hyperparameters={**before.hyperparameters, "total batch": images_per_step(args)},  # auto_find_batch_size
        iterations=trainer.state.global_step,
        seconds=None if args.resume_from_checkpoint else seconds,  # of a resumed run only the last part was clocked
        seconds_in_steps=speed.total_seconds if speed.steps else None,
        images_per_second=speed.images_per_second,
        time_split=speed.split,
        peak_memory_mb=speed.peak_memory_mb,
    )
    measured = measured_results(results, facts.model_name)
    # Images of the data set are not drawn: most may not be published again.
    facts = replace(facts, measured=measured, training=training, pictures=known_pictures(folder))
    write_facts(folder, facts)
    write_card(folder, facts)
    return facts


def write_recipe(folder: Path, given: Mapping[str, Any]) -> Path:
    """Write what a recipe and a command line set (`given`, of `merge_arguments`) as one recipe, and return its file.

    `--data_dir`, and the folders of models on this machine, have to be given again: local paths stay private.
    """
    lines = {
        key: public_name(value) if key in _MAY_BE_PATHS and isinstance(value, str) else plain_value(value)
        for key, value in given.items()
        if key not in _LEFT_OUT
    }
    text = (
        f"# This training again: afdcd {'distill' if 'loss' in lines else 'train'} --config {RECIPE_NAME} --output_dir "
        "FOLDER\n# (with --data_dir, and whatever was a file or folder of another machine)\n"
    )
    text += yaml.safe_dump(lines, sort_keys=False, allow_unicode=True)
    path = folder / RECIPE_NAME
    with written_whole(path) as part:
        part.write_text(without_tokens(text), encoding="utf-8")
    return path
