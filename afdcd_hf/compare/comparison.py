"""Runs a comparison, one training after another, and goes on where an earlier call was stopped."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..atomic_io import written_whole
from ..folder_lock import held_alone
from .cells import (
    Cell,
    all_places,
    calibration_cell,
    each_run,
    run_cell,
    teacher_cell,
    teaching,
    tuning_cells,
)
from .checks import check_plan, check_same, find_data, teacher_folder
from .child_process import afdcd_command, last_words, run_logged
from .plan import Budget, Method, Plan
from .progress import Progress
from .report import write_report
from .results import RUN_FOLDER, CellResult, collect, read_result

logger = logging.getLogger(__name__)
RECIPE_NAME, LOG_NAME = "recipe.yaml", "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What a comparison has come to.

    Attributes:
        results: Every finished training.
        failed: Folder of each training that ended with an error, to the last lines of its log.
    """

    results: list[CellResult]
    failed: Mapping[str, str]


def run_comparison(plan: Plan, output: str | Path, show: Callable[[str], None] = lambda text: None) -> Outcome:
    """Trains whatever of a plan is not finished yet, and writes table, CSV and charts.

    First the teacher, where the plan has one; then the candidates of each method, of which the best on the tuning
    seed is kept; then, for budgets in seconds, a few steps of each method to learn how many fit; then the runs, seed
    by seed. Each training is a process of its own. A finished one is kept as long as its settings are the plan's.

    Args:
        plan: What to compare.
        output: Folder for everything; made where it is not there.
        show: Gets lines for people: what runs, how long it may take. A text without a line end replaces the last one.

    Returns:
        All results, and what failed. A training that fails does not stop the others, unless these need it.

    Raises:
        ValueError: A recipe that cannot be, a finished training with other settings, a budget in seconds on another
            machine than before, or a teacher or a tuning that failed.
        FileNotFoundError: Images, labels or the teacher are missing.
        FileExistsError: Another comparison is running in this folder.
        ComparisonStopped: By a signal; a second call goes on.
    """
    output = Path(output)
    with held_alone(output, "--output") as lock:
        check_plan(plan, output)
        find_data(plan)
        return _Comparison(plan, output, Progress(plan, show, finished(plan, output)), lock).run()


def finished(plan: Plan, output: str | Path) -> dict[str, CellResult]:
    """Folder of each training of a plan that is finished, to its result; in the order of the trainings."""
    found = {place: read_result(Path(output) / place) for place in all_places(plan)}
    return {place: result for place, result in found.items() if result is not None}


class _Comparison:
    def __init__(self, plan: Plan, output: Path, progress: Progress, lock: int | None) -> None:
        self._plan, self._output, self._progress, self._lock = plan, output, progress, lock
        self._failed: dict[str, str] = {}
        self._calibrations: dict[str, CellResult] = {}
        self._chosen: dict[str, Mapping[str, Any]] = {}

    def run(self) -> Outcome:
        """Train what is missing."""
        plan = self._plan
        if teacher := teacher_cell(plan):
            self._needed(teacher)
        for method in plan.methods:
            self._chosen[method.name] = self._tune(method)
        for method in plan.methods if any(budget.is_time for budget in plan.budgets) else ():
            self._calibrated(method)
        for seed, budget, method in each_run(plan):
            teacher, chosen, seconds = self._teacher_name(), self._chosen[method.name], self._seconds(budget)
            steps = budget.iterations
            if seconds is not None:
                steps = self._calibrated(method).iterations_within(seconds, teaching(plan, method, chosen))
            self._try(run_cell(plan, method, budget, seed, teacher, chosen, steps, seconds))
            self._report(charts=False)
        return Outcome(self._report(), self._failed)

    def _report(self, charts: bool = True) -> list[CellResult]:
        """Write and return what is there so far, of earlier calls too."""
        results = list(finished(self._plan, self._output).values())
        if any(result.kind == "run" for result in results):
            write_report(self._plan, self._output, results, self._chosen, charts=charts)
        return results

    def _teacher_name(self) -> str | None:
        """The trained teacher's folder; None leaves it to the recipe's own key."""
        return teacher_folder(self._output) if self._plan.teacher else None

    def _tune(self, method: Method) -> Mapping[str, Any]:
        """The candidate with the best mIoU on the tuning seed; the first of equals."""
        cells = tuning_cells(self._plan, method, self._teacher_name())
        scores = [self._needed(cell).mean_iou for cell in cells]
        return method.candidates[scores.index(max(scores))] if scores else {}

    def _seconds(self, budget: Budget) -> float | None:
        """Of training steps, for each run; None where iterations are the budget."""
        if budget.as_long_as:
            reference = next(one for one in self._plan.methods if one.name == budget.as_long_as)
            when = teaching(self._plan, reference, self._chosen[reference.name])
            return round(self._calibrated(reference).seconds_for(budget.iterations, when), 2)
        return budget.seconds

    def _calibrated(self, method: Method) -> CellResult:
        """A few steps of a method, trained once, which tell how long they take."""
        if method.name not in self._calibrations:
            cell = calibration_cell(self._plan, method, self._teacher_name(), self._chosen[method.name])
            self._calibrations[method.name] = self._needed(cell)
        return self._calibrations[method.name]

    def _needed(self, cell: Cell) -> CellResult:
        """The result of a training that others need."""
        result = self._try(cell)
        if result is None:
            raise ValueError(
                f"{cell.kind} of {cell.method!r} failed, and what follows needs it; its log is "
                f"{self._output / cell.place / LOG_NAME}. Its last lines:\n{self._failed[cell.place]}"
            )
        return result

    def _try(self, cell: Cell) -> CellResult | None:
        """The result of a training, from an earlier call where there is one; None where it fails."""
        folder = self._output / cell.place
        result = read_result(folder)
        if result is not None:
            check_same(cell, folder, result)
        else:
            result = self._train(cell, folder)
        if result is not None:
            self._progress.finished(cell, result)
        return result

    def _train(self, cell: Cell, folder: Path) -> CellResult | None:
        folder.mkdir(parents=True, exist_ok=True)
        command = self._command(cell, folder)
        self._progress.starts(cell)
        start = time.perf_counter()
        status = run_logged(
            command, folder / LOG_NAME, self._progress.watch, keep_open=[] if self._lock is None else [self._lock]
        )
        if status != 0:
            self._failed[cell.place] = last_words(folder / LOG_NAME)
            self._progress.failed(cell)
            logger.warning("%s failed; see %s", cell.place, folder / LOG_NAME)
            return None
        result = collect(cell, folder, time.perf_counter() - start)
        for checkpoint in (folder / RUN_FOLDER).glob("checkpoint-*"):  # of our own run, which needs them no more
            shutil.rmtree(checkpoint)
        return result

    def _command(self, cell: Cell, folder: Path) -> list[str]:
        """Write the training's recipe, and say how it is started, or goes on."""
        run, recipe = folder / RUN_FOLDER, folder / RECIPE_NAME
        text = yaml.safe_dump({**cell.settings, "output_dir": str(run)}, sort_keys=False, allow_unicode=True)
        resume = _resumable(run, recipe, text)
        with written_whole(recipe) as part:
            part.write_text(text, encoding="utf-8")
        words = [cell.command, "--config", str(recipe), *(["--resume_from_checkpoint", "last"] if resume else [])]
        return afdcd_command(words, self._plan.processes)


def _resumable(run: Path, recipe: Path, text: str) -> bool:
    """Whether a stopped training with these very settings has a checkpoint; what it left otherwise goes."""
    if not run.is_dir():
        return False
    same = recipe.is_file() and recipe.read_text(encoding="utf-8") == text
    if same and any(run.glob("checkpoint-*")):
        return True
    shutil.rmtree(run)  # an unfinished training of ours, in a folder of ours
    return False
