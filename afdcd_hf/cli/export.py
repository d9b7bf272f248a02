"""`afdcd export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import hide_loading_bars


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the command of this file."""
    command = commands.add_parser("export", help="write a saved model as an ONNX graph, or its backbone for timm")
    command.add_argument("model", help="folder or Hub id")
    command.add_argument("--format", required=True, choices=("onnx", "timm"))
    command.add_argument("--output", required=True, type=Path, help="file.onnx to write; for timm, a new folder")
    command.add_argument("--overwrite", action="store_true", help="replace files of an earlier export to ONNX")
    command.set_defaults(run=_export)

    graph = command.add_argument_group("ONNX")
    graph.add_argument("--upsample", action="store_true", help="stretch scores to the image's size within the graph")
    graph.add_argument("--argmax", action="store_true", help="give the label map instead of scores")
    graph.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="fix the image's size (default: any size)")
    graph.add_argument("--opset", type=int, help="version of ONNX's operators (default: the exporter's choice)")

    numbers = command.add_argument_group("int8 and measurements")
    numbers.add_argument("--int8", action="store_true", help="also write file_int8.onnx, and compare size and speed")
    numbers.add_argument("--calibration-dataset", dest="dataset", help="benchmark, folder or Hub id; also evaluated on")
    numbers.add_argument("--data-dir", help="folder of the benchmark's files")
    numbers.add_argument("--calibration-split", help="default train")
    numbers.add_argument("--calibration-samples", type=int, help="images, spread evenly (default 32)")
    numbers.add_argument(
        "--evaluate-split", metavar="SPLIT", help="measure mean IoU of PyTorch and graphs on this split"
    )
    numbers.add_argument("--max-samples", type=int, help="only on its first so many images")


def _export(args: argparse.Namespace) -> None:
    hide_loading_bars()
    of_onnx = ("upsample", "argmax", "size", "opset", "int8", "dataset", "data_dir", "calibration_split")
    of_onnx += ("calibration_samples", "evaluate_split", "max_samples", "overwrite")
    options = {name: value for name in of_onnx if (value := getattr(args, name)) not in (None, False)}
    if args.format == "onnx":
        from ..export.command import export_saved_onnx

        export_saved_onnx(args.model, args.output, **options)
        return
    if options:
        raise ValueError(
            f"--{next(iter(options)).replace('_', '-')} is not for --format timm, which only needs --output."
        )
    from ..export.timm_backbone import export_timm_backbone
    from ..inference.onnx_segmenter import load_segmenter

    folder, lacking = export_timm_backbone(*load_segmenter(args.model), args.output)
    print(f'written: {folder}; timm.create_model("local-dir:{folder}", pretrained=True, features_only=True)')
    if lacking:
        print(f"layers of the plain timm model that a segmenter does not have: {', '.join(lacking)}")
