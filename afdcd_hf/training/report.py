"""What a run leaves beside its weights: `results.json`, training curves and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from ..charts import plot_training_curves
from ..cost import count_macs, count_parameters
from ..data.benchmarks import BENCHMARKS
from ..evaluation.results import dataset_context, evaluate_command, library_versions, machine_name, save_results
from ..evaluation.segmenter import evaluate_segmenter
from ..hub.card_facts import CardFacts, DatasetFacts, MeasuredResults, Picture, TrainingFacts
from ..hub.model_card import write_card
from ..models.loading import load_model
from .arguments import DataArguments
from .distillation_trainer import DistillationTrainer
from .progress import shows_bars
from .scale_out import images_per_step
from .speed import Speed
from .trainer import SegmentationTrainer

RESULTS_NAME = "results.json"
CURVES_NAME = "training_curves.png"

_HYPERPARAMETERS = (
    "loss", "loss_kwargs", "student_layer", "teacher_layer", "loss_max_grad_norm", "task_weight", "aux_weight",
    "optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps",
)  # fmt: skip


def write_report(
    trainer: SegmentationTrainer,
    data: DataArguments,
    *,
    recipe_name: str | Path | None,
    teacher_name: str | None,
    seconds: float,
) -> CardFacts | None:
    """Score the saved folder (not the network in memory) and write results, curves and card into it.

    Runs on all ranks, which share the evaluation; only the main process writes, and returns the card's facts.
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
    results = save_results(folder / RESULTS_NAME, scores, model=str(folder), **context)
    pictures = []
    if any("loss" in entry for entry in trainer.state.log_history):
        plot_training_curves({folder.name: trainer.state.log_history}, folder / CURVES_NAME)
        pictures.append(Picture(CURVES_NAME, "Loss terms and mean IoU during training."))
    facts = CardFacts(
        model_name=folder.name,
        architecture=describe(model.config),
        num_parameters=count_parameters(model),
        macs=count_macs(model, tuple(data.crop_size)),
        macs_size=tuple(data.crop_size),
        dataset=_dataset_facts(data, len(trainer.eval_dataset)),
        measured=measured_results(results),
        training=_training_facts(trainer, data, recipe_name, seconds),
        teacher=teacher_name,
        pictures=pictures,
        citations=trainer.loss_module.citations if isinstance(trainer, DistillationTrainer) else [],
    )
    write_card(folder, facts)
    return facts


def describe(config) -> str:
    """The network in words."""
    if config.model_type != "afdcd":
        return type(config).__name__.removesuffix("Config")
    head = {"deeplabv3": "DeepLabV3", "pspnet": "PSPNet", "fcn": "FCN"}[config.head]
    options = ", ".join(f"{name} {value}" for name, value in config.backbone_kwargs.items())
    backbone = f"{config.backbone} ({options})" if options else config.backbone
    return f"{head} on {backbone}, output stride {config.output_stride}"


def measured_results(results: dict[str, Any]) -> MeasuredResults:
    """The card's view of a `results.json`."""
    protocol = dict(results["protocol"])
    environment = {name: protocol.pop(name, None) for name in ("date", "machine")}
    protocol.pop("versions", None)
    command = evaluate_command(protocol)
    names = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "num_images")
    return MeasuredResults(**{name: results[name] for name in names}, protocol=protocol, command=command, **environment)


def _dataset_facts(data: DataArguments, num_images: int) -> DatasetFacts:
    benchmark = BENCHMARKS.get(data.dataset)
    licence = benchmark.licence if benchmark else None
    return DatasetFacts(name=data.dataset, split=data.eval_split, license=licence, num_images=num_images)


def _training_facts(
    trainer: SegmentationTrainer, data: DataArguments, recipe_name: str | Path | None, seconds: float
) -> TrainingFacts:
    args, speed = trainer.args, trainer.speed or Speed()
    settings = {name: _plain(getattr(args, name)) for name in _HYPERPARAMETERS if getattr(args, name, None) is not None}
    settings |= {"total batch": images_per_step(args), "crop": f"{data.crop_size[0]}x{data.crop_size[1]}"}
    return TrainingFacts(
        recipe=str(recipe_name) if recipe_name else None,
        hyperparameters=settings,
        seed=args.seed,
        iterations=trainer.state.global_step,
        # Of a resumed run, only its last part was clocked.
        seconds=None if args.resume_from_checkpoint else seconds,
        seconds_in_steps=speed.total_seconds if speed.steps else None,
        images_per_second=speed.images_per_second,
        time_split=speed.split,
        peak_memory_mb=speed.peak_memory_mb,
        peak_memory_of="GPU" if args.device.type == "cuda" else "process",
        hardware=machine_name(),
        versions=library_versions(),
    )


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # transformers keeps some settings as enums
