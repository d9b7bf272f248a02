"""An OpenVINO graph as a segmenter."""

from __future__ import annotations

import numpy as np

from .graph_segmenter import METADATA_KEY, GraphSegmenter, check_packages


class OpenVinoSegmenter(GraphSegmenter):
    """A graph of `export_openvino`, `.xml` with its weights in `.bin` beside it; see `GraphSegmenter`."""

    def _open(self, threads: int) -> str | None:
        check_packages(("openvino",), "openvino")
        import openvino

        core = openvino.Core()
        # The CPU plugin would otherwise compute in half precision wherever the processor is faster at it.
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        try:
            graph = core.read_model(self.path)
            facts = graph.get_rt_info([METADATA_KEY]).astype(str) if graph.has_rt_info([METADATA_KEY]) else None
            self._compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO cannot read {self.path}: {error}") from error
        return facts

    @property
    def size_in_bytes(self) -> int:
        """Of both files."""
        return self.path.stat().st_size + self.path.with_suffix(".bin").stat().st_size

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._compiled(inputs)[0].copy()  # or the next call would overwrite it
