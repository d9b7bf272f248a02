"""Quantisation of a graph to int8, with ranges calibrated on images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..atomic_io import atomic_write
from ..data.loading import evenly_spaced
from ..inference.graphs import OnnxSegmenter
from ..inference.segment import make_sample
from .onnx import attach_facts, check_output, quiet

# Operators to quantise. Upsampling and argmax stay in float, to keep the precision of the scores.
_QUANTISED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Concat", "Relu", "Clip", "MaxPool")


def quantise_onnx(
    graph: str | Path,
    output: str | Path,
    dataset: Sequence[Mapping[str, Any]],
    processor: Any,
    *,
    samples: int = 32,
    float_ends: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Write the int8 version of an exported graph.

    Static quantisation: weights are signed 8-bit with a scale per output channel; activations are unsigned 8-bit, and
    their range is the minimum and maximum on the calibration images. Quantisation is written as pairs of
    QuantizeLinear and DequantizeLinear, which runtimes fuse into integer kernels. Products of two activations
    (attention) and everything after the classifier stay in float32.

    Args:
        graph: file written by `export_onnx`.
        output: file to write, ending in `.onnx`.
        dataset: indexable, with PIL images in `image`; use the training split.
        processor: image processor of the model.
        samples: number of images, spread evenly over the dataset, since the first ones of a video would be one scene.
        float_ends: leave the first and last layers (the last is the classifier) in float32.
        overwrite: replace an existing file.

    Returns:
        The names of the images used, in order.

    Raises:
        ValueError: no images, an image smaller than a graph's fixed size, or a graph that was not exported by us.
        OSError: the file exists and `overwrite` is off, or it cannot be written.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    output = check_output(output, overwrite)
    facts = OnnxSegmenter(graph).facts
    if len(dataset) < 1 or samples < 1:
        raise ValueError(f"Calibration needs at least one image; {samples} of {len(dataset)} were requested.")
    indices = evenly_spaced(len(dataset), samples)
    names: list[str] = []
    inputs = calibration_inputs(dataset, indices, processor, facts["size"], names)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    with atomic_write(output) as part, TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")  # with batch norm folded into convolutions, and inferred shapes
        quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
        with quiet():  # onnxruntime would advise the preprocessing that was just done
            quantize_static(
                str(prepared),
                str(part),
                Reader(),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=_nodes_in_float(onnx.load(prepared).graph, float_ends),
            )
        proto = onnx.load(part)
        attach_facts(proto, json.dumps(facts))
        onnx.save(proto, part)
        OnnxSegmenter(part)  # raises unless the runtime can load it
    return names


def calibration_inputs(
    dataset: Sequence[Mapping[str, Any]], indices: Sequence[int], processor: Any, size: Sequence[int] | None,
    names: list[str],
) -> Iterator[dict[str, np.ndarray]]:  # fmt: skip
    """Yield the graph's inputs, centre-cropped to `size` if it is fixed; append the images' names to `names`."""
    for index in indices:
        row = dataset[index]
        names.append(row.get("name") or f"image {index}")
        pixels = make_sample(processor, row["image"], names[-1]).pixel_values.float().numpy()
        height, width = pixels.shape[-2:]
        rows, columns = size or (height, width)
        if height < rows or width < columns:
            what = f"{names[-1]} has {height}x{width} pixels, fewer than the graph's {rows}x{columns}"
            raise ValueError(f"{what}; calibrate on larger images, or export with a smaller --size.")
        top, left = (height - rows) // 2, (width - columns) // 2
        yield {"pixel_values": np.ascontiguousarray(pixels[None, :, top : top + rows, left : left + columns])}


def _nodes_in_float(graph: Any, ends: bool) -> list[str]:
    """Name the nodes to keep in float: products of two activations, arithmetic on shapes, and optionally the ends."""
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]
    weighted = [node.name for node in layers if weights & set(node.input)]
    return [node.name for node in layers if node.name not in weighted] + ([weighted[0], weighted[-1]] if ends else [])
