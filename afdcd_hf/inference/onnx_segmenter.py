"""An ONNX graph as a segmenter: whatever scores or applies models takes it like one."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor, PreTrainedConfig

from ..models.loading import load_model, load_processor
from ..models.modeling_afdcd import AfDcdOutput
from .segment import InferenceSettings

METADATA_KEY = "afdcd"  # entry of the graph's metadata that holds, as JSON, what is needed beside the graph


def check_packages() -> None:
    """Raises ValueError where something that the extra `export` installs is missing."""
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}, which is not installed: pip install 'afdcd-hf[export]'.")


class OnnxSegmenter(nn.Module):
    """A graph of `export_onnx` or `quantise_onnx`, run by onnxruntime on the CPU.

    It is called as the models are, `segmenter(pixel_values=...).logits`, and carries the `config` that
    `evaluate_segmenter` and `segment_image` ask for. A graph that gives label maps is answered for by scores of one for
    the class chosen and zero for the others.

    Args:
        path: the `.onnx` file.
        threads: threads of one operator; as many as torch uses where None.

    Attributes:
        facts: the graph's own description: classes, `output` ("logits" or "labels"), `upsample`, `size` ([height,
            width] where it is fixed, else None), `processor`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ONNX graph, or not one of ours; onnxruntime is missing; in `forward`, an input that the
            graph does not take.
    """

    main_input_name = "pixel_values"

    def __init__(self, path: str | Path, threads: int | None = None):
        super().__init__()
        self.path = Path(path)
        self._session = _open(self.path, threads or torch.get_num_threads())
        facts = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if facts is None:
            raise ValueError(f"{path} was not made by `afdcd export`: its classes and images are unknown.")
        self.facts = json.loads(facts)
        id2label = {int(index): name for index, name in self.facts["id2label"].items()}
        self.config = PreTrainedConfig(id2label=id2label, label2id={name: i for i, name in id2label.items()})
        self.config.align_corners = self.facts["align_corners"]
        self.config.semantic_loss_ignore_index = self.facts["ignore_index"]
        # tells callers where inputs go, and in which type
        self.placeholder = nn.Parameter(torch.zeros(0), requires_grad=False)

    def settings_for(self, settings: InferenceSettings) -> InferenceSettings:
        """The settings, with windows of the size that the graph is fixed to unless they have some already."""
        if self.facts["output"] == "labels" and not self.facts["upsample"]:
            raise ValueError(f"{self.path} gives label maps smaller than the image: export with --upsample to use it.")
        size = self.facts["size"]
        return settings if size is None or settings.window else replace(settings, window=tuple(size))

    def run(self, pixel_values: np.ndarray) -> np.ndarray:
        """What the graph gives for `(B, 3, H, W)` float32: scores `(B, K, h, w)`, or class ids `(B, h, w)`."""
        size = self.facts["size"]
        if size is not None and list(pixel_values.shape[-2:]) != size:
            given = "x".join(map(str, pixel_values.shape[-2:]))
            raise ValueError(f"{self.path} takes images of {size[0]}x{size[1]} pixels (height x width), not {given}.")
        return self._session.run(None, {"pixel_values": pixel_values})[0]

    def forward(self, pixel_values: Tensor) -> AfDcdOutput:
        """Run the graph on `(B, 3, H, W)`."""
        result = torch.from_numpy(self.run(pixel_values.detach().float().cpu().numpy()))
        if self.facts["output"] == "labels":
            result = nn.functional.one_hot(result.long(), self.config.num_labels).permute(0, 3, 1, 2).float()
        return AfDcdOutput(logits=result)


def load_onnx(path: str | Path, threads: int | None = None) -> tuple[OnnxSegmenter, Any]:
    """An exported graph and the image processor that it was exported with; see `OnnxSegmenter`."""
    segmenter = OnnxSegmenter(path, threads)
    with TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(segmenter.facts["processor"]))
        return segmenter, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def load_segmenter(name_or_path: str) -> tuple[Any, Any]:
    """A model and its image processor, from a folder, a Hub id or an `.onnx` file of `afdcd export`."""
    if Path(name_or_path).suffix == ".onnx":
        return load_onnx(name_or_path)
    return load_model(name_or_path), load_processor(name_or_path)


def _open(path: Path, threads: int) -> Any:
    check_packages()
    import onnxruntime

    if not path.is_file():
        raise FileNotFoundError(f"There is no graph at {path}; give an .onnx file of `afdcd export`.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Idle threads that spin would take the processor from whatever else is timed or run in turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise ValueError(f"onnxruntime cannot read {path}: {error}") from error
