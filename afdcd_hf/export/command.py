"""`afdcd export`: a saved model for another runtime."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor

from ..atomic_io import written_whole
from ..data.benchmarks import BENCHMARKS
from ..data.checks import check_classes
from ..data.loading import load_split
from ..evaluation.results import library_versions, machine_name
from ..inference.onnx_segmenter import check_packages
from ..models.loading import load_model
from .comparison import compare_runtimes, format_runtimes
from .onnx import check_output, export_onnx
from .parity import format_parity
from .quantisation import quantise_onnx
from .timm_backbone import export_timm_backbone

# options that only the format "onnx" has, with the value that means "not given"
_ONNX_ONLY = {
    "upsample": False,
    "argmax": False,
    "size": None,
    "opset": None,
    "int8": False,
    "calibration_split": None,
    "calibration_samples": None,
    "dataset": None,
    "data_dir": None,
    "evaluate_split": None,
    "max_samples": None,
    "overwrite": False,
}


def export(args: argparse.Namespace) -> None:
    """Export as the command line says, and print what was found."""
    if args.format == "onnx":
        check_packages()
        _export_onnx(args)
        return
    given = [name for name, default in _ONNX_ONLY.items() if getattr(args, name) != default]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is not for --format timm, which only needs --output.")
    model, processor = load_model(args.model), AutoImageProcessor.from_pretrained(args.model)
    folder, lacking = export_timm_backbone(model, processor, args.output)
    print(f'written: {folder}; timm.create_model("local-dir:{folder}", pretrained=True, features_only=True)')
    if lacking:
        print(f"layers of the plain timm model that a segmenter does not have: {', '.join(lacking)}")


def _export_onnx(args: argparse.Namespace) -> None:
    _check_options(args)
    files = {"ONNX": check_output(args.output, args.overwrite)}
    if args.int8:
        files["ONNX int8"] = check_output(args.output.with_name(f"{args.output.stem}_int8.onnx"), args.overwrite)
    report = args.output.with_name(f"{args.output.stem}_export.json")
    if report.exists() and not args.overwrite:
        raise FileExistsError(f"{report} exists; give another --output, or --overwrite.")
    # before the long work: data that is not there is known at once
    calibration, evaluation = _datasets(args)
    model, processor = load_model(args.model), AutoImageProcessor.from_pretrained(args.model)
    if evaluation is not None and args.dataset in BENCHMARKS:
        check_classes(model, BENCHMARKS[args.dataset].classes, args.dataset)
    options = {"upsample": args.upsample, "argmax": args.argmax, "size": args.size, "opset": args.opset}
    rows = export_onnx(model, processor, files["ONNX"], overwrite=args.overwrite, **options)
    print(f"PyTorch and onnxruntime, same input:\n{format_parity(rows)}\nwritten: {files['ONNX']}")
    found: dict[str, Any] = {"model": args.model, **options, "parity": [asdict(row) for row in rows]}
    if args.int8:
        samples = 32 if args.calibration_samples is None else args.calibration_samples
        names = quantise_onnx(*files.values(), calibration, processor, samples=samples, overwrite=args.overwrite)
        print(f"written: {files['ONNX int8']}, calibrated on {len(names)} pictures of {args.dataset}")
        found |= {
            "calibration": {"dataset": args.dataset, "split": args.calibration_split or "train", "pictures": names}
        }
    if args.int8 or evaluation is not None:
        compared = compare_runtimes(model, files, processor, evaluation)
        measured_on = f"{machine_name()}, one picture at a time, onnxruntime {version('onnxruntime')}"
        print(f"{format_runtimes(compared)}\n{measured_on}")
        found |= {"runtimes": [asdict(row) for row in compared], "evaluated_on": _evaluated_on(args, evaluation)}
    _write_report(report, found)


def _check_options(args: argparse.Namespace) -> None:
    """What belongs together must be given together."""
    needs_data = [
        f"--{name}" for name, given in (("int8", args.int8), ("evaluate-split", args.evaluate_split)) if given
    ]
    if needs_data and args.dataset is None:
        raise ValueError(f"{needs_data[0]} needs pictures: give --calibration-dataset (and --data-dir).")
    if args.dataset is not None and not needs_data:
        raise ValueError(f"--calibration-dataset {args.dataset} is for --int8 or --evaluate-split: give one of them.")
    if args.data_dir is not None and args.dataset is None:
        raise ValueError("--data-dir needs --calibration-dataset, the name of what lies there.")
    for name in ("calibration_split", "calibration_samples"):
        if getattr(args, name) is not None and not args.int8:
            raise ValueError(f"--{name.replace('_', '-')} is for --int8: add it.")
    if args.max_samples is not None and not args.evaluate_split:
        raise ValueError("--max-samples limits --evaluate-split: give the split.")
    if args.evaluate_split and args.argmax and not args.upsample:
        raise ValueError("With --argmax, label maps can only be scored at the picture's size: add --upsample.")


def _datasets(args: argparse.Namespace) -> tuple[Any, Any]:
    calibration = load_split(args.dataset, args.calibration_split or "train", args.data_dir) if args.int8 else None
    if not args.evaluate_split:
        return calibration, None
    return calibration, load_split(args.dataset, args.evaluate_split, args.data_dir, args.max_samples)


def _evaluated_on(args: argparse.Namespace, evaluation) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    return {"dataset": args.dataset, "split": args.evaluate_split, "num_images": len(evaluation)}


def _write_report(path: Path, found: dict[str, Any]) -> None:
    versions = {**library_versions(), **{name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}}
    with written_whole(path) as part:
        about = {"date": date.today().isoformat(), "machine": machine_name(), "versions": versions}
        part.write_text(json.dumps({**found, **about}, indent=2) + "\n")
    print(f"written: {path}")
