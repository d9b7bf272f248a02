"""The trainings of a comparison: their recipes, their folders, and what is kept of a finished one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..atomic_io import written_whole
from ..charts.runs import load_history
from ..evaluation.results import library_versions, machine_name
from ..hub.card_facts import read_facts
from ..structured_files import read_json
from ..training.arguments import parse_arguments, training_part
from .plan import ALONE, Budget, Method, Plan, folder_name

RESULT_NAME, RUN_FOLDER, TEACHER_PLACE = "result.json", "run", "teacher"
# Half precision is refused on some CPUs, and a check must not occupy a GPU.
_CHECKED_ON_CPU = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None, "torch_compile": False}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        kind: A "run" fills the tables; teacher and tuning prepare them.
        method: Name of the method; "teacher" for the teacher.
        settings: The whole recipe, without the output folder.
        place: Its folder within the comparison's.
        budget: Of a "run".
    """

    kind: Literal["teacher", "tuning", "run"]
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
        """The command of `afdcd` that runs it."""
        return "distill" if "loss" in self.settings else "train"

    @property
    def title(self) -> str:
        """For people."""
        if self.budget:
            return f"{self.budget.name} {self.method} seed {self.seed}"
        return f"tuning {self.method} {self.place.rpartition('/')[2]}" if self.kind == "tuning" else self.kind

    @cached_property
    def fingerprint(self) -> str:
        """The settings as JSON with sorted keys: equal for equal settings."""
        return json.dumps(dict(self.settings), sort_keys=True, default=str)

    def arguments(self) -> list[Any]:
        """The recipe as argument dataclasses; ValueError where it has an unknown key or an invalid value."""
        recipe = {**self.settings, **_CHECKED_ON_CPU, "output_dir": "unused"}
        try:
            return parse_arguments(recipe, distils=self.command == "distill")
        except ValueError as error:
            raise ValueError(f"{self.kind} of {self.method!r}: {error}") from error


def teacher_run(plan: Plan) -> Run | None:
    """The teacher's training, where the plan has one."""
    return Run("teacher", "teacher", plan.teacher, TEACHER_PLACE) if plan.teacher else None


def tuning_runs(plan: Plan, method: Method, teacher: str | None) -> list[Run]:
    """Short trainings, one for each candidate of a method."""
    if not method.candidates or plan.tuning is None:
        return []
    extra = dict(plan.tuning)
    settings = {"max_steps": extra.pop("iterations"), "eval_strategy": "no", "save_strategy": "no", **extra}
    return [
        Run("tuning", method.name, {**_recipe(plan, method, teacher, candidate), **settings}, place)
        for candidate, place in zip(method.candidates, tuning_places(method), strict=True)
    ]


def table_run(
    plan: Plan,
    method: Method,
    budget: Budget,
    seed: int,
    teacher: str | None = None,
    chosen: Mapping[str, Any] | None = None,
    seconds: float | None = None,
) -> Run:
    """One training of a table, evaluated and saved `plan.evaluations` times before its end.

    Args:
        teacher: Folder of the teacher; None leaves it to the recipe.
        chosen: Settings that tuning chose.
        seconds: Time limit, of a budget in time; the schedule follows the clock then.
    """
    steps = budget.iterations or plan.steps or 1
    every = steps // (plan.evaluations + 1) + 1  # the last one before the end, where there is an evaluation anyway
    settings = _recipe(plan, method, teacher, chosen or {})
    settings |= {"max_steps": steps, "seed": seed, "save_total_limit": 1}
    settings |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    settings["logging_steps"] = min(settings.get("logging_steps", every), every)  # log lines date an evaluation
    settings |= {} if seconds is None else {"max_seconds": seconds}
    return Run("run", method.name, settings, run_place(method, budget, seed), budget)


def _recipe(plan: Plan, method: Method, teacher: str | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The shared keys with the method's own; a method that names a loss drops the options of other losses."""
    own = {**method.settings, **chosen}
    shared = dict(plan.shared)
    if method.name == ALONE:
        return {**training_part(shared), **own}
    spec = own.get("loss", shared.get("loss", "af_dcd"))
    names = {name.strip().rpartition(":")[2] for name in str(spec).split("+")}  # of my_file.py:MyLoss the class
    kept = {key: value for key, value in shared.items() if "." not in key or key.partition(".")[0] in names}
    return {**kept, "loss": spec, **({"teacher": teacher} if teacher else {}), **own}


def run_place(method: Method, budget: Budget, seed: int) -> str:
    """Folder of a run within the comparison's."""
    return f"{budget.name}/{folder_name(method.name)}/seed-{seed}"


def tuning_places(method: Method) -> list[str]:
    """Folders of a method's candidates."""
    return [f"tuning/{folder_name(method.name)}/{number}" for number in range(1, 1 + len(method.candidates))]


def each_run(plan: Plan) -> Iterator[tuple[int, Budget, Method]]:
    """All trainings of the tables, seed by seed; the method whose time is the budget comes before the others."""
    for seed in plan.seeds:
        for budget in plan.budgets:
            for method in sorted(plan.methods, key=lambda one: one.name != budget.as_long_as):
                yield seed, budget, method


def all_places(plan: Plan) -> dict[str, tuple[str, str]]:
    """Folder of every training of a plan in order -> method and budget (or kind): what tells how long it takes."""
    places = {TEACHER_PLACE: ("teacher", "teacher")} if plan.teacher else {}
    places |= {place: (method.name, "tuning") for method in plan.methods for place in tuning_places(method)}
    return places | {run_place(m, budget, seed): (m.name, budget.name) for seed, budget, m in each_run(plan)}


@dataclass(frozen=True)
class RunResult:
    """One finished training.

    Attributes:
        kind, method, seed, budget: Which one; `budget` by name, None except for a "run".
        fingerprint: Its settings, as JSON.
        mean_iou: Fraction 0-1, of the saved model on the whole evaluation split.
        per_category_iou: Class name to IoU; None for a class in neither truth nor prediction.
        iterations: Optimizer steps.
        seconds: Wall-clock time of these, without evaluations and saving.
        wall_seconds: From start to end of its process.
        images_per_second: Training images per second of `seconds`.
        peak_memory_mb: Highest on any device, in MiB.
        curve: `(seconds of training steps, mIoU as a fraction)` of each evaluation.
        machine, versions, date: Where, with what and when.
    """

    kind: str
    method: str
    seed: int | None
    budget: str | None
    fingerprint: str
    mean_iou: float
    per_category_iou: Mapping[str, float | None]
    iterations: int
    seconds: float
    wall_seconds: float
    images_per_second: float | None
    peak_memory_mb: float | None
    curve: list[tuple[float, float]]
    machine: str
    date: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds_per_iteration(self) -> float:
        return self.seconds / self.iterations


def collect(run: Run, folder: Path, wall_seconds: float) -> RunResult:
    """Read what a finished training has left in `folder/run`, and write it down as `folder/result.json`."""
    output = folder / RUN_FOLDER
    training = read_facts(output).training
    if training is None or not training.iterations or training.seconds_in_steps is None:
        raise ValueError(f"{output} does not say how many steps its training had, and how long they took.")
    scores: dict[str, Any] = read_json(output / "results.json", "the scores of a run")
    last = (training.seconds_in_steps, scores["mean_iou"])
    result = RunResult(
        kind=run.kind,
        method=run.method,
        seed=training.seed,
        budget=run.budget.name if run.budget else None,
        fingerprint=run.fingerprint,
        mean_iou=scores["mean_iou"],
        per_category_iou=scores["per_category_iou"],
        iterations=training.iterations,
        seconds=training.seconds_in_steps,
        wall_seconds=wall_seconds,
        images_per_second=training.images_per_second,
        peak_memory_mb=training.peak_memory_mb,
        curve=[*_curve(load_history(output), training.iterations), last],
        machine=machine_name(),
        date=date.today().isoformat(),
        versions=library_versions(),
    )
    with written_whole(folder / RESULT_NAME) as part:
        part.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def read_result(folder: Path) -> RunResult | None:
    """What `collect` wrote; None where the training has not finished; ValueError where the file is damaged."""
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    try:
        raw: dict[str, Any] = read_json(path, "the result of a run")
        return RunResult(**{**raw, "curve": [tuple(point) for point in raw["curve"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {folder} to train that one again.") from error


def _curve(history: list[dict[str, Any]], iterations: int) -> list[tuple[float, float]]:
    """`(seconds of training so far, mIoU)` of each evaluation before the last step."""
    timed = [line for line in history if "images_per_second" in line]
    times = [(line["step"], sum(v for name, v in line.items() if name.startswith("time_"))) for line in timed]
    scored = [line for line in history if "eval_mean_iou" in line and line["step"] < iterations]
    return [(_elapsed(times, line["step"]), line["eval_mean_iou"]) for line in scored]


def _elapsed(times: list[tuple[int, float]], step: int) -> float:
    """Seconds up to a step, from `(step, seconds per step since the entry before)`; it may lie between two entries."""
    total, before, seconds = 0.0, 0, 0.0
    for end, seconds in times:
        total += seconds * max(min(end, step) - before, 0)
        before = end
    return total + seconds * max(step - before, 0)
