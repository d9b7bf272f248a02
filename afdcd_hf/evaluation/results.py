"""`afdcd evaluate`: scores of a saved model, and a `results.json` with everything needed to repeat them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ..atomic_io import check_can_write, refuse_existing
from ..charts.results import model_and_data, plot_confusion_matrix
from ..cost.machine import library_versions, machine_name
from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.loading import load_split
from ..inference.files import PredictionWriter
from ..inference.graphs import load_segmenter
from ..inference.segment import WHOLE_IMAGE
from ..messages import public_name
from ..metrics.confusion_csv import write_confusion_csv
from ..structured_files import json_values, write_json


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
    """Evaluate a saved model (folder, Hub id or exported graph), print the scores, and write the requested files.

    Under torchrun or accelerate launch, the main process prints and writes. Before any computation, raises OSError if a
    file exists (without `overwrite`) or cannot be written, and ValueError if the model is not for these classes; see
    also `evaluate_segmenter`, whose scores are returned.

    Args:
        choice: Arguments of `load_split`.
        device: Device to run on; by default a GPU, if there is one.
        output: `results.json` to write, with the confusion matrix beside it.
        save_predictions: Folder for label maps; packed for the benchmark's test server if it has one.
        overwrite: Replace files of an earlier evaluation.
        options: Of `evaluate_segmenter`.
    """
    from accelerate import PartialState  # not at the top: a demo's Space does without accelerate
    from accelerate.utils import gather_object

    from .segmenter import evaluate_segmenter

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if output and state.is_main_process:
        check_writable(output, overwrite)
    state.wait_for_everyone()
    dataset = load_split(**choice)
    benchmark = BENCHMARKS.get(choice["name"])
    segmenter, processor = load_segmenter(model)
    segmenter.to(device or state.device)
    if benchmark is not None:
        check_classes(segmenter, benchmark.classes, benchmark.name)
    writer = PredictionWriter(save_predictions, benchmark, overwrite=overwrite) if save_predictions else None
    if writer and state.is_main_process:
        writer.prepare()
    state.wait_for_everyone()
    scores = evaluate_segmenter(segmenter, dataset, processor=processor, on_prediction=writer, **options)
    written = gather_object(list(writer.written)) if writer else []  # by every process
    if state.is_main_process:
        print(format_scores(scores))
        if output:
            save_results(output, scores, model=model, **dataset_context(**choice))
            print(f"written: {output}, with the confusion matrix as .csv and .png beside it")
        if writer:
            print(f"label maps: {save_predictions}")
            if archive := writer.pack(written):
                print(f"for the test server: {archive}")
    return scores


def format_scores(scores: Mapping[str, Any]) -> str:
    """Format the scores as a table in percent, with a line per class."""
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


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Raise OSError if results cannot be written, or exist and `overwrite` is off; call it before a long evaluation."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give --output the name of a file, such as {path}/results.json.")
    refuse_existing((path, *_confusion_files(path)), overwrite, "--output")
    check_can_write(path)


def save_results(path: str | Path, scores: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Write scores as JSON; an undefined score (NaN) becomes null.

    The confusion matrix goes beside it: `results.json` gets `results_confusion.csv` and `results_confusion.png`.

    `scores` are those of `evaluate_segmenter`; `context` is added to the protocol without local paths, e.g. model,
    dataset, split. Returns what was written as JSON.
    """
    made = {"date": date.today().isoformat(), "machine": machine_name()}
    protocol = {**public_protocol(context), **scores["protocol"], **made}
    plain = {name: value for name, value in scores.items() if name != "confusion_matrix"}
    results = json_values({**plain, "protocol": {**protocol, "versions": library_versions()}})
    path = Path(path)
    write_json(path, results)
    table, chart = _confusion_files(path)
    names = list(scores["per_category_iou"])
    write_confusion_csv(scores["confusion_matrix"], names, table)
    if scores["num_pixels"]:
        plot_confusion_matrix(scores["confusion_matrix"], names, chart, title=model_and_data(protocol))
    return results


def dataset_context(
    name: str, split: str, data_dir: Any = None, streaming: bool = False, **options: Any
) -> dict[str, Any]:
    """Return the protocol's entries about the data: `load_split`'s arguments, except where and how it is read.

    Of a dataset other than a benchmark, `data_dir` chooses a part, and is kept.
    """
    part = {"data_dir": str(data_dir)} if data_dir and name not in BENCHMARKS else {}
    return {"dataset": name, "split": split, **part, **options}


def is_local(dataset: str) -> bool:
    """Whether the name of a dataset is that of a local folder or file, which means nothing to others."""
    return dataset not in BENCHMARKS and (Path(dataset).exists() or public_name(dataset) != dataset)


def public_protocol(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the protocol of an evaluation without local paths; `local_dataset` then says that there was one."""
    paths = {name: public_name(protocol[name]) for name in ("model", "dataset", "list_file") if protocol.get(name)}
    part = Path(protocol.get("data_dir") or "")
    if part.name and (part.is_absolute() or ".." in part.parts or part.exists()):  # otherwise it is in the dataset
        paths["data_dir"] = part.name
    local = {"local_dataset": True} if is_local(protocol["dataset"]) else {}
    return {**protocol, **paths, **local}


def data_options(dataset: str, local: bool) -> dict[str, str]:
    """Return the options that name the images; `FOLDER` stands for the reader's copy. None for those on the Hub."""
    if local:
        return {"dataset": "FOLDER"}
    return {"data_dir": "FOLDER"} if dataset in BENCHMARKS and BENCHMARKS[dataset].files else {}


def evaluate_command(protocol: Mapping[str, Any]) -> str:
    """Return the shell command that repeats an evaluation; `FOLDER` stands for the reader's copy of the images."""
    usual = WHOLE_IMAGE.describe()
    options: dict[str, Any] = {name: protocol[name] for name in ("model", "dataset", "split")}
    options["data_dir"] = protocol.get("data_dir")
    options |= data_options(protocol["dataset"], bool(protocol.get("local_dataset")))
    for name in ("list_file", "max_samples", "image_column", "label_column", "labels_as", "boundary_ratio", *usual):
        options[name] = protocol.get(name) if protocol.get(name) != usual.get(name) else None
    options["label_map"] = json.dumps(protocol["label_map"]) if protocol.get("label_map") else None
    options["absent_as_zero"] = protocol["absent_classes"] == "count as 0"
    return command_line(["afdcd", "evaluate"], options)


def command_line(words: Iterable[str], options: Mapping[str, Any]) -> str:
    """Join a command and its options for a shell; True is a switch, and None and False leave an option out."""
    words = list(words)
    for name, value in options.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, (list, tuple)) else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def _confusion_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.stem}_confusion.csv"), path.with_name(f"{path.stem}_confusion.png")
