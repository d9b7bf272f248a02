"""`recipe.yaml` in a run's folder: what was asked for, so that it can be asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..atomic_io import written_whole
from ..hub.folder_facts import public_name
from ..hub.push_files import RECIPE_NAME
from ..redaction import without_tokens
from .option_values import plain_value

# Of this one run, of this machine, or secret.
_LEFT_OUT = {"output_dir", "resume_from_checkpoint", "data_dir", "run_name", "hub_token", "local_rank", "logging_dir"}
# May be files or folders of this machine; such a one is written by its last name.
_MAY_BE_PATHS = {"teacher", "model", "pretrained_backbone", "dataset", "train_list", "eval_list"}


def write_recipe(folder: Path, given: Mapping[str, Any]) -> Path:
    """Write what a recipe and a command line set as one recipe.

    `--data_dir`, and the folders of models on this machine, have to be given again: local paths stay private.

    Args:
        folder: of the run.
        given: argument name to value, of `merge_arguments`.

    Returns:
        The file.
    """
    lines = {key: _public(key, value) for key, value in given.items() if key not in _LEFT_OUT}
    command = "distill" if "loss" in lines else "train"
    head = (
        f"# This training again: afdcd {command} --config {RECIPE_NAME} --output_dir FOLDER\n"
        "# (with --data_dir, and whatever was a file or folder of another machine)\n"
    )
    path = folder / RECIPE_NAME
    with written_whole(path) as part:
        text = yaml.safe_dump(lines, sort_keys=False, allow_unicode=True)
        part.write_text(head + without_tokens(text), encoding="utf-8")
    return path


def _public(key: str, value: Any) -> Any:
    return public_name(value) if key in _MAY_BE_PATHS and isinstance(value, str) else plain_value(value)
