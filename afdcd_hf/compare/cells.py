"""The trainings of a comparison: which there are, with which recipe, and where their files lie."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from ..data.fingerprint import is_generated
from ..data.loading import load_split
from ..training.arguments import DISTILL_ARGUMENTS, TRAIN_ARGUMENTS, DataArguments, parse_arguments, training_part
from .plan import ALONE, Budget, Method, Plan, folder_name

Kind = Literal["teacher", "calibration", "tuning", "run"]
TEACHER_PLACE = "teacher"
# Half precision is refused on some CPUs, and a check must not occupy a GPU.
_CHECKED_ON_CPU = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None, "torch_compile": False}


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        kind: "run" fills the tables; the others prepare these.
        method: Name of the method; "teacher" for the teacher.
        settings: The whole recipe, without the output folder.
        place: Folder in the comparison's folder.
        budget: What it may spend, of a "run".
    """

    kind: Kind
    method: str
    settings: Mapping[str, Any]
    place: str
    budget: Budget | None = None

    @property
    def seed(self) -> int | None:
        """The recipe's; None where it names none."""
        return self.settings.get("seed")

    @property
    def command(self) -> str:
        """Of `afdcd`: which one runs it."""
        return "distill" if "loss" in self.settings else "train"

    @cached_property
    def fingerprint(self) -> str:
        """The settings in one line, keys in order, so that equal ones read equal."""
        return json.dumps(dict(self.settings), sort_keys=True, default=str)

    def arguments(self) -> list[Any]:
        """The recipe as argument dataclasses; ValueError where it has an unknown key or a value that cannot be."""
        recipe = {**self.settings, **_CHECKED_ON_CPU, "output_dir": "unused"}
        types = DISTILL_ARGUMENTS if self.command == "distill" else TRAIN_ARGUMENTS
        try:
            return parse_arguments(types, recipe, [])
        except ValueError as error:
            raise ValueError(f"{self.kind} of {self.method!r}: {error}") from error

    def find_data(self) -> None:
        """Raise ValueError or OSError where images or labels are missing; generated ones are not drawn for this."""
        data = next(one for one in self.arguments() if isinstance(one, DataArguments))
        if not is_generated(data.dataset):
            for part in ("train", "eval"):
                load_split(**data.choice(part))


@dataclass(frozen=True)
class Teaching:
    """Which steps have the teacher: every n-th one, until a share of the training is over (0: none)."""

    every: int = 1
    until: float = 1.0

    @property
    def at_times(self) -> bool:
        """Whether there are steps of both kinds."""
        return self.until > 0 and (self.every > 1 or self.until < 1)


def teacher_cell(plan: Plan) -> Cell | None:
    """The teacher's training, where the plan has one."""
    return Cell("teacher", "teacher", plan.teacher, TEACHER_PLACE) if plan.teacher else None


def tuning_cells(plan: Plan, method: Method, teacher: str | None) -> list[Cell]:
    """Short trainings, one for each candidate of a method."""
    if not method.candidates:
        return []
    extra = dict(plan.tuning)
    steps = extra.pop("iterations")
    return [
        Cell(
            "tuning",
            method.name,
            {**_recipe(plan, method, teacher, candidate), **_only_at_the_end(steps), **extra},
            tuning_place(method, number),
        )
        for number, candidate in enumerate(method.candidates, 1)
    ]


def calibration_cell(plan: Plan, method: Method, teacher: str | None, chosen: Mapping[str, Any]) -> Cell:
    """A few steps that tell how long a step takes; scored on a single image, since its score is of no use.

    Of a method that lets the teacher rest, as many steps without it as with it, so that both are timed equally well.
    """
    settings, steps = _recipe(plan, method, teacher, chosen), plan.calibration_steps
    if teaching(plan, method, chosen).at_times:
        settings |= {"distill_every": 1, "distill_until": 0.5}
        steps *= 2
    settings |= {**_only_at_the_end(steps), "logging_steps": 1, "max_eval_samples": 1, "preflight": False}
    return Cell("calibration", method.name, {**settings, "seed": plan.seeds[0]}, calibration_place(method))


def teaching(plan: Plan, method: Method, chosen: Mapping[str, Any]) -> Teaching:
    """When the teacher takes part in a method's runs."""
    settings = _recipe(plan, method, None, chosen)
    if "loss" not in settings:
        return Teaching(until=0.0)
    return Teaching(settings.get("distill_every", 1), settings.get("distill_until", 1.0))


def run_cell(
    plan: Plan,
    method: Method,
    budget: Budget,
    seed: int,
    teacher: str | None,
    chosen: Mapping[str, Any],
    steps: int,
    seconds: float | None = None,
) -> Cell:
    """One training of a table, scored and saved some times on its way.

    Of `steps` iterations; or of `seconds`, where these are given: its iterations are then expected to be `steps`.
    """
    every = steps // (plan.evaluations + 1) + 1  # the last of these stands before the end, which is scored anyway
    on_its_way = {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    settings = _recipe(plan, method, teacher, chosen)
    lines = {"logging_steps": min(settings.get("logging_steps", every), every)}  # they tell the time of an evaluation
    settings |= {"max_steps": steps, "save_total_limit": 1, **on_its_way, **lines, "seed": seed}
    settings |= {} if seconds is None else {"max_seconds": seconds}
    return Cell("run", method.name, settings, run_place(method, budget, seed), budget)


def each_trial(plan: Plan) -> Iterator[tuple[Method, int]]:
    """All trainings that tune, method by method: number of each candidate, counted from 1."""
    for method in plan.methods:
        for index in range(len(method.candidates)):
            yield method, 1 + index


def each_run(plan: Plan) -> Iterator[tuple[int, Budget, Method]]:
    """All trainings of the tables, seed by seed: what a stopped comparison has finished is complete for some seeds."""
    for seed in plan.seeds:
        for budget in plan.budgets:
            for method in plan.methods:
                yield seed, budget, method


def _recipe(plan: Plan, method: Method, teacher: str | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The shared keys with the method's own; a loss that the method names leaves out the options of others."""
    own = {**method.settings, **chosen}
    shared = dict(plan.shared)
    if method.name == ALONE:
        return {**training_part(shared), **own}
    spec = own.get("loss", shared.get("loss", "af_dcd"))
    names = {name.strip() for name in str(spec).split("+")}
    kept = {key: value for key, value in shared.items() if "." not in key or key.partition(".")[0] in names}
    return {**kept, "loss": spec, **({"teacher": teacher} if teacher else {}), **own}


def _only_at_the_end(steps: int) -> dict[str, Any]:
    return {"max_steps": steps, "eval_strategy": "no", "save_strategy": "no"}


def run_place(method: Method, budget: Budget, seed: int) -> str:
    """Folder of a run in that of the comparison."""
    return f"{budget.name}/{folder_name(method.name)}/seed-{seed}"


def tuning_place(method: Method, number: int) -> str:
    """Folder of a method's candidate, counted from 1."""
    return f"tuning/{folder_name(method.name)}/{number}"


def calibration_place(method: Method) -> str:
    """Folder of the steps that tell how fast a method is."""
    return f"calibration/{folder_name(method.name)}"


def all_places(plan: Plan) -> list[str]:
    """Folders of everything that a plan may train, in the order in which it does."""
    tuning = [tuning_place(method, number) for method, number in each_trial(plan)]
    calibrations = [calibration_place(method) for method in plan.methods]
    return [TEACHER_PLACE, *tuning, *calibrations, *(run_place(m, budget, seed) for seed, budget, m in each_run(plan))]
