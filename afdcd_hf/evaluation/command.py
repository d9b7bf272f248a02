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
from ..inference.loading import load_segmenter
from ..inference.submission import PredictionWriter
from .results import check_writable, dataset_context, save_results
from .segmenter import evaluate_segmenter


def evaluate_saved(
    model: str,
    choice: Mapping[str, Any],
    *,
    device: str | None = None,
    output: str | Path | None = None,
    save_predictions: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a saved model (folder, Hub id or exported graph), print the scores, and write what is asked for.

    Under torchrun or accelerate launch the processes share the images; the main one prints and writes.

    Args:
        choice: What `load_split` takes.
        device: Where to run; by default a GPU where there is one.
        output: `results.json` to write, with the confusion matrix beside it.
        save_predictions: Folder for label maps; packed for the benchmark's test server if it has one.
        overwrite: Replace files of an earlier evaluation.
        options: Of `evaluate_segmenter`, whose scores are returned.

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
    writer = PredictionWriter(save_predictions, benchmark, overwrite=overwrite) if save_predictions else None
    if writer and state.is_main_process:
        writer.prepare()
    state.wait_for_everyone()
    scores = evaluate_segmenter(network, dataset, processor=processor, on_prediction=writer, **options)
    state.wait_for_everyone()  # the zip needs what every process wrote
    if state.is_main_process:
        print(format_scores(scores))
        if output:
            save_results(output, scores, model=model, **dataset_context(**choice))
            print(f"written: {output}, with the confusion matrix as .csv and .png beside it")
        if writer:
            print(f"label maps: {save_predictions}")
            if archive := writer.pack():
                print(f"for the test server: {archive}")
    return scores


def format_scores(scores: Mapping[str, Any]) -> str:
    """The scores as a table in percent, a line per class."""
    if not scores["num_pixels"]:
        return f"{scores['num_images']} images without any labelled pixel: nothing to score."
    columns = {"iou": "IoU %", "accuracy": "accuracy %", "boundary_iou": "boundary IoU %"}
    columns = {key: f"{title:>{len(title) + 3}}" for key, title in columns.items() if f"mean_{key}" in scores}
    rows = [(name, [scores[f"per_category_{key}"][name] for key in columns]) for name in scores["per_category_iou"]]
    rows.append(("mean", [scores[f"mean_{key}"] for key in columns]))
    lines = [f"{'class':<24}" + "".join(columns.values())]
    for name, values in rows:
        cells = (f"{100 * value:>{len(title)}.2f}" for value, title in zip(values, columns.values(), strict=True))
        lines.append(f"{name:<24}" + "".join(cells))
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
