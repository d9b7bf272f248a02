"""A model as an ExecuTorch program for phones and boards, checked against PyTorch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic_io import written_whole
from ..inference.graphs import METADATA_KEY, ExecuTorchSegmenter, check_packages
from .onnx import Graph, ParityRow, check_output, tracing

logger = logging.getLogger(__name__)


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
