"""The trainings of a comparison: which there are, their recipes, and what the folder of a finished one tells."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..charts.runs import load_history
from ..hub.card_facts import FACTS_NAME, read_facts
from ..structured_files import read_yaml
from ..training.arguments import parse_arguments, training_part, with_options_of
from .plan import ALONE, Budget, Method, Plan, folder_name

# In the folder of a training: its settings, and what it writes itself.
RECIPE_NAME, RUN_FOLDER = "recipe.yaml", "run"
# Half precision is refused on some CPUs, and a check must not occupy a GPU.
_CHECKED_ON_CPU = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None, "torch_compile": False}


@dataclass(frozen=True)
class Run:
    """One training: a "run" fills the tables (and has budget and seed), teacher and tuning prepare them."""

    kind: Literal["teacher", "tuning", "run"]
    place: str  # its folder within the comparison's
    method: Method
    budget: Budget | None = None
    seed: int | None = None

    @property
    def title(self) -> str:
        """For people."""
        if self.budget:
            return f"{self.budget.name} {self.method.name} seed {self.seed}"
        return self.place.replace("/", " ")

    @property
    def is_needed(self) -> bool:
        """Whether others cannot be trained without it."""
        return self.budget is None or self.budget.as_long_as == self.method.name


def all_runs(plan: Plan) -> list[Run]:
    """Every training of a plan, in order: seed by seed, and a method whose time is the budget before the others."""
    runs = [Run("teacher", "teacher", Method("teacher"))] if plan.teacher else []
    runs += [Run("tuning", place, method) for method in plan.methods for place in _tuning_places(method)]
    for seed in plan.seeds:
        for budget in plan.budgets:
            for method in sorted(plan.methods, key=lambda one: one.name != budget.as_long_as):
                runs.append(Run("run", _run_place(budget, method.name, seed), method, budget, seed))
    return runs


def _run_place(budget: Budget, method: str, seed: int | None) -> str:
    return f"{budget.name}/{folder_name(method)}/seed-{seed}"


def _tuning_places(method: Method) -> dict[str, Mapping[str, Any]]:
    folder = f"tuning/{folder_name(method.name)}"
    return {f"{folder}/{number}": candidate for number, candidate in enumerate(method.candidates, 1)}


def run_settings(plan: Plan, run: Run, output: Path, results: Mapping[str, RunResult]) -> dict[str, Any]:
    """The recipe of a training, but for its output folder, from the results by place of those before it.

    Where tuning has no results yet, the first candidate is taken.
    """
    if run.kind == "teacher":
        return dict(plan.teacher or {})
    teacher = str(output / "teacher" / RUN_FOLDER) if plan.teacher else None
    tried = _tuning_places(run.method)
    if run.kind == "tuning":
        trial = dict(plan.tuning)
        short = {"max_steps": trial.pop("iterations"), "eval_strategy": "no", "save_strategy": "no", **trial}
        return {**_recipe(plan, run.method, teacher, tried[run.place]), **short}
    assert run.budget is not None
    best = max(tried, key=lambda place: results[place].mean_iou if place in results else 0.0, default=None)
    settings = _recipe(plan, run.method, teacher, tried[best] if best else {})
    steps = run.budget.iterations or plan.steps or 1
    every = steps // (plan.evaluations + 1) + 1  # the last one before the end, where there is an evaluation anyway
    settings |= {"max_steps": steps, "seed": run.seed, "save_total_limit": 1}
    settings |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    settings["logging_steps"] = min(settings.get("logging_steps", every), every)  # log lines date an evaluation
    reference = run.budget.as_long_as or run.method.name
    place, limit = _run_place(run.budget, reference, run.seed), run.budget.seconds
    if reference != run.method.name and place in results:
        limit = round(results[place].seconds, 2)
    return settings if limit is None else {**settings, "max_seconds": limit}


def _recipe(plan: Plan, method: Method, teacher: str | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The shared keys with the method's own; a method that names a loss drops the options of other losses."""
    own = {**method.settings, **chosen}
    shared = dict(plan.shared)
    if method.name == ALONE:
        return {**training_part(shared), **own}
    spec = own.get("loss", shared.get("loss", "af_dcd"))
    return {**with_options_of(shared, spec), "loss": spec, **({"teacher": teacher} if teacher else {}), **own}


def run_arguments(run: Run, settings: Mapping[str, Any]) -> list[Any]:
    """The recipe as argument dataclasses; ValueError where it has an unknown key or an invalid value."""
    try:
        return parse_arguments({**settings, **_CHECKED_ON_CPU, "output_dir": "unused"}, distils="loss" in settings)
    except ValueError as error:
        raise ValueError(f"{run.kind} of {run.method.name!r}: {error}") from error


@dataclass(frozen=True)
class RunResult:
    """One finished training."""

    kind: str
    method: str
    seed: int | None
    budget: str | None  # by name; None except for a "run"
    fingerprint: str  # its settings but for its folder, as JSON with sorted keys
    mean_iou: float  # fraction 0-1, of the saved model on the whole evaluation split
    per_category_iou: Mapping[str, float | None]  # None for a class in neither truth nor prediction
    iterations: int
    seconds: float  # wall-clock time of these, without evaluations and saving
    images_per_second: float | None  # training images per second of `seconds`
    peak_memory_mb: float | None  # highest on any device, in MiB
    curve: list[tuple[float, float]]  # `(seconds of training steps, mIoU as a fraction)` of each evaluation
    machine: str
    date: str

    @property
    def seconds_per_iteration(self) -> float:
        return self.seconds / self.iterations


def read_result(run: Run, folder: Path) -> RunResult | None:
    """What a training has left in `folder`; None where it has not finished; ValueError where a file is damaged."""
    output = folder / RUN_FOLDER
    if not (output / FACTS_NAME).is_file() or not (folder / RECIPE_NAME).is_file():
        return None
    try:
        facts, settings, history = read_facts(output), read_yaml(folder / RECIPE_NAME), load_history(output)
        training, measured = facts.training, facts.measured
        if measured is None or not training.iterations or training.seconds_in_steps is None:
            raise ValueError("no scores, or no number of steps and seconds")
    except (ValueError, OSError) as error:
        raise ValueError(f"{output} cannot be read ({error}); delete {folder} to train that one again.") from error
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
    """`(seconds of training so far, mIoU)` of each evaluation before the last step, which may lie between log lines."""
    steps, elapsed = [0], [0.0]
    for line in history:
        if "images_per_second" in line:
            each = sum(value for name, value in line.items() if name.startswith("time_"))
            elapsed.append(elapsed[-1] + each * (line["step"] - steps[-1]))
            steps.append(line["step"])
    scored = [line for line in history if "eval_mean_iou" in line and line["step"] < iterations]
    times = np.interp([line["step"] for line in scored], [*steps, iterations], [*elapsed, seconds])
    return [(second, line["eval_mean_iou"]) for second, line in zip(times.tolist(), scored, strict=True)]
