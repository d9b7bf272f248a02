"""What a finished or interrupted run has logged, read from its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..structured_files import read_json

STATE_NAME = "trainer_state.json"


def load_history(folder: str | Path) -> list[dict[str, Any]]:
    """Read the log of a run: its folder's `trainer_state.json`, or its newest checkpoint's where that got further.

    Args:
        folder: a run's output folder, or one of its checkpoints.

    Returns:
        The Trainer's `state.log_history`, for `plot_training_curves`.

    Raises:
        FileNotFoundError: neither the folder nor a checkpoint in it holds a `trainer_state.json`.
        ValueError: the file is not a Trainer's state.
    """
    folder = Path(folder)
    checkpoints = {path for path in folder.glob(f"*/{STATE_NAME}") if re.fullmatch(r"checkpoint-\d+", path.parent.name)}
    newest = sorted(checkpoints, key=lambda path: int(path.parent.name.rpartition("-")[2]))[-1:]
    paths = [path for path in (folder / STATE_NAME, *newest) if path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no {STATE_NAME}, nor does a checkpoint-* folder in it. Pass the --output_dir of a run "
            "that has finished or saved a checkpoint."
        )
    states: list[dict[str, Any]] = [read_json(path, "a Trainer's state") for path in paths]
    for path, state in zip(paths, states, strict=True):
        if not isinstance(state.get("log_history"), list):
            raise ValueError(f"{path} holds no list 'log_history'; pass the folder of a run of the Trainer.")
    # A run that was resumed and interrupted again got further than its first end; max takes the first of equals.
    return max(states, key=lambda state: state.get("global_step", 0))["log_history"]
