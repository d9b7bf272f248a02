"""`afdcd export --format onnx`: the graph, its int8 version, what was measured, and a report of it all."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..atomic_io import written_whole
from ..cost.machine import library_versions, machine_name
from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.loading import load_split
from ..inference.onnx_segmenter import check_packages, load_segmenter
from .onnx import check_output, export_onnx, format_parity
from .quantisation import quantise_onnx
from .runtimes import compare_runtimes, format_runtimes


def export_saved_onnx(
    model: str,
    output: Path,
    *,
    upsample: bool = False,
    argmax: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    int8: bool = False,
    dataset: str | None = None,
    data_dir: str | None = None,
    calibration_split: str | None = None,
    calibration_samples: int | None = None,
    evaluate_split: str | None = None,
    max_samples: int | None = None,
    overwrite: bool = False,
) -> None:
    """Export a saved model; `<name>_export.json` beside the graph says what was measured, which is also printed.

    The arguments are those of the command, whose help describes them; `dataset` is its `--calibration_dataset`.

    Raises:
        ValueError: If options do not go together, or the export fails.
        OSError: If a file exists or cannot be written; before anything is computed.
    """
    check_packages()
    needs_data = [f"--{name}" for name, given in (("int8", int8), ("evaluate_split", evaluate_split)) if given]
    for applies, message in (
        (needs_data and not dataset, f"{'/'.join(needs_data)} needs images: give --calibration_dataset."),
        (dataset and not needs_data, "--calibration_dataset is for --int8 or --evaluate_split: give one of them."),
        (data_dir and not dataset, "--data_dir needs --calibration_dataset, the name of what lies there."),
        (calibration_split and not int8, "--calibration_split is for --int8: add it."),
        (calibration_samples is not None and not int8, "--calibration_samples is for --int8: add it."),
        (max_samples is not None and not evaluate_split, "--max_samples limits --evaluate_split: give the split."),
        (
            evaluate_split and argmax and not upsample,
            "With --argmax, label maps can only be scored at the image's size: add --upsample.",
        ),
    ):
        if applies:
            raise ValueError(message)
    files = {"ONNX": check_output(output, overwrite)}
    if int8:
        files["ONNX int8"] = check_output(output.with_name(f"{output.stem}_int8.onnx"), overwrite)
    report = output.with_name(f"{output.stem}_export.json")
    if report.exists() and not overwrite:
        raise FileExistsError(f"{report} exists; give another --output, or --overwrite.")
    # before the long work: data that is not there is known at once
    calibration = load_split(dataset, calibration_split or "train", data_dir) if int8 and dataset else None
    evaluation = load_split(dataset, evaluate_split, data_dir, max_samples) if evaluate_split and dataset else None
    segmenter, processor = load_segmenter(model)
    if evaluation is not None and dataset in BENCHMARKS:
        check_classes(segmenter, BENCHMARKS[dataset].classes, dataset)
    options: dict[str, Any] = {"upsample": upsample, "argmax": argmax, "size": size, "opset": opset}
    print("tracing the graph, and comparing it with PyTorch ...", flush=True)
    rows = export_onnx(segmenter, processor, files["ONNX"], overwrite=overwrite, **options)
    print(f"PyTorch and onnxruntime, same input:\n{format_parity(rows)}\nwritten: {files['ONNX']}", flush=True)
    found: dict[str, Any] = {"model": model, **options, "parity": [asdict(row) for row in rows]}
    if calibration is not None:
        limits: dict[str, Any] = {"samples": calibration_samples or 32, "overwrite": overwrite}
        names = quantise_onnx(files["ONNX"], files["ONNX int8"], calibration, processor, **limits)
        print(f"written: {files['ONNX int8']}, calibrated on {len(names)} images of {dataset}", flush=True)
        found["calibration"] = {"dataset": dataset, "split": calibration_split or "train", "images": names}
    if int8 or evaluation is not None:
        compared = compare_runtimes(segmenter, files, processor, evaluation)
        print(format_runtimes(compared))
        print(f"{machine_name()}, one image at a time, onnxruntime {version('onnxruntime')}")
        found["runtimes"] = [asdict(row) for row in compared]
        if evaluation is not None:
            found["evaluated_on"] = {"dataset": dataset, "split": evaluate_split, "num_images": len(evaluation)}
    versions = {**library_versions(), **{name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}}
    found |= {"date": date.today().isoformat(), "machine": machine_name(), "versions": versions}
    with written_whole(report) as part:
        part.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {report}")
