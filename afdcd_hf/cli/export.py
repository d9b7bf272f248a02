"""`afdcd export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .command import add, add_command, add_size, flag, hide_loading_bars, whole

_OF_ONNX = (
    "upsample", "argmax", "size", "opset", "int8", "dataset", "data_dir", "calibration_split", "calibration_samples",
    "evaluate_split", "max_samples", "overwrite",
)  # fmt: skip


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    text = "write a saved model as an ONNX graph, or its backbone for timm"
    command = add_command(
        commands, "export", text, "MODEL --format FORMAT --output FILE [options]",
        example="afdcd export runs/mine --format onnx --output mine.onnx",
    )  # fmt: skip
    command.add_argument("model", help="folder or Hub id")
    add(command, "--format", required=True, choices=("onnx", "timm"), help="what to write")
    add(command, "--output", required=True, type=Path, help="file.onnx to write; for timm, a new folder")
    flag(command, "--overwrite", "replace files of an earlier export to ONNX")
    command.set_defaults(run=_export)

    graph = command.add_argument_group("ONNX")
    flag(graph, "--upsample", "stretch scores to the image's size within the graph")
    flag(graph, "--argmax", "give the label map instead of scores")
    add_size(graph, "--size", "fix the image's size (default: any size)")
    add(graph, "--opset", type=whole(1, 100), help="version of ONNX's operators (default: the exporter's choice)")

    numbers = command.add_argument_group("int8 and measurements")
    flag(numbers, "--int8", "also write file_int8.onnx, and compare size and speed")
    add(numbers, "--calibration_dataset", dest="dataset", help="benchmark, folder or Hub id; also evaluated on")
    add(numbers, "--data_dir", help="folder of the benchmark's files")
    add(numbers, "--calibration_split", help="default train")
    add(numbers, "--calibration_samples", type=whole(), help="images, spread evenly (default 32)")
    add(numbers, "--evaluate_split", metavar="SPLIT", help="measure mean IoU of PyTorch and graphs on this split")
    add(numbers, "--max_samples", type=whole(), help="only on its first so many images")


def _export(args: argparse.Namespace) -> None:
    hide_loading_bars()
    args.size = tuple(args.size) if args.size else None
    options = {name: value for name in _OF_ONNX if (value := getattr(args, name)) not in (None, False)}
    if args.format == "onnx":
        from ..export.command import export_saved_onnx

        export_saved_onnx(args.model, args.output, **options)
        return
    if options:
        raise ValueError(f"--{next(iter(options))} is not for --format timm, which only needs --output.")
    from ..export.timm_backbone import export_timm_backbone
    from ..inference.onnx_segmenter import load_segmenter

    folder, lacking = export_timm_backbone(*load_segmenter(args.model), args.output)
    print(f'written: {folder}; timm.create_model("local-dir:{folder}", pretrained=True, features_only=True)')
    if lacking:
        print(f"layers of the plain timm model that a segmenter does not have: {', '.join(lacking)}")
