"""Export to OpenVINO and to ExecuTorch (phones and boards), checked against PyTorch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..atomic_io import atomic_write
from ..inference.graphs import METADATA_KEY, ONNX_PACKAGES, ExecuTorchSegmenter, OpenVinoSegmenter, check_packages
from .onnx import TOLERANCE_FP16, Graph, ParityRow, check_output, tracing, write_onnx

logger = logging.getLogger(__name__)


def export_openvino(
    model: nn.Module, processor: Any, output: str | Path, *, fp16: bool = False, overwrite: bool = False, **options: Any
) -> list[ParityRow]:
    """Export a model to `.xml` and its weights to `.bin`, checked against PyTorch before they get their final names.

    The graph is converted from that of `export_onnx`, with the same inputs, outputs, arguments, description (as
    `rt_info`) and errors. `fp16` only halves the weights in the file; OpenVINO chooses the device's compute precision.
    """
    check_packages((*ONNX_PACKAGES, "openvino"), "openvino")
    import openvino

    output = check_output(output, overwrite, ".xml")
    weights = check_output(output.with_suffix(".bin"), overwrite, ".bin")
    with TemporaryDirectory(dir=output.parent) as folder:
        onnx, part = Path(folder, "graph.onnx"), Path(folder, "graph.xml")
        graph = write_onnx(model, processor, onnx, **options)
        converted = openvino.convert_model(onnx)
        converted.set_rt_info(graph.description, [METADATA_KEY])
        openvino.save_model(converted, part, compress_to_fp16=fp16)
        graph.tolerance = TOLERANCE_FP16 if fp16 else graph.tolerance
        rows = graph.check(OpenVinoSegmenter(part).run)
        os.replace(part.with_suffix(".bin"), weights)
        os.replace(part, output)
    return rows


def export_executorch(
    model: nn.Module,
    processor: Any,
    output: str | Path,
    *,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> list[ParityRow]:
    """Export a model to one `.pte` file for XNNPACK (CPUs), checked against PyTorch before it gets its final name.

    Its method `forward` has the inputs and outputs of `export_onnx`'s graph, with batch size 1; the method `afdcd`
    returns the description. Arguments and errors are those of `export_onnx`, except that `size` is required, since
    ExecuTorch plans memory ahead, and that there is no `opset`.
    """
    check_packages(["executorch"], "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    output = check_output(output, overwrite, ".pte")
    if size is None:
        raise ValueError("ExecuTorch plans memory ahead, for one image size: give --size HEIGHT WIDTH.")
    graph = Graph(model, processor, size=size, **options)
    logger.info("tracing the graph ...")
    traced, example = graph.for_tracing()
    with tracing("ExecuTorch"):
        exported = torch.export.export(traced, (example[:1],))
        logger.info("lowering the graph to XNNPACK ...")
        parts: dict[str, Any] = {"partitioner": [XnnpackPartitioner()]}
        lowered = to_edge_transform_and_lower(exported, **parts, constant_methods={METADATA_KEY: graph.description})
        program = lowered.to_executorch()
    with atomic_write(output) as part:
        part.write_bytes(program.buffer)
        return graph.check(ExecuTorchSegmenter(part).run)
