"""Comparison plans: YAML files, read and checked before any training starts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..messages import close_names
from ..recipes import comparison_path, load_recipe
from ..structured_files import read_yaml

ALONE = "alone"
_OWN_KEYS = ("recipe", "teacher_recipe", "methods", "seeds", "budgets", "tuning", "evaluations", "processes")
_BUDGETS = ({"iterations"}, {"seconds"}, {"iterations", "as_long_as"})
# Set for every run by the comparison itself.
_FIXED = ("seed", "max_steps", "max_seconds", "output_dir", "resume_from_checkpoint", "config")


@dataclass(frozen=True)
class Budget:
    """The budget of each run: iterations, seconds, or the time that one of the methods takes."""

    iterations: int | None = None  # optimizer steps; with `as_long_as`, the steps of that method
    seconds: float | None = None  # wall-clock time of the training steps, excluding evaluations and saving
    as_long_as: str | None = None  # method whose time, with the same seed, is the budget of every other run

    @property
    def is_time(self) -> bool:
        """Whether a faster method gets more iterations."""
        return self.iterations is None or self.as_long_as is not None

    @property
    def name(self) -> str:
        """Name in folders and tables: `iterations-300`, `seconds-60` or `time-of-kd-300`."""
        if self.as_long_as:
            return f"time-of-{folder_name(self.as_long_as)}-{self.iterations}"
        return f"seconds-{self.seconds:g}" if self.is_time else f"iterations-{self.iterations}"

    @property
    def title(self) -> str:
        """Human-readable title."""
        if self.as_long_as:
            return f"each as long as {self.as_long_as} takes for {self.iterations} iterations"
        return f"{self.seconds:g} s of training each" if self.is_time else f"{self.iterations} iterations each"


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str  # "alone" is the student without a teacher
    settings: Mapping[str, Any] = field(default_factory=dict)  # recipe keys of this method only
    candidates: Sequence[Mapping[str, Any]] = ()  # settings tried beforehand; the one with the best mIoU is added


@dataclass(frozen=True)
class Plan:
    """A comparison plan."""

    shared: Mapping[str, Any]  # recipe keys of every run: dataset, student, teacher, schedule
    methods: Sequence[Method]  # rows of the table, in order
    seeds: Sequence[int]  # each method is trained once per seed
    budgets: Sequence[Budget]  # one table per budget
    tuning: Mapping[str, Any]  # recipe keys of the tuning runs, with seed and iterations; empty without candidates
    teacher: Mapping[str, Any] | None = None  # recipe keys of the teacher, if the comparison trains it first
    steps: int | None = None  # `max_steps` of the shared recipe: the schedule of runs with a budget in seconds
    evaluations: int = 4  # per run before its end, for the curve of mIoU over time
    processes: int = 1  # per run; more than one is launched with torchrun

    @property
    def runs(self) -> int:
        """Number of runs in the tables, without the teacher and tuning."""
        return len(self.methods) * len(self.seeds) * len(self.budgets)

    def narrowed(self, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Plan:
        """Return the plan with only some of its methods, or with other seeds; ValueError for an unknown method."""
        known = [method.name for method in self.methods]
        wanted = known if methods is None else methods
        for name in wanted:
            listed = f"{', '.join(known)}.{close_names(name, known)}"
            _require(name in known, f"The plan has no method {name!r}; it has {listed}")
        for reference in filter(None, (budget.as_long_as for budget in self.budgets)):
            _require(reference in wanted, f"A budget of the plan is the time of {reference!r}; keep that method.")
        some = [method for method in self.methods if method.name in wanted]
        return replace(self, methods=some, seeds=self.seeds if seeds is None else _seeds(list(seeds)))

    def check_overrides(self, overrides: Iterable[str]) -> None:
        """Raise ValueError if a method sets one of these keys of the command line itself, which would win."""
        for method in self.methods:
            own = {key for settings in (method.settings, *method.candidates) for key in settings}
            both = ", ".join(f"--{key}" for key in overrides if key in own)
            what = f"{both} cannot override the method {method.name!r}, which sets that itself"
            _require(not both, f"{what}: choose other --methods, or change the method in a copy of the plan.")

    def summary(self) -> str:
        """Describe what would be trained, in a few lines."""
        trials = sum(len(method.candidates) for method in self.methods)
        return (
            f"methods   {'; '.join(method.name for method in self.methods)}\n"
            f"budgets   {', '.join(budget.title for budget in self.budgets)}\n"
            f"seeds     {', '.join(map(str, self.seeds))}\n"
            f"runs      {self.runs}" + (f", after {trials} tuning runs" if trials else "")
        )


def load_plan(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a plan; `check_plan` checks the settings of its methods.

    Args:
        name_or_path: name of a bundled plan (`afdcd compare --list`) or a YAML file. Its keys are `recipe` (shared by
            all runs), `methods`, `seeds`, `budgets`, and optionally `teacher_recipe`, `tuning`, `evaluations`,
            `processes`; every other key is a recipe key for all runs.
        overrides: keys that replace those of the file, for all runs; see also `Plan.check_overrides`.

    Raises FileNotFoundError for a missing plan and ValueError for an invalid one.
    """
    path, overrides = comparison_path(name_or_path), overrides or {}
    raw = {**read_yaml(path), **overrides}
    try:
        return _plan(raw, has_teacher="teacher" in overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def folder_name(name: str) -> str:
    """Turn a method's name into a folder name: "feature only" becomes `feature-only`."""
    return "".join(letter if letter.isalnum() or letter in "._+" else "-" for letter in name)


def _require(holds: Any, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _plan(raw: dict[str, Any], has_teacher: bool) -> Plan:
    own = {key: raw.pop(key) for key in _OWN_KEYS if key in raw}
    missing = [key for key in ("methods", "seeds", "budgets") if not own.get(key)]
    _require(not missing, f"it has no {' and no '.join(missing)}; a plan needs methods, seeds and budgets.")
    _reject_fixed_keys(raw, "the plan")
    recipe = load_recipe(own["recipe"]) if own.get("recipe") else {}
    shared = {key: value for key, value in {**recipe, **raw}.items() if key not in _FIXED}
    methods = [_method(str(name), settings) for name, settings in _mapping("methods", own["methods"]).items()]
    names = [method.name for method in methods]
    alike = [name for name in names if [folder_name(other) for other in names].count(folder_name(name)) > 1]
    _require(not alike, f"{' and '.join(map(repr, alike))} would share one folder; rename one of the methods.")
    given = own["budgets"] if isinstance(own["budgets"], list) else [own["budgets"]]
    budgets, steps = [_budget(budget, names) for budget in given], recipe.get("max_steps")
    timed = any(budget.seconds for budget in budgets)
    _require(steps or not timed, "a budget in seconds needs a recipe with max_steps, the length of the schedule.")
    tuned, tuning = any(method.candidates for method in methods), _mapping("tuning", own.get("tuning", {}))
    _require(tuning or not tuned, "methods have 'tune', but there is no 'tuning: {seed: ..., iterations: ...}'.")
    if tuning:
        _require({"seed", "iterations"} <= set(tuning), f"tuning={tuning!r} needs a seed and a number of iterations.")
        _seeds([tuning["seed"]])
        _positive_int("tuning.iterations", tuning["iterations"])
    # A trained teacher given on the command line replaces the one that the plan would train.
    teacher = None if has_teacher else _teacher(own.get("teacher_recipe"), shared)
    counts = {key: _positive_int(key, own[key]) for key in ("evaluations", "processes") if key in own}
    return Plan(shared, methods, _seeds(own["seeds"]), budgets, tuning, teacher, steps, **counts)


def _method(name: str, given: Any) -> Method:
    settings = _mapping(f"method {name!r}", given or {})
    candidates = settings.pop("tune", [])
    listed = isinstance(candidates, list) and all(isinstance(each, dict) and each for each in candidates)
    _require(listed, f"'tune' of {name!r} must be a list of settings, e.g. [{{kd.weight: 1}}, ...].")
    for each in (settings, *candidates):
        _reject_fixed_keys(each, f"method {name!r}")
        alone = name == ALONE and any(key == "loss" or "." in key for key in each)
        _require(not alone, f"{ALONE!r} is the student without a teacher; give a method with a loss another name.")
    return Method(name, settings, tuple(candidates))


def _budget(given: Any, methods: Sequence[str]) -> Budget:
    forms = "{iterations: N}, {seconds: S} or {iterations: N, as_long_as: METHOD}"
    _require(isinstance(given, dict) and set(given) in _BUDGETS, f"a budget is {forms}, not {given!r}.")
    if "iterations" in given:
        _positive_int("iterations", given["iterations"])
        reference = given.get("as_long_as", methods[0])
        _require(reference in methods, f"as_long_as={reference!r} is not a method; known: {', '.join(methods)}.")
        return Budget(**given)
    seconds = given["seconds"]
    possible = isinstance(seconds, (int, float)) and 0 < seconds < math.inf
    _require(possible, f"seconds={seconds!r} must be a number above 0.")
    return Budget(seconds=float(seconds))


def _teacher(given: Any, shared: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the teacher's recipe; `data_dir` and `use_cpu` are the shared ones unless `teacher_recipe` sets them."""
    if given is None:
        return None
    settings = {"recipe": given} if isinstance(given, str) else _mapping("teacher_recipe", given)
    _require("recipe" in settings, f"teacher_recipe={given!r} must name a recipe.")
    of_both = {key: shared[key] for key in ("data_dir", "use_cpu") if key in shared}
    return {**load_recipe(settings.pop("recipe")), **of_both, **settings}


def _reject_fixed_keys(settings: Mapping[str, Any], what: str) -> None:
    for key in settings:
        _require(key not in _FIXED, f"{what} must not set {key}; the comparison sets it for each run.")


def _seeds(seeds: Any) -> list[int]:
    valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    _require(valid, f"seeds={seeds!r} must be a list of whole numbers, e.g. [0, 1, 2].")
    _require(len(set(seeds)) == len(seeds), f"seeds={seeds!r} has duplicates; give each seed once.")
    return seeds


def _mapping(name: str, given: Any) -> dict[str, Any]:
    _require(isinstance(given, dict), f"{name} must be a mapping of 'key: value' lines, not {given!r}.")
    return dict(given)


def _positive_int(name: str, given: Any) -> int:
    _require(type(given) is int and given >= 1, f"{name}={given!r} must be a whole number, 1 or more.")
    return given
