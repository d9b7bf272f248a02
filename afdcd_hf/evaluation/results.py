"""`results.json`: the scores of one evaluation, with everything needed to repeat it, and the confusion matrix."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..atomic_io import written_whole
from ..charts import plot_confusion_matrix
from ..metrics.confusion_csv import write_confusion_csv


def machine_name() -> str:
    """The GPU, or the processor and its number of cores that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    libraries = ("torch", "transformers", "timm", "datasets", "accelerate")
    return {"afdcd_hf": __version__, **{name: version(name) for name in libraries}}


def check_writable(path: str | Path, overwrite: bool = False) -> None:
    """Look before a long evaluation whether its results may be written.

    Raises:
        FileExistsError: `path`, or the confusion matrix beside it, exists and `overwrite` is off.
    """
    existing = [one for one in (Path(path), *_confusion_files(Path(path))) if one.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists; give another --output, or --overwrite.")


def save_results(path: str | Path, scores: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Write scores as JSON; an undefined score (NaN) becomes null.

    The confusion matrix goes beside it: `results.json` gets `results_confusion.csv` and `results_confusion.png`.

    Args:
        path: file to write; its folder is made.
        scores: what `evaluate_segmenter` returned.
        context: what the protocol should add, e.g. model, dataset, split.

    Returns:
        What was written as JSON.
    """
    protocol = {**context, **scores["protocol"], "date": date.today().isoformat(), "machine": machine_name()}
    plain = {name: value for name, value in scores.items() if name != "confusion_matrix"}
    results = _without_nan({**plain, "protocol": {**protocol, "versions": library_versions()}})
    path = Path(path)
    with written_whole(path) as part:
        part.write_text(json.dumps(results, indent=2) + "\n")
    table, picture = _confusion_files(path)
    names = list(scores["per_category_iou"])
    write_confusion_csv(scores["confusion_matrix"], names, table)
    if scores["num_pixels"]:
        plot_confusion_matrix(scores["confusion_matrix"], names, picture)
    return results


def dataset_context(name: str, split: str, data_dir: Any = None, **options: Any) -> dict[str, Any]:
    """What the protocol says about images and labels: `load_split`'s arguments, but for where the files lie."""
    return {"dataset": name, "split": split, **options}


def evaluate_command(protocol: Mapping[str, Any]) -> str:
    """The command line that repeats an evaluation; `FOLDER` stands for the reader's copy of the images."""
    words = ["afdcd evaluate", *(f"--{name} {protocol[name]}" for name in ("model", "dataset", "split"))]
    words += [] if protocol["dataset"] == "scenes" else ["--data-dir FOLDER"]
    for name in ("list_file", "max_samples", "image_column", "label_column", "labels_as", "boundary_ratio"):
        words += [f"--{name.replace('_', '-')} {protocol[name]}"] if protocol.get(name) is not None else []
    words += [f"--label-map '{json.dumps(protocol['label_map'])}'"] if protocol.get("label_map") else []
    words += [f"--scales {' '.join(map(str, protocol['scales']))}"] if protocol["scales"] != [1.0] else []
    for name in ("window", "stride"):
        words += [f"--{name} {' '.join(map(str, protocol[name]))}"] if protocol.get(name) else []
    words += ["--flip"] if protocol["flip"] else []
    words += [f"--precision {protocol['precision']}"] if protocol["precision"] != "fp32" else []
    words += ["--absent-as-zero"] if protocol["absent_classes"] == "count as 0" else []
    return " ".join(words)


def _confusion_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.stem}_confusion.csv"), path.with_name(f"{path.stem}_confusion.png")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
