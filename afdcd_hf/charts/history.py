"""What a finished or interrupted run has logged, read from its folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

STATE_NAME = "trainer_state.json"


def load_history(folder: str | Path) -> list[dict[str, Any]]:
    """Reads the log of a run: its folder's `trainer_state.json`, or its newest checkpoint's where that got further.

    Args:
        folder: A run's output folder, or one of its checkpoints.

    Returns:
        The Trainer's `state.log_history`, for `plot_training_curves`.

    Raises:
        FileNotFoundError: If neither the folder nor a checkpoint in it holds a `trainer_state.json`.
        ValueError: If the file is no Trainer's state.
    """
    folder = Path(folder)
    paths = [path for path in (folder / STATE_NAME, _newest_checkpoint_state(folder)) if path and path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"{folder} holds no {STATE_NAME}, nor does a checkpoint-* folder in it. Pass the --output_dir of a run "
            "that has finished or saved a checkpoint."
        )
    states = [_read_state(path) for path in paths]
    # A run that was resumed and interrupted again got further than its first end; max takes the first of equals.
    return max(states, key=lambda state: state.get("global_step", 0))["log_history"]


def _newest_checkpoint_state(folder: Path) -> Path | None:
    numbered = [(re.fullmatch(r"checkpoint-(\d+)", path.parent.name), path) for path in folder.glob(f"*/{STATE_NAME}")]
    steps = {int(match[1]): path for match, path in numbered if match}
    return steps[max(steps)] if steps else None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}); it may have been cut off while saving.") from error
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ValueError(f"{path} holds no list 'log_history'; pass the folder of a run of the Trainer.")
    return state
