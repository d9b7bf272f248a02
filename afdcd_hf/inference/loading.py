"""Whatever can segment, by its name: folders, Hub ids and exported graphs."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoImageProcessor

from ..models.loading import load_model, load_processor
from .executorch_segmenter import ExecuTorchSegmenter
from .graph_segmenter import GraphSegmenter
from .onnx_segmenter import OnnxSegmenter
from .openvino_segmenter import OpenVinoSegmenter

# file suffix -> what runs it
GRAPHS: dict[str, type[GraphSegmenter]] = {
    ".onnx": OnnxSegmenter,
    ".xml": OpenVinoSegmenter,
    ".pte": ExecuTorchSegmenter,
}


def load_graph(path: str | Path, threads: int | None = None) -> tuple[GraphSegmenter, Any]:
    """An exported graph and the image processor that it was exported with; see `GraphSegmenter`."""
    if Path(path).suffix not in GRAPHS:
        raise ValueError(f"{path} is not an exported graph: its name must end in {' or '.join(GRAPHS)}.")
    segmenter = GRAPHS[Path(path).suffix](path, threads)
    with TemporaryDirectory() as folder:
        Path(folder, "preprocessor_config.json").write_text(json.dumps(segmenter.facts["processor"]))
        return segmenter, AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def load_segmenter(name_or_path: str) -> tuple[Any, Any]:
    """A model and its image processor, from a folder, a Hub id or a file of `afdcd export`."""
    if Path(name_or_path).suffix in GRAPHS:
        return load_graph(name_or_path)
    return load_model(name_or_path), load_processor(name_or_path)
