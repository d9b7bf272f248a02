"""A model as an OpenVINO graph, converted from the ONNX graph and checked against PyTorch like it."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ..inference.graphs import METADATA_KEY, ONNX_PACKAGES, OpenVinoSegmenter, check_packages
from .onnx import TOLERANCE_FP16, ParityRow, check_output, write_onnx


def export_openvino(
    model: nn.Module,
    processor: Any,
    output: str | Path,
    *,
    fp16: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> list[ParityRow]:
    """Write a model as `.xml` with its weights in `.bin` beside it, held against PyTorch before they get their names.

    Inputs, outputs, arguments, the description (as `rt_info`) and errors are those of `export_onnx`; `fp16` halves the
    weights in the file only, and OpenVINO computes in what suits the device.
    """
    check_packages(ONNX_PACKAGES, "export")
    check_packages(("openvino",), "openvino")
    import openvino

    output = check_output(output, overwrite, ".xml")
    weights = check_output(output.with_suffix(".bin"), overwrite, ".bin")
    with TemporaryDirectory(dir=output.parent) as folder:
        onnx, part = Path(folder, "graph.onnx"), Path(folder, "graph.xml")
        graph = write_onnx(model, processor, onnx, **options)
        converted = openvino.convert_model(onnx)
        converted.set_rt_info(graph.description, [METADATA_KEY])
        openvino.save_model(converted, part, compress_to_fp16=fp16)
        if fp16:
            graph.tolerance = TOLERANCE_FP16
        rows = graph.check(OpenVinoSegmenter(part).run)
        os.replace(part.with_suffix(".bin"), weights)
        os.replace(part, output)
    return rows
