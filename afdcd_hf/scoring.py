"""`afdcd evaluate`: a saved model on a labelled dataset."""

from __future__ import annotations

import argparse

import torch
from accelerate import PartialState
from transformers import AutoImageProcessor

from .data.loading import load_split
from .evaluation import evaluate_segmenter
from .models.loading import load_model
from .results import save_results


def score(args: argparse.Namespace) -> dict:
    """Evaluate as the command line says, print the scores, and write them where `--output` says.

    Under torchrun or accelerate launch the processes share the images; the main one prints and writes.
    """
    state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available())
    dataset = load_split(args.dataset, args.split, args.data_dir, args.max_samples)
    model = load_model(args.model).to(args.device or state.device)
    scores = evaluate_segmenter(
        model,
        dataset,
        processor=AutoImageProcessor.from_pretrained(args.model),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        absent_as_zero=args.absent_as_zero,
    )
    if state.is_main_process:
        print(format_scores(scores))
        if args.output:
            save_results(args.output, scores, model=args.model, dataset=args.dataset, split=args.split)
    return scores


def format_scores(scores: dict) -> str:
    """The scores as a table in percent, a line per class."""
    lines = [f"{'class':<24}{'IoU %':>8}{'accuracy %':>12}"]
    for name, iou in scores["per_category_iou"].items():
        lines.append(f"{name:<24}{100 * iou:>8.2f}{100 * scores['per_category_accuracy'][name]:>12.2f}")
    lines.append(f"{'mean':<24}{100 * scores['mean_iou']:>8.2f}{100 * scores['mean_accuracy']:>12.2f}")
    absent = ", ".join(scores["absent_classes"])
    lines.append(
        f"{scores['num_images']} images, overall accuracy {100 * scores['overall_accuracy']:.2f} %"
        + (f"; neither in truth nor predicted: {absent}" if absent else "")
    )
    return "\n".join(lines)
