"""`results.json`: the scores of one evaluation, with everything needed to repeat it."""

from __future__ import annotations

import json
import math
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from . import __version__


def machine_name() -> str:
    """The GPU, or the processor and its number of cores that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def library_versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    libraries = ("torch", "transformers", "timm", "datasets", "accelerate")
    return {"afdcd_hf": __version__, **{name: version(name) for name in libraries}}


def save_results(path: str | Path, scores: dict[str, Any], **context: Any) -> dict[str, Any]:
    """Write scores as JSON; an undefined score (NaN) becomes null.

    Args:
        path: file to write; its folder is made.
        scores: what `evaluate_segmenter` returned.
        context: what the protocol should add, e.g. model, dataset, split.

    Returns:
        What was written.
    """
    protocol = {**context, **scores["protocol"], "date": date.today().isoformat(), "machine": machine_name()}
    results = _without_nan({**scores, "protocol": {**protocol, "versions": library_versions()}})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")
    return results


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
