"""Runs a comparison, one training after another, and continues where an earlier call was stopped."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..atomic_io import written_whole
from ..data.fingerprint import is_generated
from ..data.loading import load_split
from ..evaluation.results import machine_name
from ..folder_lock import held_alone
from ..hub.card_facts import HUB_ID
from ..structured_files import parse_yaml, read_yaml
from ..training.arguments import DataArguments
from .plan import ALONE, Budget, Method, Plan, folder_name
from .process import afdcd_command, last_lines, run_logged
from .runs import (
    RESULT_NAME,
    RUN_FOLDER,
    TEACHER_PLACE,
    Run,
    RunResult,
    all_places,
    collect,
    each_run,
    read_result,
    run_place,
    table_run,
    teacher_run,
    tuning_runs,
)
from .table import write_report

logger = logging.getLogger(__name__)
RECIPE_NAME, LOG_NAME = "recipe.yaml", "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What a comparison has come to.

    Attributes:
        results: Every finished training.
        failed: Folder of each training that ended with an error, to the last lines of its log.
    """

    results: list[RunResult]
    failed: Mapping[str, str]


def check_plan(plan: Plan, output: str | Path) -> None:
    """Check every recipe of a plan, and its teacher, before anything is trained.

    Raises:
        ValueError: A recipe with an unknown key or an invalid value, or no teacher.
        OSError: The teacher cannot be found.
    """
    places: dict[str, str] = {}
    for method in plan.methods:
        other = places.setdefault(folder_name(method.name), method.name)
        if other != method.name:
            raise ValueError(f"{other!r} and {method.name!r} would lie in the same folder; rename one of the methods.")
    own = teacher_run(plan)
    teacher = teacher_folder(output) if own else None
    for method in plan.methods:
        for chosen in method.candidates or [{}]:
            table_run(plan, method, plan.budgets[0], plan.seeds[0], teacher, chosen).arguments()
        for run in tuning_runs(plan, method, teacher):
            run.arguments()
    if own:
        own.arguments()
    elif any(method.name != ALONE for method in plan.methods):
        _check_teacher(plan.shared.get("teacher"))


def find_data(plan: Plan) -> None:
    """Find the images and labels that all runs share; ValueError or OSError where some are missing."""
    shared = table_run(plan, plan.methods[0], plan.budgets[0], plan.seeds[0]).arguments()
    data = next(one for one in shared if isinstance(one, DataArguments))
    if not is_generated(data.dataset):  # generated images are not drawn for this
        for part in ("train", "eval"):
            load_split(**data.choice(part))


def _check_teacher(teacher: str | None) -> None:
    from transformers import AutoConfig

    if teacher is None:
        raise ValueError("The plan has methods with a teacher, but neither 'teacher' nor 'teacher_recipe'.")
    if not Path(teacher).is_dir() and not HUB_ID.fullmatch(teacher):
        raise FileNotFoundError(f"teacher={teacher!r} is neither a local folder nor a Hub id (owner/name).")
    AutoConfig.from_pretrained(teacher, trust_remote_code=False)


def teacher_folder(output: str | Path) -> str:
    """Where the teacher lies that a comparison trains itself."""
    return str(Path(output) / TEACHER_PLACE / RUN_FOLDER)


def run_comparison(plan: Plan, output: str | Path, show: Callable[[str], None] = lambda line: None) -> Outcome:
    """Train whatever of a plan is not finished yet, and write table, CSV and charts.

    First the teacher, where the plan has one; then the candidates of each method, of which the best on the tuning
    seed is kept; then the runs, seed by seed. Each training is a process of its own, whose log lies in its folder. A
    finished one is kept as long as its settings are the plan's.

    Args:
        plan: What to compare.
        output: Folder for everything; made where it is missing.
        show: Gets a line when a training starts, with an estimate of the time left, and one when it ends.

    Returns:
        All results, and what failed. A training that fails does not stop the others, unless these need it.

    Raises:
        ValueError: An invalid recipe, a training with other settings, a budget in time on another machine than before,
            or a failed training that others need.
        FileNotFoundError: Images, labels or the teacher are missing.
        FileExistsError: Another comparison is running in this folder.
        ComparisonStopped: By a signal; a second call continues.
    """
    output = Path(output)
    with held_alone(output) as lock:
        check_plan(plan, output)
        find_data(plan)
        return _Comparison(plan, output, show, lock).run()


def finished(plan: Plan, output: str | Path) -> dict[str, RunResult]:
    """Folder of each finished training of a plan -> its result, in the order of the trainings."""
    found = {place: read_result(Path(output) / place) for place in all_places(plan)}
    return {place: result for place, result in found.items() if result is not None}


class _Comparison:
    def __init__(self, plan: Plan, output: Path, show: Callable[[str], None], lock: int | None) -> None:
        self._plan, self._output, self._show, self._lock = plan, output, show, lock
        self._failed: dict[str, str] = {}
        self._chosen: dict[str, Mapping[str, Any]] = {}
        self._left, self._took = all_places(plan), dict[tuple[str, str], list[float]]()
        self._total = len(self._left)
        for place, result in finished(plan, output).items():
            self._done(place, result)

    def run(self) -> Outcome:
        """Train what is missing."""
        plan, teacher = self._plan, None
        if own := teacher_run(plan):
            self._needed(own)
            teacher = teacher_folder(self._output)
        for method in plan.methods:
            scores = [self._needed(run).mean_iou for run in tuning_runs(plan, method, teacher)]
            self._chosen[method.name] = method.candidates[scores.index(max(scores))] if scores else {}
        for seed, budget, method in each_run(plan):
            seconds = self._seconds(budget, method, seed)
            self._try(table_run(plan, method, budget, seed, teacher, self._chosen[method.name], seconds))
            self._report(charts=False)
        return Outcome(self._report(), self._failed)

    def _report(self, charts: bool = True) -> list[RunResult]:
        """Write and return what there is so far, of earlier calls too."""
        results = list(finished(self._plan, self._output).values())
        if any(result.kind == "run" for result in results):
            write_report(self._plan, self._output, results, self._chosen, charts=charts)
        return results

    def _seconds(self, budget: Budget, method: Method, seed: int) -> float | None:
        """The time limit of a run; None where iterations are its budget."""
        if budget.as_long_as in (None, method.name):
            return budget.seconds
        reference = next(one for one in self._plan.methods if one.name == budget.as_long_as)
        place = run_place(reference, budget, seed)  # each_run puts it first
        result = read_result(self._output / place)
        if result is None:
            raise ValueError(self._failure(place, f"{place} failed"))
        return round(result.seconds, 2)

    def _needed(self, run: Run) -> RunResult:
        """The result of a training that others need."""
        result = self._try(run)
        if result is None:
            raise ValueError(self._failure(run.place, f"{run.kind} of {run.method!r} failed"))
        return result

    def _failure(self, place: str, what: str) -> str:
        log = self._output / place / LOG_NAME
        return f"{what}, and what follows needs it; its log is {log}. Its last lines:\n{self._failed[place]}"

    def _try(self, run: Run) -> RunResult | None:
        """The result of a training, from an earlier call where there is one; None where it fails."""
        folder = self._output / run.place
        result = read_result(folder)
        if result is None:
            return self._train(run, folder)
        _check_same(run, folder, result)
        return result

    def _train(self, run: Run, folder: Path) -> RunResult | None:
        folder.mkdir(parents=True, exist_ok=True)
        command, log = self._command(run, folder), folder / LOG_NAME
        number = self._total - len(self._left) + 1
        self._show(f"[{number}/{self._total}] {run.title} ...{self._time_left()}")
        start = time.perf_counter()
        status = run_logged(command, log, keep_open=[] if self._lock is None else [self._lock])
        if status != 0:
            self._failed[run.place] = last_lines(log)
            self._left.pop(run.place)
            self._show(f"  {run.title}: failed, see {log}")
            return None
        result = collect(run, folder, time.perf_counter() - start)
        for checkpoint in (folder / RUN_FOLDER).glob("checkpoint-*"):  # of our own run, which needs them no more
            shutil.rmtree(checkpoint)
        self._done(run.place, result)
        memory = f", {result.peak_memory_mb:.0f} MiB" if result.peak_memory_mb else ""
        steps = f"{result.iterations} iterations in {result.seconds:.0f} s"
        self._show(f"  {run.title}: mIoU {100 * result.mean_iou:.2f} %, {steps}{memory}")
        return result

    def _command(self, run: Run, folder: Path) -> list[str]:
        """Write the training's recipe, and say how it is started or resumed."""
        target, recipe = folder / RUN_FOLDER, folder / RECIPE_NAME
        text = yaml.safe_dump({**run.settings, "output_dir": str(target)}, sort_keys=False, allow_unicode=True)
        resume = _resumable(target, recipe, text)
        with written_whole(recipe) as part:
            part.write_text(text, encoding="utf-8")
        words = [run.command, "--config", str(recipe), *(["--resume_from_checkpoint", "last"] if resume else [])]
        return afdcd_command(words, self._plan.processes)

    def _done(self, place: str, result: RunResult) -> None:
        self._took.setdefault(self._left.pop(place), []).append(result.wall_seconds)

    def _time_left(self) -> str:
        """As long as the same method took, else as others with that budget; empty where nothing tells."""
        total = 0.0
        for method, budget in self._left.values():
            alike = [seconds for (_, name), took in self._took.items() if name == budget for seconds in took]
            if not (known := self._took.get((method, budget)) or alike):
                return ""
            total += statistics.mean(known)
        minutes = max(1, round(total / 60))
        return f"; about {f'{minutes // 60} h {minutes % 60:02d}' if minutes >= 60 else minutes} min left"


def _resumable(run: Path, recipe: Path, text: str) -> bool:
    """Whether a stopped training with these very settings has a checkpoint to resume from.

    What one left that stopped before its first checkpoint is set aside.

    Raises:
        ValueError: The folder holds something else: a training with other settings, or files of somebody's.
    """
    if not run.is_dir() or not any(run.iterdir()):
        return False
    if not recipe.is_file():
        raise ValueError(f"{run} holds files that no comparison has written. Move them, or give another --output_dir.")
    before, now = read_yaml(recipe), parse_yaml(text)
    for settings in (before, now):
        settings.pop("output_dir", None)  # the same folder, perhaps called from elsewhere
    if before != now:
        raise ValueError(
            f"{run} holds an unfinished training with other settings: {_difference(before, now)}. Give another "
            f"--output_dir, or move or delete {run.parent} to train it again."
        )
    if any(run.glob("checkpoint-*")):
        return True
    aside = next(path for n in range(1, 10**6) if not (path := run.with_name(f"{run.name}-stopped-{n}")).exists())
    run.rename(aside)
    return False


def _check_same(run: Run, folder: Path, result: RunResult) -> None:
    """Raise ValueError where a finished training had other settings, or was timed on another machine."""
    if result.fingerprint != run.fingerprint:
        difference = _difference(json.loads(result.fingerprint), json.loads(run.fingerprint))
        raise ValueError(
            f"{folder} holds a finished training with other settings: {difference}. Give another --output_dir, or "
            "delete that folder to train it again."
        )
    if run.budget and run.budget.is_time and result.machine != machine_name():
        raise ValueError(
            f"{folder} was trained on {result.machine}, and this is {machine_name()}: seconds of two machines cannot "
            "be compared. Give another --output_dir, or continue on that machine."
        )


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return f"{key}={before.get(key)!r} instead of {now.get(key)!r}"


# May differ between merged folders: the seed, where files lie, what a run is computed with, a measured limit.
_MAY_DIFFER = {
    "seed", "data_dir", "teacher", "max_seconds", "use_cpu", "bf16", "fp16", "tf32", "torch_compile",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "dataloader_num_workers",
}  # fmt: skip


def merge_comparisons(plan: Plan, folders: Sequence[str | Path], output: str | Path) -> list[RunResult]:
    """Write one report of what several machines have finished of a plan, with any seeds.

    A budget has a table and charts for each machine, since seconds of two machines cannot be compared.

    Args:
        plan: What they compare.
        folders: The output folders, copied to this machine.
        output: Folder of the report.

    Returns:
        The results; a training that two folders hold counts once.

    Raises:
        ValueError: A folder without results, a setting that differs, or two results of one training.
    """
    merged: dict[tuple, RunResult] = {}
    settings: dict[tuple, dict[str, Any]] = {}
    for folder in map(Path, folders):
        found = [read_result(path.parent) for path in sorted(folder.glob(f"*/*/*/{RESULT_NAME}"))]
        ours = [one for one in found if one and (one.budget, one.method) in _rows(plan)]
        if not ours:
            raise ValueError(f"{folder} holds no finished run of this plan; --merge takes folders of afdcd compare.")
        for result in ours:
            row = (result.budget, result.method)
            own = {key: value for key, value in json.loads(result.fingerprint).items() if key not in _MAY_DIFFER}
            if own != (known := settings.setdefault(row, own)):
                what = f"{result.method!r} ({result.budget}) with other settings than a folder before"
                raise ValueError(f"{folder} trained {what}: {_difference(own, known)}.")
            earlier = merged.setdefault((*row, result.seed, result.machine), result)
            if earlier.mean_iou != result.mean_iou:
                raise ValueError(f"{folder} and a folder before hold {row}, seed {result.seed}; give only one of them.")
    with held_alone(output):
        write_report(plan, Path(output), list(merged.values()), {})
    return list(merged.values())


def _rows(plan: Plan) -> set[tuple[str | None, str]]:
    return {(budget.name, method.name) for budget in plan.budgets for method in plan.methods}
