"""Export of a model to an ONNX graph that contains its classes and image processor, checked against PyTorch."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..atomic_io import atomic_write, check_can_write, refuse_existing
from ..data.transforms import run_processor
from ..inference.graphs import METADATA_KEY, ONNX_PACKAGES, OnnxSegmenter, check_packages
from ..model_utils import align_corners_of, dtype_of, ignore_index_of
from ..models.loading import FLIPS, is_bgr, whole_image
from ..models.modeling_afdcd import upsample_logits

# (batch, height, width): sides divisible by the strides or not, landscape and portrait, one image and several
PARITY_SHAPES = ((1, 128, 128), (2, 97, 129), (1, 360, 480), (3, 130, 66), (1, 256, 512))
# relative to the largest score; float32 sums of some thousand products in another order differ by up to about 1e-5
TOLERANCE = 1e-4
TOLERANCE_FP16 = 2e-2  # half precision rounds to 5e-4 in every layer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ParityRow:
    """Model and graph compared on one input."""

    batch: int  # of the input
    height: int
    width: int
    # largest absolute difference of a score; for label maps, the largest amount by which the score of the graph's label
    # is below the pixel's best score
    difference: float
    largest_score: float  # absolute, of the model; the scale for `difference`
    other_labels: float  # share of the pixels with a different best class


def export_onnx(
    model: nn.Module,
    processor: Any,
    output: str | Path,
    *,
    upsample: bool = False,
    argmax: bool = False,
    size: tuple[int, int] | None = None,
    opset: int | None = None,
    fp16: bool = False,
    with_preprocessing: bool = False,
    overwrite: bool = False,
) -> list[ParityRow]:
    """Export a model to one `.onnx` file, checked against PyTorch in onnxruntime before it gets its final name.

    The graph's input is `pixel_values`, `(batch, 3, height, width)` float32 as the image processor returns it; its
    output is `logits`, `(batch, K, h, w)` float32, or `labels`, `(batch, h, w)` uint8 (int32 beyond 256 classes).
    Metadata under the key "afdcd" has, as JSON, the classes, the image processor, and how logits are upsampled.

    Args:
        model: segmenter with a `config`, called as `model(pixel_values=...).logits`; not modified.
        processor: its image processor.
        output: file to write, ending in `.onnx`.
        upsample: upsample the logits to the input's size within the graph.
        argmax: output class ids instead of scores.
        size: fixed height and width of the graph's input; None for a graph that accepts any size. The batch size is
            free either way.
        opset: ONNX operator set version; None for the exporter's choice.
        fp16: weights and layers in half precision; input, upsampling and output stay in float32.
        with_preprocessing: do the image processor's work, except resizing, within the graph. Its input is then
            `image`, `(batch, height, width, 3)` uint8 RGB.
        overwrite: replace an existing file.

    Returns:
        The parity check's result: a row per input size.

    Raises:
        ValueError: a wrong file suffix, an impossible size or opset, a model that cannot be traced (for all sizes),
            or whose graph computes different scores.
        FileExistsError: the file exists, and `overwrite` is off.
    """
    check_packages(ONNX_PACKAGES, "export")
    output = check_output(output, overwrite)
    options: dict[str, Any] = {"upsample": upsample, "argmax": argmax, "size": size, "fp16": fp16}
    with atomic_write(output) as part:
        graph = write_onnx(model, processor, part, opset, with_preprocessing=with_preprocessing, **options)
        return graph.check(OnnxSegmenter(part).run)


def write_onnx(model: nn.Module, processor: Any, path: Path, opset: int | None = None, **options: Any) -> Graph:
    """Write the graph and return it for checking; arguments are those of `export_onnx`."""
    graph = Graph(model, processor, **options)
    logger.info("tracing the graph ...")
    proto = _trace(graph, opset)
    _name_axes(proto.graph, graph)
    attach_facts(proto, graph.description)
    path.write_bytes(proto.SerializeToString())
    return graph


def check_output(output: str | Path, overwrite: bool = False, suffix: str = ".onnx") -> Path:
    """Check a file name before a long export: ValueError for a wrong suffix, OSError if it cannot be written."""
    output = Path(output)
    if output.suffix != suffix:
        raise ValueError(f"A graph is a file: give --output a name that ends in {suffix}, not {str(output)!r}.")
    refuse_existing([output], overwrite and not output.is_dir(), "--output")
    check_can_write(output)
    return output


def processor_settings(processor: Any) -> dict[str, Any]:
    """Return an image processor's settings without `auto_map`, since its files are not beside the graph."""
    settings = json.loads(processor.to_json_string()) | whole_image(processor)
    return {name: value for name, value in settings.items() if name != "auto_map"}


def attach_facts(proto: Any, description: str) -> None:
    """Replace a graph's metadata with the description that segmenters read."""
    del proto.metadata_props[:]
    proto.metadata_props.add(key=METADATA_KEY, value=description)


def class_names(model: nn.Module) -> dict[int, str]:
    """Return the classes of the model's configuration, by id; ValueError if it has none."""
    config: Any = getattr(model, "config", None)
    if config is None:
        raise ValueError(
            f"The classes are unknown: {type(model).__name__} has no config. Wrap the model with "
            "as_segmenter(model, id2label={0: ..., 1: ...}) or as_segmenter(model, num_labels=...)."
        )
    return config.id2label


class Graph(nn.Module):
    """The exported module: optional preprocessing, the model, optional upsampling and argmax."""

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        *,
        upsample: bool = False,
        argmax: bool = False,
        size: tuple[int, int] | None = None,
        fp16: bool = False,
        with_preprocessing: bool = False,
    ):
        super().__init__()
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"size={size!r}: expected height and width, two positive whole numbers.")
        self.id2label = class_names(model)
        self.model, self.processor = copy.deepcopy(model).cpu().float().eval(), processor
        self.upsample, self.argmax, self.size, self.fp16 = upsample, argmax, size, fp16
        self.with_preprocessing = with_preprocessing
        self.tolerance = TOLERANCE_FP16 if fp16 else TOLERANCE
        self.input_name = "image" if with_preprocessing else "pixel_values"
        self.output_name = "labels" if argmax else "logits"

    @property
    def description(self) -> str:
        """The description for segmenters, as JSON: classes, upsampling, and the image processor's remaining work."""
        described = processor_settings(self.processor)
        if self.with_preprocessing:
            described |= dict.fromkeys(("do_rescale", "do_normalize", *FLIPS), False)
        return json.dumps(
            {
                "id2label": {str(index): name for index, name in self.id2label.items()},
                "align_corners": align_corners_of(self.model),
                "ignore_index": ignore_index_of(self.model),
                "input": self.input_name,
                "output": self.output_name,
                "upsample": self.upsample,
                "size": self.size,
                "processor": described,
            }
        )

    def for_tracing(self) -> tuple[Graph, Tensor]:
        """Return a copy in the requested precision and an example input."""
        graph = copy.deepcopy(self)
        for layer in graph.modules():
            if isinstance(layer, Conv2dSame):
                layer.forward = partial(convolve_same, layer)  # type: ignore[method-assign]
        if self.fp16:
            graph.model.half()
        # odd and different sides, so that the exporter infers no relation between them
        height, width = self.size or (97, 129)
        pixels = torch.zeros(2, height, width, 3, dtype=torch.uint8)
        return graph, pixels if self.with_preprocessing else torch.randn(2, 3, height, width)

    def check(self, run: Callable[[np.ndarray], np.ndarray]) -> list[ParityRow]:
        """Compare `run`, which runs the written graph, with this module; see `check_parity`."""
        shapes = PARITY_SHAPES if self.size is None else [(batch, *self.size) for batch in (1, 2, 3)]
        options: dict[str, Any] = {"labels": self.argmax, "raw": self.with_preprocessing, "tolerance": self.tolerance}
        return check_parity(self.scores, run, self.processor, shapes, **options)

    def scores(self, pixel_values: Tensor) -> Tensor:
        """Compute class scores `(B, K, h, w)` float32."""
        logits = self.model(pixel_values=pixel_values.to(dtype_of(self.model))).logits.float()
        if not self.upsample:
            return logits
        return upsample_logits(logits, (pixel_values.shape[-2], pixel_values.shape[-1]), align_corners_of(self.model))

    def preprocessed(self, image: Tensor) -> Tensor:
        """Flip, rescale and normalise as the processor does: `(B, H, W, 3)` uint8 to `(B, 3, H, W)` float32."""
        pixels = image.permute(0, 3, 1, 2)
        if is_bgr(self.processor):
            pixels = pixels.flip(1)
        factor = self.processor.rescale_factor if self.processor.do_rescale else 1.0
        if not self.processor.do_normalize:
            return pixels.float() * factor
        given = self.processor.image_mean, self.processor.image_std
        mean, std = (torch.tensor(values)[:, None, None] / factor for values in given)
        return (pixels.float() - mean) / std

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute the graph's output."""
        with PoolingAsMatmul():
            scores = self.scores(self.preprocessed(inputs) if self.with_preprocessing else inputs)
        return scores.argmax(1).to(torch.uint8 if scores.shape[1] <= 256 else torch.int32) if self.argmax else scores


def convolve_same(layer: Conv2dSame, maps: Tensor) -> Tensor:
    """Apply the convolution of timm's `tf_` models, which pads as TensorFlow does, with a total that is constant.

    timm's total depends on the size, and its expressions, nested in each other, are traced for minutes. The zeros that
    are added here at the end have no effect on any output.
    """
    sides = zip(maps.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
    padding: list[int] = []
    for side, kernel, stride, dilation in sides:
        total = (kernel - 1) * dilation
        before = max(total - (side - 1) % stride, 0) // 2
        padding = [before, total - before, *padding]
    return F.conv2d(F.pad(maps, padding), layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)


class PoolingAsMatmul(TorchFunctionMode):
    """Context in which `adaptive_avg_pool2d` is computed as two matrix products.

    torch's exporter bakes the example's cell sizes into the graph, which is silently wrong at other sizes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace only this function."""
        return (adaptive_avg_pool_as_matmul if func is F.adaptive_avg_pool2d else func)(*args, **(kwargs or {}))


def adaptive_avg_pool_as_matmul(input: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """Compute `torch.nn.functional.adaptive_avg_pool2d` of `(..., H, W)` as matrix products."""
    vertical, horizontal = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if vertical == horizontal == 1:
        return input.mean((-2, -1), keepdim=True)
    if vertical is not None:
        input = _pooling_weights(vertical, input.shape[-2], input) @ input
    return input if horizontal is None else input @ _pooling_weights(horizontal, input.shape[-1], input).T


def _pooling_weights(cells: int, side: int, like: Tensor) -> Tensor:
    """Return the weight of each pixel in each cell's mean, `(cells, side)`. Neighbouring cells may overlap."""
    cell = torch.arange(cells, device=like.device)[:, None]
    pixel = torch.arange(side, device=like.device)
    inside = (pixel >= cell * side // cells) & (pixel < ((cell + 1) * side + cells - 1) // cells)
    counts = inside.to(like.dtype)
    return counts / counts.sum(1, keepdim=True)


def _trace(graph: Graph, opset: int | None) -> Any:
    """Trace the graph to an ONNX proto with dynamic batch size and, unless fixed, dynamic height and width."""
    traced, example = graph.for_tracing()
    open_axes = (0,) if graph.size else (0, 1, 2) if graph.with_preprocessing else (0, 2, 3)
    axes = dict.fromkeys(open_axes, torch.export.Dim.DYNAMIC)
    hint = "" if graph.size else " Some models can only be exported for one size: try --size HEIGHT WIDTH."
    with tracing("ONNX", hint):
        program = torch.onnx.export(
            traced,
            (example,),
            input_names=[graph.input_name],
            output_names=[graph.output_name],
            dynamic_shapes=(axes,),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # with dynamo=True
    proto = program.model_proto
    written = next(entry.version for entry in proto.opset_import if not entry.domain)
    if opset not in (None, written):
        raise ValueError(f"torch wrote opset {written} instead of {opset}; leave out --opset.")
    return proto


@contextmanager
def tracing(format: str, hint: str = "") -> Iterator[None]:
    """Run an exporter quietly and without gradients, and convert its errors to a ValueError."""
    try:
        with quiet(), torch.no_grad():
            yield
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:  # torch's OnnxExporterError too
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"torch cannot export this model to {format}.{hint} Its message: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the log messages and warnings of exporters; errors are still raised."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations within the exporter
            yield
    finally:
        logging.disable(disabled)


def _name_axes(proto: Any, graph: Graph) -> None:
    """Give dynamic axes readable names instead of torch's symbolic expressions."""
    sides = ("height", "width") if graph.upsample else ("map_height", "map_width")
    input = ["batch", "height", "width"]
    input.insert(3 if graph.with_preprocessing else 1, "channels")
    output = ("batch", *sides) if graph.argmax else ("batch", "classes", *sides)
    for value, names in ((proto.input[0], input), (proto.output[0], output)):
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if dim.dim_param:
                dim.dim_param = name
    del proto.value_info[:]  # inner shapes in the same expressions; runtimes infer them again


def check_parity(
    scores_of: Callable[[Tensor], Tensor],
    graph: Callable[[np.ndarray], np.ndarray],
    processor: Any,
    shapes: Iterable[tuple[int, int, int]],
    *,
    labels: bool = False,
    raw: bool = False,
    tolerance: float = TOLERANCE,
) -> list[ParityRow]:
    """Compare `scores_of` in PyTorch with `graph`, which returns scores or label maps, on inputs of these shapes.

    With `raw` the graph gets unprocessed pixels, 0 to 255, and only PyTorch's inputs are preprocessed. A ValueError if
    the graph fails on an input, returns another shape, or differs by more than `tolerance` of the largest score.
    """
    rows = []
    for shape in shapes:
        logger.info("comparing %s with PyTorch ...", "x".join(map(str, shape)))
        pixels = _example_pixels(*shape)
        inputs = torch.stack([run_processor(processor, image) for image in pixels])
        with torch.no_grad():
            scores = scores_of(inputs).float()
        result = torch.from_numpy(graph((pixels.float() if raw else inputs).numpy()))
        expected = scores.argmax(1) if labels else scores
        if result.shape != expected.shape:
            given, wanted = tuple(result.shape), tuple(expected.shape)
            raise ValueError(f"For input {tuple(inputs.shape)} the graph's output is {given}, the model's {wanted}.")
        classes = result.long() if labels else result.argmax(1)
        chosen, best = scores.gather(1, classes[:, None])[:, 0], scores.amax(1)
        difference = ((best - chosen) if labels else (scores - result).abs()).max()
        others = (classes != scores.argmax(1)).double().mean()
        rows.append(ParityRow(*shape, difference.item(), scores.abs().max().item(), others.item()))
    if not all(row.difference <= tolerance * row.largest_score for row in rows):  # written so that NaN fails
        found = f"Graph and model differ by more than {tolerance:g} of the largest score; nothing was written."
        raise ValueError(f"{found}\n{format_parity(rows)}\nIf only some sizes differ, fix one: --size HEIGHT WIDTH.")
    return rows


def _example_pixels(batch: int, height: int, width: int) -> Tensor:
    """Generate colour ramps with noise, `(batch, 3, height, width)` uint8, the same on every call."""
    rng = np.random.default_rng((batch, height, width))
    ramp = np.linspace(0, 200, height)[:, None, None] * rng.random(3) + np.linspace(0, 50, width)[None, :, None]
    noisy = ramp + rng.integers(0, 56, (batch, height, width, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)


def format_parity(rows: Sequence[ParityRow]) -> str:
    """Format a table with a line per input."""
    lines = [f"{'input':<16}{'max difference':>16}{'largest score':>15}{'other labels':>14}"]
    for row in rows:
        size = f"{row.batch}x{row.height}x{row.width}"
        lines.append(f"{size:<16}{row.difference:>16.1e}{row.largest_score:>15.2f}{row.other_labels:>14.2%}")
    return "\n".join(lines)
