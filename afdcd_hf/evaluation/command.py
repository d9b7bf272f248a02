"""`afdcd evaluate`: a saved model on a labelled dataset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.loading import load_split
from ..inference.onnx_segmenter import load_segmenter, settings_for
from ..inference.settings import WHOLE_IMAGE, InferenceSettings
from ..inference.submission import submission_writer, zip_predictions
from .results import check_writable, dataset_context, save_results
from .segmenter import evaluate_segmenter


def evaluate_saved(
    model: str,
    choice: Mapping[str, Any],
    *,
    settings: InferenceSettings = WHOLE_IMAGE,
    device: str | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    absent_as_zero: bool = False,
    boundary_ratio: float | None = None,
    output: str | Path | None = None,
    save_predictions: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate a saved model, print the scores, and write what is asked for.

    Under torchrun or accelerate launch the processes share the images; the main one prints and writes.

    Args:
        model: Folder, Hub id or `.onnx` file. A graph of fixed size is slid over the images.
        choice: What `load_split` takes.
        settings: Scales, flip, window and precision.
        device: Where to run; by default a GPU where there is one.
        batch_size: As in `evaluate_segmenter`, like the next three.
        num_workers: Likewise.
        absent_as_zero: Likewise.
        boundary_ratio: Likewise.
        output: `results.json` to write, with the confusion matrix beside it.
        save_predictions: Folder for label maps; packed for the benchmark's test server if it has one.
        overwrite: Replace files of an earlier evaluation.

    Returns:
        What `evaluate_segmenter` returns.

    Raises:
        OSError: Before anything is computed, if a file exists and `overwrite` is off, or cannot be written.
        ValueError: If the model is not for these classes; see also `evaluate_segmenter`.
    """
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if output and state.is_main_process:
        check_writable(output, overwrite)
    state.wait_for_everyone()
    dataset = load_split(**choice)
    benchmark = BENCHMARKS.get(choice["name"])
    network, processor = load_segmenter(model)
    network.to(device or state.device)
    if benchmark is not None:
        check_classes(network, benchmark.classes, benchmark.name)
    settings = settings_for(network, settings)
    writer = submission_writer(save_predictions, benchmark, overwrite=overwrite) if save_predictions else None
    if writer and state.is_main_process:
        writer.prepare()
    state.wait_for_everyone()
    scores = evaluate_segmenter(
        network,
        dataset,
        processor=processor,
        batch_size=batch_size,
        num_workers=num_workers,
        absent_as_zero=absent_as_zero,
        settings=settings,
        boundary_ratio=boundary_ratio,
        on_prediction=writer,
    )
    state.wait_for_everyone()  # the zip needs what every process wrote
    if state.is_main_process:
        print(format_scores(scores))
        if output:
            save_results(output, scores, model=model, **dataset_context(**choice))
            print(f"written: {output}, with the confusion matrix as .csv and .png beside it")
        if save_predictions:
            print(f"label maps: {save_predictions}")
            if benchmark is not None and benchmark.submission is not None:
                print(f"for the test server: {zip_predictions(save_predictions, overwrite=overwrite)}")
    return scores


def format_scores(scores: Mapping[str, Any]) -> str:
    """The scores as a table in percent, a line per class."""
    if not scores["num_pixels"]:
        return f"{scores['num_images']} images without any labelled pixel: nothing to score."
    columns = {"IoU %": "iou", "accuracy %": "accuracy"}
    columns |= {"boundary IoU %": "boundary_iou"} if "mean_boundary_iou" in scores else {}
    lines = [f"{'class':<24}" + "".join(f"{title:>{len(title) + 3}}" for title in columns)]
    rows = {
        name: {key: scores[f"per_category_{key}"][name] for key in columns.values()}
        for name in scores["per_category_iou"]
    }
    rows["mean"] = {key: scores[f"mean_{key}"] for key in columns.values()}
    for name, row in rows.items():
        lines.append(
            f"{name:<24}" + "".join(f"{100 * row[key]:>{len(title) + 3}.2f}" for title, key in columns.items())
        )
    absent = ", ".join(scores["absent_classes"])
    lines.append(
        f"{scores['num_images']} images, overall accuracy {100 * scores['overall_accuracy']:.2f} %, "
        f"frequency-weighted IoU {100 * scores['frequency_weighted_iou']:.2f} %"
        + (f"; neither in truth nor predicted: {absent}" if absent else "")
    )
    total = scores["seconds"]["all"]
    parts = (f"{part} {seconds / total:.0%}" for part, seconds in scores["seconds"].items() if part != "all")
    lines.append(f"{total:.1f} s: {', '.join(parts)}")
    return "\n".join(lines)
