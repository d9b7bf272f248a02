"""`results.json`: the scores of one evaluation, with everything needed to repeat it, and the confusion matrix."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ..atomic_io import check_can_write, written_whole
from ..charts.results import model_and_data, plot_confusion_matrix
from ..cost.machine import library_versions, machine_name
from ..inference.segment import WHOLE_IMAGE
from ..metrics.confusion_csv import write_confusion_csv


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Before a long evaluation: an OSError where its results cannot be written, or exist and `overwrite` is off."""
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give --output the name of a file, such as {path}/results.json.")
    existing = [one for one in (path, *_confusion_files(path)) if one.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists; give another --output, or --overwrite.")
    check_can_write(path)


def save_results(path: str | Path, scores: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Write scores as JSON; an undefined score (NaN) becomes null.

    The confusion matrix goes beside it: `results.json` gets `results_confusion.csv` and `results_confusion.png`.

    `scores` are those of `evaluate_segmenter`, `context` is what the protocol should add, e.g. model, dataset, split.
    Returns what was written as JSON.
    """
    protocol = {**context, **scores["protocol"], "date": date.today().isoformat(), "machine": machine_name()}
    plain = {name: value for name, value in scores.items() if name != "confusion_matrix"}
    text = json.dumps({**plain, "protocol": {**protocol, "versions": library_versions()}})
    results = json.loads(text, parse_constant=lambda _: None)  # NaN is not JSON
    path = Path(path)
    with written_whole(path) as part:
        part.write_text(json.dumps(results, indent=2) + "\n")
    table, chart = _confusion_files(path)
    names = list(scores["per_category_iou"])
    write_confusion_csv(scores["confusion_matrix"], names, table)
    if scores["num_pixels"]:
        plot_confusion_matrix(scores["confusion_matrix"], names, chart, title=model_and_data(protocol))
    return results


def dataset_context(
    name: str, split: str, data_dir: Any = None, streaming: bool = False, **options: Any
) -> dict[str, Any]:
    """What the protocol says about images and labels: `load_split`'s arguments, but for where and how they are read."""
    return {"dataset": name, "split": split, **options}


def evaluate_command(protocol: Mapping[str, Any]) -> str:
    """The shell command that repeats an evaluation; `FOLDER` stands for the reader's copy of the images."""
    options: dict[str, Any] = {name: protocol[name] for name in ("model", "dataset", "split")}
    options["data_dir"] = None if protocol["dataset"] == "scenes" else "FOLDER"
    for name in ("list_file", "max_samples", "image_column", "label_column", "labels_as", "boundary_ratio"):
        options[name] = protocol.get(name)
    options["label_map"] = json.dumps(protocol["label_map"]) if protocol.get("label_map") else None
    usual = WHOLE_IMAGE.describe()
    options |= {name: protocol[name] for name in usual if protocol.get(name, usual[name]) != usual[name]}
    options["absent_as_zero"] = protocol["absent_classes"] == "count as 0"
    words = ["afdcd", "evaluate"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    return shlex.join(words)


def _confusion_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.stem}_confusion.csv"), path.with_name(f"{path.stem}_confusion.png")
