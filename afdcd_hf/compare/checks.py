"""What is looked at before a comparison trains anything, and before it keeps what an earlier call has trained."""

from __future__ import annotations

import json
from pathlib import Path

from ..evaluation.results import machine_name
from ..hub.card_facts import HUB_ID
from .cells import TEACHER_PLACE, Cell, calibration_place, run_cell, teacher_cell, tuning_cells
from .plan import ALONE, Plan
from .results import RUN_FOLDER, CellResult


def check_plan(plan: Plan, output: str | Path) -> None:
    """Looks at every recipe of a plan, and at its teacher, before anything is trained.

    Raises:
        ValueError: A recipe with an unknown key or a value that cannot be, or no teacher.
        OSError: The teacher cannot be found.
    """
    _check_folders(plan)
    own = teacher_cell(plan)
    teacher = teacher_folder(output) if own else None
    for method in plan.methods:
        for candidate in method.candidates or [{}]:
            run_cell(plan, method, plan.budgets[0], plan.seeds[0], teacher, candidate, 1).arguments()
        for cell in tuning_cells(plan, method, teacher):
            cell.arguments()
    if own:
        own.arguments()
    elif any(method.name != ALONE for method in plan.methods):
        _check_teacher(plan.shared.get("teacher"))


def find_data(plan: Plan) -> None:
    """Finds the images and labels that all runs share; ValueError or OSError where some are missing."""
    run_cell(plan, plan.methods[0], plan.budgets[0], plan.seeds[0], None, {}, 1).find_data()


def teacher_folder(output: str | Path) -> str:
    """Where the teacher lies that a comparison trains itself."""
    return str(Path(output) / TEACHER_PLACE / RUN_FOLDER)


def check_same(cell: Cell, folder: Path, result: CellResult) -> None:
    """Raise ValueError where a finished training had other settings, or seconds of another machine."""
    if result.fingerprint != cell.fingerprint:
        raise ValueError(
            f"{folder} holds a finished training with other settings. It was {_first_difference(cell, result)}. "
            "Give another --output, or delete that folder to train it again."
        )
    if cell.budget and cell.budget.is_time and result.machine != machine_name():
        raise ValueError(
            f"{folder} was trained on {result.machine}, and this is {machine_name()}: seconds of two machines cannot "
            "be compared. Give another --output, or go on on that machine."
        )


def _check_folders(plan: Plan) -> None:
    places: dict[str, str] = {}
    for method in plan.methods:
        other = places.setdefault(calibration_place(method), method.name)
        if other != method.name:
            raise ValueError(f"{other!r} and {method.name!r} would lie in the same folder; rename one of the methods.")


def _first_difference(cell: Cell, result: CellResult) -> str:
    before, now = json.loads(result.fingerprint), json.loads(cell.fingerprint)
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return f"{key}={before.get(key)!r} and is {now.get(key)!r}"


def _check_teacher(teacher: str | None) -> None:
    from transformers import AutoConfig

    if teacher is None:
        raise ValueError("The plan has methods with a teacher, but neither 'teacher' nor 'teacher_recipe'.")
    if not Path(teacher).is_dir() and not HUB_ID.fullmatch(teacher):
        raise FileNotFoundError(f"teacher={teacher!r} is neither a folder nor a Hub id (owner/name).")
    AutoConfig.from_pretrained(teacher)
