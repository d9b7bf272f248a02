"""An ONNX graph as a segmenter."""

from __future__ import annotations

import numpy as np

from .graph_segmenter import METADATA_KEY, GraphSegmenter, check_packages


def check_onnx() -> None:
    """Raises ValueError where something that the extra `export` installs is missing."""
    check_packages(("onnx", "onnxruntime", "onnxscript"), "export")


class OnnxSegmenter(GraphSegmenter):
    """A graph of `export_onnx` or `quantise_onnx`, run by onnxruntime; see `GraphSegmenter`."""

    def _open(self, threads: int) -> str | None:
        check_onnx()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        # Idle threads that spin would take the processor from whatever else is timed or run in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions share no base class
            raise ValueError(f"onnxruntime cannot read {self.path}: {error}") from error
        return self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._session.run(None, inputs)[0]
