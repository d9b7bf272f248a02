"""`afdcd export` of graphs: the graph, its int8 version, measurements, and a report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..atomic_io import refuse_existing
from ..cost.machine import library_versions, machine_name
from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.loading import evenly_spaced, load_split
from ..evaluation.results import dataset_context
from ..inference.graphs import ONNX_PACKAGES, check_packages, load_segmenter
from ..structured_files import write_json
from .onnx import ParityRow, check_output, export_onnx, format_parity, processor_settings
from .other_formats import export_executorch, export_openvino
from .quantisation import quantise_onnx
from .runtimes import compare_runtimes, format_runtimes

logger = logging.getLogger(__name__)

_EVALUATED_ONLY = ("list_file", "max_samples")  # options of `load_split` that calibration does not use

# format -> title, file suffix, export function, required packages, the extra that installs them
GRAPH_FORMATS: dict[str, tuple[str, str, Callable[..., list[ParityRow]], tuple[str, ...], str]] = {
    "onnx": ("ONNX", ".onnx", export_onnx, ONNX_PACKAGES, "export"),
    "openvino": ("OpenVINO", ".xml", export_openvino, (*ONNX_PACKAGES, "openvino"), "openvino"),
    "executorch": ("ExecuTorch", ".pte", export_executorch, ("executorch",), "executorch"),
}


def export_saved_graph(
    model: str,
    output: Path,
    format: str = "onnx",
    *,
    choice: Mapping[str, Any],
    upsample: bool = False,
    argmax: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    fp16: bool = False,
    with_preprocessing: bool = False,
    int8: bool = False,
    calibration_split: str | None = None,
    calibration_samples: int | None = None,
    float_ends: bool = False,
    overwrite: bool = False,
) -> None:
    """Export a saved model, print what was measured, and write it to `<name>_export.json` beside the graph.

    The arguments are the command's options, described in its help; `choice` holds those of `load_split`, whose name
    and split are `--calibration_dataset` and `--evaluate_split`, or empty.

    Raises:
        ValueError: options exclude each other, or the export fails.
        OSError: a file exists or cannot be written; raised before anything is computed.
    """
    title, suffix, write, packages, extra = GRAPH_FORMATS[format]
    title += " fp16" if fp16 else ""
    dataset, evaluate_split = choice["name"], choice["split"]
    few = [f"--{name}" for name in choice if name in _EVALUATED_ONLY]
    read = [f"--{name}" for name in choice if name not in ("name", "split", *_EVALUATED_ONLY)]
    needs_data = [f"--{name}" for name, given in (("int8", int8), ("evaluate_split", evaluate_split)) if given]
    for applies, message in (
        (needs_data and not dataset, f"{'/'.join(needs_data)} needs images: give --calibration_dataset."),
        (dataset and not needs_data, "--calibration_dataset is for --int8 or --evaluate_split: give one of them."),
        (int8 and format != "onnx", f"--int8 is for --format onnx, not {format}."),
        (format == "executorch" and not size, "ExecuTorch plans memory for one image size: give --size."),
        (format == "executorch" and opset, "--opset is for ONNX and OpenVINO: leave it out."),
        (int8 and fp16, "--int8 starts from full precision: leave out --fp16."),
        (int8 and with_preprocessing, "--int8 is for graphs without preprocessing: leave out --with_preprocessing."),
        (read and not dataset, f"{'/'.join(read)} needs --calibration_dataset, the name of the dataset to read."),
        (calibration_split and not int8, "--calibration_split is for --int8: add it."),
        (calibration_samples is not None and not int8, "--calibration_samples is for --int8: add it."),
        (float_ends and not int8, "--float_ends is for --int8: add it."),
        (few and not evaluate_split, f"{'/'.join(few)} limits --evaluate_split: give the split."),
        (evaluate_split and argmax and not upsample, "Label maps are scored at the image's size: add --upsample."),
    ):
        if applies:
            raise ValueError(message)
    files = {title: check_output(output, overwrite, suffix)}
    check_packages(packages, extra)
    if int8:
        files["ONNX int8"] = check_output(output.with_name(f"{output.stem}_int8.onnx"), overwrite)
    report = output.with_name(f"{output.stem}_export.json")
    refuse_existing([report], overwrite, "--output")
    processor_file = output.with_name("preprocessor_config.json")
    # loaded first, so that missing data is reported before the long export
    whole = {name: value for name, value in choice.items() if name not in _EVALUATED_ONLY}
    whole["split"] = calibration_split or "train"
    calibration = load_split(**whole) if int8 else None
    evaluation = load_split(**choice) if evaluate_split else None
    segmenter, processor = load_segmenter(model)
    described = processor_settings(processor)
    known = json.loads(processor_file.read_text()) if processor_file.exists() else None
    is_known = known is not None and {**known, "auto_map": None} == {**described, "auto_map": None}
    if known is not None and not is_known and not overwrite:
        raise FileExistsError(f"{processor_file} is another model's; give an --output elsewhere, or --overwrite.")
    if evaluation is not None and dataset in BENCHMARKS:
        check_classes(segmenter, BENCHMARKS[dataset].classes, dataset)
    options: dict[str, Any] = {"upsample": upsample, "argmax": argmax, "size": size, "fp16": fp16}
    options |= {"with_preprocessing": with_preprocessing, **({"opset": opset} if opset else {})}
    rows = write(segmenter, processor, output, overwrite=overwrite, **options)
    print(f"PyTorch and {title}, same input:\n{format_parity(rows)}\nwritten: {output}", flush=True)
    if not is_known:
        write_json(processor_file, described)
    found: dict[str, Any] = {"model": model, "format": format, **options, "parity": [asdict(row) for row in rows]}
    if calibration is not None:
        logger.info("calibrating int8 ...")
        limits: dict[str, Any] = {"samples": calibration_samples or 32, "float_ends": float_ends}
        names = quantise_onnx(files["ONNX"], files["ONNX int8"], calibration, processor, overwrite=overwrite, **limits)
        print(f"written: {files['ONNX int8']}, calibrated on {len(names)} images of {dataset}", flush=True)
        found["calibration"] = {**dataset_context(**whole), "images": names, "float_ends": float_ends}
    if int8 or evaluation is not None:
        logger.info("measuring ...")
        data: Any = calibration if evaluation is None else evaluation
        images = [data[index]["image"] for index in evenly_spaced(len(data), 32)]
        compared = compare_runtimes(segmenter, files, processor, evaluation, images=images)
        print(format_runtimes(compared))
        print(f"{machine_name()}, one image at a time; other labels: compared with PyTorch on {len(images)} images")
        found["runtimes"] = [asdict(row) for row in compared]
        if evaluation is not None:
            found["evaluated_on"] = {**dataset_context(**choice), "num_images": len(evaluation)}
    versions = {**library_versions(), **{name: version(name) for name in packages}}
    found |= {"date": date.today().isoformat(), "machine": machine_name(), "versions": versions}
    write_json(report, found)
    print(f"written: {report}")
