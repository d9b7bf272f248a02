"""`afdcd evaluate`: a saved model on a labelled dataset."""

from __future__ import annotations

import argparse

import torch
from accelerate import PartialState
from transformers import AutoImageProcessor

from ..data.benchmarks import BENCHMARKS, Benchmark
from ..data.checks import check_classes
from ..data.loading import load_split
from ..inference.segment import InferenceSettings
from ..inference.submission import PredictionWriter, submission_writer, zip_predictions
from ..models.loading import load_model
from ..recipes import parse_json_object
from .results import check_writable, dataset_context, save_results
from .segmenter import evaluate_segmenter

_DATASET_OPTIONS = ("data_dir", "max_samples", "list_file", "image_column", "label_column", "labels_as")


def score(args: argparse.Namespace, settings: InferenceSettings) -> dict:
    """Evaluate as the command line says, print the scores, and write what it asks for.

    Under torchrun or accelerate launch the processes share the images; the main one prints and writes.
    """
    if args.output:
        check_writable(args.output, args.overwrite)
    state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())
    choice = _choice(args)
    dataset = load_split(**choice)
    benchmark = BENCHMARKS.get(args.dataset)
    model = load_model(args.model).to(args.device or state.device)
    if benchmark is not None:
        check_classes(model, benchmark.classes, benchmark.name)
    writer = _writer(args, benchmark, state)
    scores = evaluate_segmenter(
        model,
        dataset,
        processor=AutoImageProcessor.from_pretrained(args.model),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        absent_as_zero=args.absent_as_zero,
        settings=settings,
        boundary_ratio=args.boundary_ratio,
        on_prediction=writer,
    )
    state.wait_for_everyone()  # the zip needs what every process wrote
    if state.is_main_process:
        _report(args, scores, benchmark, choice)
    return scores


def _choice(args: argparse.Namespace) -> dict:
    """What `load_split` takes."""
    given = {name: getattr(args, name) for name in _DATASET_OPTIONS}
    if args.label_map is not None:
        given["label_map"] = parse_json_object("label_map", args.label_map)
    chosen = {name: value for name, value in given.items() if value is not None}
    return {"name": args.dataset, "split": args.split, **chosen}


def _writer(args: argparse.Namespace, benchmark: Benchmark | None, state: PartialState) -> PredictionWriter | None:
    if not args.save_predictions:
        return None
    writer = submission_writer(args.save_predictions, benchmark, overwrite=args.overwrite)
    if state.is_main_process:
        writer.prepare()
    state.wait_for_everyone()
    return writer


def _report(args: argparse.Namespace, scores: dict, benchmark: Benchmark | None, choice: dict) -> None:
    print(format_scores(scores))
    if args.output:
        save_results(args.output, scores, model=args.model, **dataset_context(**choice))
        print(f"written: {args.output}, with the confusion matrix as .csv and .png beside it")
    if args.save_predictions:
        print(f"label maps: {args.save_predictions}")
        if benchmark is not None and benchmark.submission is not None:
            print(f"for the test server: {zip_predictions(args.save_predictions, overwrite=args.overwrite)}")


def format_scores(scores: dict) -> str:
    """The scores as a table in percent, a line per class."""
    if not scores["num_pixels"]:
        return f"{scores['num_images']} images without any labelled pixel: nothing to score."
    boundary = scores.get("per_category_boundary_iou")
    lines = [f"{'class':<24}{'IoU %':>8}{'accuracy %':>12}" + (f"{'boundary IoU %':>16}" if boundary else "")]
    for name, iou in scores["per_category_iou"].items():
        line = f"{name:<24}{100 * iou:>8.2f}{100 * scores['per_category_accuracy'][name]:>12.2f}"
        lines.append(line + (f"{100 * boundary[name]:>16.2f}" if boundary else ""))
    line = f"{'mean':<24}{100 * scores['mean_iou']:>8.2f}{100 * scores['mean_accuracy']:>12.2f}"
    lines.append(line + (f"{100 * scores['mean_boundary_iou']:>16.2f}" if boundary else ""))
    absent = ", ".join(scores["absent_classes"])
    lines.append(
        f"{scores['num_images']} images, overall accuracy {100 * scores['overall_accuracy']:.2f} %, "
        f"frequency-weighted IoU {100 * scores['frequency_weighted_iou']:.2f} %"
        + (f"; neither in truth nor predicted: {absent}" if absent else "")
    )
    return "\n".join(lines)
