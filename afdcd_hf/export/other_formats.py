"""A model as an OpenVINO graph or as an ExecuTorch program (phones and boards), checked against PyTorch."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..atomic_io import written_whole
from ..inference.graphs import METADATA_KEY, ONNX_PACKAGES, ExecuTorchSegmenter, OpenVinoSegmenter, check_packages
from .onnx import TOLERANCE_FP16, Graph, ParityRow, check_output, tracing, write_onnx

logger = logging.getLogger(__name__)


def export_openvino(
    model: nn.Module, processor: Any, output: str | Path, *, fp16: bool = False, overwrite: bool = False, **options: Any
) -> list[ParityRow]:
    """Write a model as `.xml` with its weights in `.bin` beside it, held against PyTorch before they get their names.

    Inputs, outputs, arguments, the description (as `rt_info`) and errors are those of `export_onnx`, from whose graph
    it is converted; `fp16` halves the weights in the file only, and OpenVINO computes in what suits the device.
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
    """Write a model as one `.pte` file for XNNPACK, the CPU, held against PyTorch before it gets its name.

    Its method `forward` takes and gives one image at a time, otherwise what the graph of `export_onnx` takes and
    gives; the method `afdcd` gives the description. Arguments and errors are those of `export_onnx`, except that `size`
    is needed, as ExecuTorch plans memory ahead, and that there is no `opset`.
    """
    check_packages(["executorch"], "executorch")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    output = check_output(output, overwrite, ".pte")
    if size is None:
        raise ValueError("ExecuTorch plans memory ahead, for images of one size: give --size HEIGHT WIDTH.")
    graph = Graph(model, processor, size=size, **options)
    logger.info("tracing the graph ...")
    traced, example = graph.for_tracing()
    with tracing("ExecuTorch"):
        exported = torch.export.export(traced, (example[:1],))
        logger.info("lowering it to XNNPACK ...")
        parts: dict[str, Any] = {"partitioner": [XnnpackPartitioner()]}
        lowered = to_edge_transform_and_lower(exported, **parts, constant_methods={METADATA_KEY: graph.description})
        program = lowered.to_executorch()
    with written_whole(output) as part:
        part.write_bytes(program.buffer)
        return graph.check(ExecuTorchSegmenter(part).run)
