"""A graph in 8-bit integers, with ranges calibrated on pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..atomic_io import written_whole
from ..inference.onnx_segmenter import OnnxSegmenter
from ..inference.segment import make_sample
from .onnx import attach_facts, check_output

# What is worth integers. Left in float: stretching and arg max, so that the scores keep their fineness.
_QUANTISED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Concat", "Relu", "Clip", "MaxPool")


def quantise_onnx(
    graph: str | Path,
    output: str | Path,
    dataset: Sequence[Mapping[str, Any]],
    processor,
    *,
    samples: int = 32,
    overwrite: bool = False,
) -> list[str]:
    """Write the int8 version of an exported graph.

    Static quantisation: weights are signed 8-bit with a scale per output channel, activations unsigned 8-bit, with the
    smallest and largest value seen on the calibration pictures as their range. Quantisation is written as pairs of
    QuantizeLinear and DequantizeLinear, which runtimes fuse into integer kernels. Products of two activations
    (attention) and everything after the classifier stay in float32.

    Args:
        graph: file that `export_onnx` wrote.
        output: file to write, named `.onnx`.
        dataset: indexable, with PIL images in `image`; labels are not looked at. Take pictures of the training split.
        processor: image processor of the network.
        samples: how many of them, spread evenly over the dataset.
        overwrite: replace an existing file.

    Returns:
        The names of the pictures used, in order.

    Raises:
        ValueError: an empty dataset, fewer than one sample, a picture smaller than a graph of fixed size, or a graph
            that is no exported one.
        FileExistsError: the file exists, and `overwrite` is off.
    """
    output = check_output(output, overwrite)
    segmenter = OnnxSegmenter(graph)
    chosen = calibration_indices(len(dataset), samples)
    pictures = CalibrationPictures(dataset, chosen, processor, segmenter.facts["size"])
    with written_whole(output) as part, TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        _prepare(Path(graph), prepared)
        _quantise(prepared, part, pictures)
        _describe(part, segmenter.facts)
        OnnxSegmenter(part)  # the runtime takes it
    return pictures.names


def calibration_indices(available: int, samples: int) -> list[int]:
    """Positions spread evenly over a dataset: the first so many of a video would be one scene.

    Raises:
        ValueError: nothing to take, or less than one sample asked for.
    """
    if available < 1 or samples < 1:
        raise ValueError(f"Calibration needs a picture or more: {samples} of {available} were asked for.")
    return [index * available // min(samples, available) for index in range(min(samples, available))]


class CalibrationPictures:
    """Processed pictures one by one, in the form in which onnxruntime asks for them (`get_next`).

    Args:
        dataset: with PIL images in `image`, and perhaps a `name`.
        indices: which of them.
        processor: image processor of the network.
        size: height and width of the centre to cut out, for a graph of fixed size.

    Attributes:
        names: of the pictures given out so far.
    """

    def __init__(self, dataset: Sequence[Mapping[str, Any]], indices: Sequence[int], processor, size=None):
        self.names: list[str] = []
        self._arrays = self._each(dataset, indices, processor, size)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The graph's next input, None at the end."""
        array = next(self._arrays, None)
        return None if array is None else {"pixel_values": array}

    def _each(self, dataset, indices: Sequence[int], processor, size) -> Iterator[np.ndarray]:
        for index in indices:
            row = dataset[index]
            name = row.get("name") or f"image {index}"
            pixel_values = make_sample(processor, row["image"], name).pixel_values.float().numpy()
            self.names.append(name)
            yield np.ascontiguousarray(_centre(pixel_values, size, name)[None])


def _centre(pixel_values: np.ndarray, size: Sequence[int] | None, name: str) -> np.ndarray:
    if size is None:
        return pixel_values
    given = pixel_values.shape[-2:]
    if given[0] < size[0] or given[1] < size[1]:
        raise ValueError(
            f"{name} has {given[0]}x{given[1]} pixels, less than the {size[0]}x{size[1]} that the graph is fixed to; "
            "calibrate on larger pictures, or export with a smaller --size."
        )
    top, left = ((side - wanted) // 2 for side, wanted in zip(given, size, strict=True))
    return pixel_values[:, top : top + size[0], left : left + size[1]]


def _prepare(graph: Path, output: Path) -> None:
    """Fold normalisation into convolutions and infer shapes, as quantisation wants it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(graph), str(output), skip_symbolic_shape=True)


def _quantise(graph: Path, output: Path, pictures: CalibrationPictures) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self):
            return pictures.get_next()

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # onnxruntime's advice to do what has been done; it logs through the root
    try:
        quantize_static(
            str(graph),
            str(output),
            Reader(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=_left_in_float(onnx.load(graph).graph),
        )
    finally:
        root.setLevel(level)


def _left_in_float(graph) -> list[str]:
    """Nodes whose inputs are no pictures' features: products of two activations, and arithmetic on shapes."""
    weights = {tensor.name for tensor in graph.initializer}
    weights |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    return [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm") and not weights & set(node.input)]


def _describe(graph: Path, facts: dict[str, Any]) -> None:
    import onnx

    proto = onnx.load(graph)
    attach_facts(proto, facts)
    onnx.save(proto, graph)
