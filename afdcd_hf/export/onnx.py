"""A model as an ONNX graph that carries its classes and image processor, checked against PyTorch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic_io import check_can_write, written_whole
from ..inference.onnx_segmenter import METADATA_KEY, OnnxSegmenter, check_packages
from ..model_utils import align_corners_of
from ..models.modeling_afdcd import upsample_logits
from .parity import ParityRow, check_parity
from .pooling import PoolingByProducts

# batch, height, width: sides that strides divide and sides that they do not, wide and high, one image and several
PARITY_SHAPES = ((1, 128, 128), (2, 97, 129), (1, 360, 480), (3, 130, 66), (1, 256, 512))


class Graph(nn.Module):
    """What is exported: the model, then perhaps stretching to the input's size and the choice of the best class."""

    def __init__(self, model: nn.Module, upsample: bool, argmax: bool):
        super().__init__()
        self.model = model
        self.upsample = upsample
        self.argmax = argmax

    def scores(self, pixel_values: Tensor) -> Tensor:
        """Class scores `(B, K, h, w)`."""
        logits = self.model(pixel_values=pixel_values).logits
        if not self.upsample:
            return logits
        return upsample_logits(logits, (pixel_values.shape[-2], pixel_values.shape[-1]), align_corners_of(self.model))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The graph's output."""
        with PoolingByProducts():
            scores = self.scores(pixel_values)
        return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32) if self.argmax else scores


def export_onnx(
    model: nn.Module,
    processor: Any,
    output: str | Path,
    *,
    upsample: bool = False,
    argmax: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> list[ParityRow]:
    """Write a model as one `.onnx` file, and hold it against PyTorch in onnxruntime before it gets its name.

    The graph's input is `pixel_values`, `(batch, 3, height, width)` float32 as the image processor gives them; its
    output is `logits`, `(batch, K, h, w)` float32, or `labels`, `(batch, h, w)` uint8 (int32 beyond 256 classes).
    Metadata under the key "afdcd" holds, as JSON, the classes, the image processor, and how logits are stretched.

    Args:
        model: segmenter with a `config`, called as `model(pixel_values=...).logits`; it is left as it is.
        processor: its image processor.
        output: file to write, named `.onnx`.
        upsample: stretch logits to the input's size within the graph.
        argmax: give class ids instead of scores.
        size: height and width that the graph is fixed to; None for a graph that takes every size. The number of
            images is free either way.
        opset: version of ONNX's operators; None for the exporter's own choice.
        overwrite: replace an existing file.

    Returns:
        The parity found: a row per input size tried.

    Raises:
        ValueError: another file name, a size or opset that cannot be, a model that cannot be traced (for every size),
            or one whose graph does not compute the same.
        FileExistsError: the file exists, and `overwrite` is off.
    """
    check_packages()
    output = check_output(output, overwrite)
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size={size!r}: expected height and width, two positive whole numbers.")
    graph = Graph(copy.deepcopy(model).cpu().float().eval(), upsample, argmax)
    facts = _facts(model, processor, upsample, argmax, size)
    with written_whole(output) as part:
        proto = _trace(graph, size, opset)
        _name_axes(proto.graph, facts)
        attach_facts(proto, facts)
        part.write_bytes(proto.SerializeToString())
        shapes = PARITY_SHAPES if size is None else [(batch, *size) for batch in (1, 2, 3)]
        return check_parity(graph.scores, OnnxSegmenter(part).run, processor, shapes, labels=argmax)


def check_output(output: str | Path, overwrite: bool = False) -> Path:
    """Look before a long export whether its file can be written.

    Raises:
        ValueError: it is not named `.onnx`.
        OSError: it exists and `overwrite` is off, or nothing can be written there.
    """
    output = Path(output)
    if output.suffix != ".onnx":
        raise ValueError(f"An ONNX graph is one file: give --output a name that ends in .onnx, not {str(output)!r}.")
    if output.exists() and (not overwrite or output.is_dir()):
        raise FileExistsError(f"{output} exists; give another --output, or --overwrite.")
    check_can_write(output)
    return output


def attach_facts(proto: Any, facts: dict[str, Any]) -> None:
    """Write the description that `OnnxSegmenter` reads into a graph's metadata, in place of what is there."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=json.dumps(facts))


def _facts(model: Any, processor: Any, upsample: bool, argmax: bool, size: Sequence[int] | None) -> dict[str, Any]:
    described = json.loads(processor.to_json_string())
    described.pop("auto_map", None)  # names files that do not lie beside a graph
    return {
        "id2label": {str(index): name for index, name in model.config.id2label.items()},
        "align_corners": align_corners_of(model),
        "ignore_index": getattr(model.config, "semantic_loss_ignore_index", 255),
        "output": "labels" if argmax else "logits",
        "upsample": upsample,
        "size": None if size is None else list(size),
        "processor": described,
    }


def _trace(graph: Graph, size: tuple[int, int] | None, opset: int | None) -> Any:
    """The graph as an ONNX proto; batch size and, without `size`, height and width are left open."""
    # odd sides, and different ones, so that nothing about them is taken for a rule
    example = torch.randn(2, 3, *(size or (97, 129)))
    free = torch.export.Dim.DYNAMIC
    axes = {0: free} if size is not None else {0: free, 2: free, 3: free}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                (),
                kwargs={"pixel_values": example},
                input_names=["pixel_values"],
                output_names=["labels" if graph.argmax else "logits"],
                dynamic_shapes={"pixel_values": axes},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:  # torch's OnnxExporterError too
        raise ValueError(_refusal(error, size)) from error
    assert program is not None  # with dynamo=True
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if not entry.domain)
    if opset not in (None, written):
        raise ValueError(f"torch wrote opset {written}, not the {opset} that was asked for; leave --opset out.")
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's news of its inner workings; what goes wrong is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within the exporter
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _refusal(error: Exception, size: tuple[int, int] | None) -> str:
    reason = " ".join(str(error.__cause__ or error).split())[:300]
    hint = "" if size else " Some models can only be exported for one size: try --size HEIGHT WIDTH."
    return f"torch cannot export this model to ONNX.{hint} It says: {reason}"


def _name_axes(graph: Any, facts: dict[str, Any]) -> None:
    """Readable names for the open axes, in place of formulae in symbols of torch's."""
    sides = ("height", "width") if facts["upsample"] else ("map_height", "map_width")
    names: dict[str, tuple[str | None, ...]] = {graph.input[0].name: ("batch", None, "height", "width")}
    names[graph.output[0].name] = ("batch", *sides) if facts["output"] == "labels" else ("batch", None, *sides)
    for value in (*graph.input, *graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if dim.dim_param:
                dim.dim_param = name
    del graph.value_info[:]  # the shapes within, in the same formulae: runtimes infer them anew
