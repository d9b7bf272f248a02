"""An ExecuTorch program as a segmenter."""

from __future__ import annotations

import numpy as np
import torch

from .graph_segmenter import METADATA_KEY, GraphSegmenter, check_packages


def check_executorch() -> None:
    """Raises ValueError where the extra `executorch` is not installed."""
    check_packages(("executorch",), "executorch")


class ExecuTorchSegmenter(GraphSegmenter):
    """A program of `export_executorch`, run image by image by its own runtime; see `GraphSegmenter`.

    ExecuTorch has one pool of threads for the whole process: the segmenter opened last sets their number for all.
    """

    def _open(self, threads: int) -> str | None:
        check_executorch()
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(threads)  # unsafe while a program runs; otherwise it takes every core
        try:
            program = Runtime.get().load_program(self.path)
            self._method = program.load_method("forward")
        except RuntimeError as error:
            raise ValueError(f"ExecuTorch cannot read {self.path}: {error}") from error
        return program.load_method(METADATA_KEY).execute([])[0] if METADATA_KEY in program.method_names else None

    def _run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        [images] = inputs.values()
        return np.concatenate([self._method.execute([torch.from_numpy(image[None])])[0].numpy() for image in images])
