"""Exported graphs as segmenters, to be evaluated and applied like models."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..models.loading import load_model, load_processor
from ..models.modeling_afdcd import AfDcdOutput
from .segment import InferenceSettings

METADATA_KEY = "afdcd"  # entry of the graph's metadata that describes it, as JSON


ONNX_PACKAGES = "onnx", "onnxruntime", "onnxscript"  # of the extra `export`


def check_packages(names: Sequence[str], extra: str) -> None:
    """Raise ValueError if a package that one of our extras installs is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"Not installed, but needed here: {', '.join(missing)}. Run pip install 'afdcd-hf[{extra}]'.")


class GraphSegmenter(nn.Module, ABC):
    """A graph written by `afdcd export`, run by its own runtime on the CPU.

    It is called like a model, `segmenter(pixel_values=...).logits`, and has the `config` that `evaluate_segmenter` and
    `segment_image` read. If a graph outputs label maps, its scores are one for the chosen class and zero for the
    others. An operator uses as many threads as torch.

    Attributes:
        facts: the graph's own description: classes, `output` ("logits" or "labels"), `upsample`, `size` ([height,
            width] if it is fixed, else None), `processor`.
        input_name: "pixel_values", or "image" if the graph includes preprocessing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the runtime is missing or cannot read the file, or it is not one of ours.
    """

    main_input_name = "pixel_values"

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no graph at {path}; give a file written by `afdcd export`.")
        facts = self._open()
        if facts is None:
            raise ValueError(f"{path} was not made by `afdcd export`: its classes and images are unknown.")
        self.facts = json.loads(facts)
        self.input_name = self.facts.get("input", "pixel_values")  # missing in earlier graphs
        id2label = {int(index): name for index, name in self.facts["id2label"].items()}
        self.config = PreTrainedConfig(id2label=id2label, label2id={name: i for i, name in id2label.items()})
        self.config.align_corners = self.facts["align_corners"]
        self.config.semantic_loss_ignore_index = self.facts["ignore_index"]
        # tells callers the device and dtype of inputs
        self.placeholder = nn.Parameter(torch.zeros(0), requires_grad=False)

    @abstractmethod
    def _open(self) -> str | None:
        """Open the graph in its runtime, and return its metadata under `METADATA_KEY`, if it has any."""

    @abstractmethod
    def compute(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run the graph and return its output."""

    @property
    def size_in_bytes(self) -> int:
        """The size of all files of the graph: OpenVINO keeps weights in a second one."""
        files = [self.path, self.path.with_suffix(".bin")] if self.path.suffix == ".xml" else [self.path]
        return sum(file.stat().st_size for file in files)

    def settings_for(self, settings: InferenceSettings) -> InferenceSettings:
        """Return the settings, with windows of the graph's fixed size, if any, unless they have some already.

        A ValueError if the graph cannot be run with these settings.
        """
        if settings.precision != "fp32":
            raise ValueError(
                f"precision={settings.precision!r}: {self.path} runs in the precision it was exported in. Leave the "
                "option out, or export the model with --fp16."
            )
        if self.facts["output"] == "labels" and not self.facts["upsample"]:
            raise ValueError(f"{self.path} outputs label maps smaller than the image: export it with --upsample.")
        size = self.facts["size"]
        return settings if size is None or settings.window else replace(settings, window=tuple(size))

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """Run the graph on `(B, 3, H, W)` float32; return scores `(B, K, h, w)` or class ids `(B, h, w)`.

        If the graph includes preprocessing, the values are pixels of 0 to 255, and are rounded.
        """
        return self.compute(self.inputs(pixel_values))

    def inputs(self, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values of `run` as `compute` takes them; ValueError if the graph is for another size."""
        size = self.facts["size"]
        if size is not None and list(pixel_values.shape[-2:]) != size:
            given = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(f"{self.path} takes images of {size[0]}x{size[1]} pixels (height x width), not {given}.")
        if self.input_name == "image":
            pixel_values = pixel_values.transpose(0, 2, 3, 1).round().clip(0, 255).astype(np.uint8, order="C")
        return {self.input_name: pixel_values}

    def forward(self, pixel_values: Tensor) -> AfDcdOutput:
        """Run the graph on `(B, 3, H, W)`."""
        result: Any = torch.from_numpy(self.run(pixel_values.detach().float().cpu().numpy()))
        if self.facts["output"] == "labels":
            result = nn.functional.one_hot(result.long(), self.config.num_labels).permute(0, 3, 1, 2).float()
        return AfDcdOutput(logits=result)


class OnnxSegmenter(GraphSegmenter):
    """A graph from `export_onnx` or `quantise_onnx`, run by onnxruntime; see `GraphSegmenter`."""

    def _open(self) -> str | None:
        check_packages(ONNX_PACKAGES, "export")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        # Idle threads that spin would take the CPU from whatever else is timed or run in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ValueError(f"onnxruntime cannot read {self.path}: {error}") from error
        return self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def compute(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, inputs)[0]


class OpenVinoSegmenter(GraphSegmenter):
    """A graph from `export_openvino`, `.xml` with its weights in `.bin` beside it; see `GraphSegmenter`."""

    def _open(self) -> str | None:
        check_packages(("openvino",), "openvino")
        import openvino

        core = openvino.Core()
        # The CPU plugin would otherwise compute in half precision wherever the processor is faster at it.
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        try:
            graph = core.read_model(self.path)
            facts = graph.get_rt_info([METADATA_KEY]).astype(str) if graph.has_rt_info([METADATA_KEY]) else None
            self._compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot read {self.path}: {error}") from error
        return facts

    def compute(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._compiled(inputs)[0].copy()  # or the next call would overwrite it


class ExecuTorchSegmenter(GraphSegmenter):
    """A program from `export_executorch`, run image by image by its own runtime; see `GraphSegmenter`.

    ExecuTorch has one thread pool per process: the segmenter opened last sets the number of threads for all.
    """

    def _open(self) -> str | None:
        check_packages(["executorch"], "executorch")
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(torch.get_num_threads())  # unsafe while a program runs; otherwise it takes every core
        try:
            program = Runtime.get().load_program(self.path)
            self._method = program.load_method("forward")
        except RuntimeError as error:
            raise ValueError(f"ExecuTorch cannot read {self.path}: {error}") from error
        return program.load_method(METADATA_KEY).execute([])[0] if METADATA_KEY in program.method_names else None

    def compute(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        [images] = inputs.values()
        return np.concatenate([self._method.execute([torch.from_numpy(image[None])])[0].numpy() for image in images])


# file suffix -> segmenter that runs it
GRAPHS: dict[str, type[GraphSegmenter]] = {
    ".onnx": OnnxSegmenter,
    ".xml": OpenVinoSegmenter,
    ".pte": ExecuTorchSegmenter,
}


def load_graph(path: str | Path) -> tuple[GraphSegmenter, Any]:
    """Load an exported graph and the image processor that it was exported with; see `GraphSegmenter`."""
    if Path(path).suffix not in GRAPHS:
        raise ValueError(f"{path} is not an exported graph: its name must end in {' or '.join(GRAPHS)}.")
    segmenter = GRAPHS[Path(path).suffix](path)
    with TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(segmenter.facts["processor"]))
        return segmenter, load_processor(folder)


def load_segmenter(name_or_path: str) -> tuple[Any, Any]:
    """Load a model and its image processor, from a folder, a Hub id or a file written by `afdcd export`."""
    if Path(name_or_path).suffix in GRAPHS:
        return load_graph(name_or_path)
    return load_model(name_or_path), load_processor(name_or_path)
