"""The runs of a comparison: their order, their recipes, and the results in their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..charts.runs import load_history
from ..hub.card_facts import FACTS_NAME, RECIPE_NAME, read_facts
from ..structured_files import read_yaml
from ..training.recipe_arguments import drop_other_loss_options, parse_arguments, training_part
from .plan import ALONE, Budget, Method, Plan, folder_name

# Inside the folder of a run: its recipe, and the output folder of the training.
RUN_FOLDER = "run"
# Recipes are checked on the CPU, so as not to occupy a GPU; some CPUs lack half precision.
_CHECKED_ON_CPU = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None, "torch_compile": False}


@dataclass(frozen=True)
class Run:
    """One training: a "run" appears in the tables and has budget and seed; teacher and tuning runs come before."""

    kind: Literal["teacher", "tuning", "run"]
    subfolder: str  # relative to the comparison's folder
    method: Method
    budget: Budget | None = None
    seed: int | None = None

    @property
    def title(self) -> str:
        """Human-readable title."""
        if self.budget:
            return f"{self.budget.name} {self.method.name} seed {self.seed}"
        return self.subfolder.replace("/", " ")

    @property
    def is_prerequisite(self) -> bool:
        """Whether other runs depend on it."""
        return self.budget is None or self.budget.as_long_as == self.method.name


def all_runs(plan: Plan) -> list[Run]:
    """List the runs of a plan in order: seed by seed, with a method whose time is the budget before the others."""
    runs = [Run("teacher", "teacher", Method("teacher"))] if plan.teacher else []
    runs += [Run("tuning", subfolder, method) for method in plan.methods for subfolder in _tuning_subfolders(method)]
    for seed in plan.seeds:
        for budget in plan.budgets:
            for method in sorted(plan.methods, key=lambda method: method.name != budget.as_long_as):
                runs.append(Run("run", _run_subfolder(budget, method.name, seed), method, budget, seed))
    return runs


def _run_subfolder(budget: Budget, method: str, seed: int | None) -> str:
    return f"{budget.name}/{folder_name(method)}/seed-{seed}"


def _tuning_subfolders(method: Method) -> dict[str, Mapping[str, Any]]:
    folder = f"tuning/{folder_name(method.name)}"
    return {f"{folder}/{number}": candidate for number, candidate in enumerate(method.candidates, 1)}


def run_settings(plan: Plan, run: Run, output: Path, results: Mapping[str, RunResult]) -> dict[str, Any]:
    """Return the recipe of a run, without its output folder, given the earlier runs' results by subfolder.

    If tuning has no results yet, the first candidate is used.
    """
    if run.kind == "teacher":
        return dict(plan.teacher or {})
    teacher = str(output / "teacher" / RUN_FOLDER) if plan.teacher else None
    tried = _tuning_subfolders(run.method)
    if run.kind == "tuning":
        trial = dict(plan.tuning)
        short = {"max_steps": trial.pop("iterations"), "eval_strategy": "no", "save_strategy": "no", **trial}
        return {**_recipe(plan, run.method, teacher, tried[run.subfolder]), **short}
    assert run.budget is not None
    best = max(tried, key=lambda subfolder: results[subfolder].mean_iou if subfolder in results else 0.0, default=None)
    settings = _recipe(plan, run.method, teacher, tried[best] if best else {})
    steps = run.budget.iterations or plan.steps or 1
    every = steps // (plan.evaluations + 1) + 1  # so that none falls on the end, which is evaluated anyway
    settings |= {"max_steps": steps, "seed": run.seed, "save_total_limit": 1}
    settings |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    settings["logging_steps"] = min(settings.get("logging_steps", every), every)  # log lines time the evaluations
    reference = run.budget.as_long_as or run.method.name
    subfolder, limit = _run_subfolder(run.budget, reference, run.seed), run.budget.seconds
    if reference != run.method.name and subfolder in results:
        limit = round(results[subfolder].seconds, 2)
    return settings if limit is None else {**settings, "max_seconds": limit}


def _recipe(plan: Plan, method: Method, teacher: str | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Merge shared and own keys of a method; a method that sets a loss drops the options of other losses."""
    own = {**method.settings, **chosen}
    shared = dict(plan.shared)
    if method.name == ALONE:
        return {**training_part(shared), **own}
    spec = own.get("loss", shared.get("loss", "af_dcd"))
    return {**drop_other_loss_options(shared, spec), "loss": spec, **({"teacher": teacher} if teacher else {}), **own}


def run_arguments(run: Run, settings: Mapping[str, Any]) -> list[Any]:
    """Parse a recipe into argument dataclasses; ValueError for an unknown key or an invalid value."""
    try:
        return parse_arguments({**settings, **_CHECKED_ON_CPU, "output_dir": "unused"}, distils="loss" in settings)
    except ValueError as error:
        raise ValueError(f"{run.kind} of {run.method.name!r}: {error}") from error


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run."""

    kind: str
    method: str
    seed: int | None
    budget: str | None  # name of the budget; None unless `kind` is "run"
    fingerprint: str  # its settings without the output folder, as JSON with sorted keys
    mean_iou: float  # fraction 0-1, of the saved model on the whole evaluation split
    per_category_iou: Mapping[str, float | None]  # None for a class in neither ground truth nor prediction
    iterations: int
    seconds: float  # wall-clock time of the iterations, excluding evaluations and saving
    images_per_second: float | None  # training images per second of `seconds`
    peak_memory_mb: float | None  # highest on any device, in MiB
    curve: list[tuple[float, float]]  # `(seconds of training steps, mIoU as a fraction)` of each evaluation
    machine: str
    date: str

    @property
    def seconds_per_iteration(self) -> float:
        return self.seconds / self.iterations


def read_result(run: Run, folder: Path) -> RunResult | None:
    """Read the result of a run from its folder; None if it has not finished, ValueError if a file is damaged."""
    output = folder / RUN_FOLDER
    if not (output / FACTS_NAME).is_file() or not (folder / RECIPE_NAME).is_file():
        return None
    try:
        facts, settings, history = read_facts(output), read_yaml(folder / RECIPE_NAME), load_history(output)
        training, measured = facts.training, facts.measured
        if measured is None or not training.iterations or training.seconds_in_steps is None:
            raise ValueError("scores, steps or seconds are missing")
    except (ValueError, OSError) as error:
        raise ValueError(f"{output} cannot be read ({error}); delete {folder} to repeat that run.") from error
    settings.pop("output_dir", None)
    seconds = training.seconds_in_steps
    return RunResult(
        kind=run.kind,
        method=run.method.name,
        seed=training.seed,
        budget=run.budget.name if run.budget else None,
        fingerprint=json.dumps(settings, sort_keys=True),
        mean_iou=measured.mean_iou,
        per_category_iou=measured.per_category_iou,
        iterations=training.iterations,
        seconds=seconds,
        images_per_second=training.images_per_second,
        peak_memory_mb=training.peak_memory_mb,
        curve=[*_curve(history, training.iterations, seconds), (seconds, measured.mean_iou)],
        machine=str(training.hardware),
        date=str(measured.date),
    )


def _curve(history: list[dict[str, Any]], iterations: int, seconds: float) -> list[tuple[float, float]]:
    """Return `(seconds of training so far, mIoU)` of each evaluation before the end, interpolated between log lines."""
    steps, elapsed = [0], [0.0]
    for line in history:
        if "images_per_second" in line:
            each = sum(value for name, value in line.items() if name.startswith("time_"))
            elapsed.append(elapsed[-1] + each * (line["step"] - steps[-1]))
            steps.append(line["step"])
    scored = [line for line in history if "eval_mean_iou" in line and line["step"] < iterations]
    times = np.interp([line["step"] for line in scored], [*steps, iterations], [*elapsed, seconds])
    return [(second, line["eval_mean_iou"]) for second, line in zip(times.tolist(), scored, strict=True)]
