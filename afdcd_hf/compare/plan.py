"""What is to be compared: a YAML file, read and checked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..messages import close_names
from ..recipes import comparison_path, load_recipe
from ..structured_files import read_yaml

ALONE = "alone"
_OWN_KEYS = ("recipe", "teacher_recipe", "methods", "seeds", "budgets", "tuning", "evaluations", "processes")
_BUDGETS = ({"iterations"}, {"seconds"}, {"iterations", "as_long_as"})
# What every run gets from the comparison itself.
_FIXED = ("seed", "max_steps", "max_seconds", "output_dir", "resume_from_checkpoint", "config")


@dataclass(frozen=True)
class Budget:
    """What each run may spend: iterations, seconds, or as long as one of the methods takes."""

    iterations: int | None = None  # optimizer steps; with `as_long_as`, those of that method
    seconds: float | None = None  # wall-clock time of the training steps, without evaluations and saving
    as_long_as: str | None = None  # method whose time, with the same seed, every other run may spend

    @property
    def is_time(self) -> bool:
        """Whether a faster method gets more iterations."""
        return self.iterations is None or self.as_long_as is not None

    @property
    def name(self) -> str:
        """As folders and tables call it: `iterations-300`, `seconds-60` or `time-of-kd-300`."""
        if self.as_long_as:
            return f"time-of-{folder_name(self.as_long_as)}-{self.iterations}"
        return f"seconds-{self.seconds:g}" if self.is_time else f"iterations-{self.iterations}"

    @property
    def title(self) -> str:
        """In words."""
        if self.as_long_as:
            return f"each as long as {self.as_long_as} takes for {self.iterations} iterations"
        return f"{self.seconds:g} s of training each" if self.is_time else f"{self.iterations} iterations each"


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str  # "alone" is the student without a teacher
    settings: Mapping[str, Any] = field(default_factory=dict)  # recipe keys of this method only
    candidates: Sequence[Mapping[str, Any]] = ()  # tried beforehand; those with the best mIoU are added


@dataclass(frozen=True)
class Plan:
    """A whole comparison."""

    shared: Mapping[str, Any]  # recipe keys of every run: dataset, student, teacher, schedule
    methods: Sequence[Method]  # rows of the table, in order
    seeds: Sequence[int]  # each method is trained once with each
    budgets: Sequence[Budget]  # each gives a table of its own
    tuning: Mapping[str, Any]  # recipe keys of the trial runs, with seed and iterations; empty without candidates
    teacher: Mapping[str, Any] | None = None  # recipe keys of the teacher, where the comparison has to train it first
    steps: int | None = None  # `max_steps` of the shared recipe: the schedule of runs whose budget is seconds
    evaluations: int = 4  # of each run before its end, for the curve of mIoU against time
    processes: int = 1  # of each run; more than one start through torchrun

    @property
    def runs(self) -> int:
        """Trainings that fill the tables, without the teacher and tuning."""
        return len(self.methods) * len(self.seeds) * len(self.budgets)

    def narrowed(self, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Plan:
        """The plan with only some of its methods, or with other seeds; ValueError for a method that it lacks."""
        known = [method.name for method in self.methods]
        wanted = known if methods is None else methods
        for name in wanted:
            listed = f"{', '.join(known)}.{close_names(name, known)}"
            _need(name in known, f"The plan has no method {name!r}; it has {listed}")
        for reference in filter(None, (budget.as_long_as for budget in self.budgets)):
            _need(reference in wanted, f"A budget of the plan is the time of {reference!r}; keep that method.")
        some = [method for method in self.methods if method.name in wanted]
        return replace(self, methods=some, seeds=self.seeds if seeds is None else _seeds(list(seeds)))

    def described(self) -> str:
        """What would be trained, in a few lines."""
        trials = sum(len(method.candidates) for method in self.methods)
        return (
            f"methods   {'; '.join(method.name for method in self.methods)}\n"
            f"budgets   {', '.join(budget.title for budget in self.budgets)}\n"
            f"seeds     {', '.join(map(str, self.seeds))}\n"
            f"trainings {self.runs}" + (f", after {trials} to tune" if trials else "")
        )


def load_plan(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Plan:
    """Read a plan; `check_plan` checks the settings of its methods.

    Args:
        name_or_path: a plan of the package (`afdcd compare --list`) or a YAML file. Its keys are `recipe` (what the
            runs share), `methods`, `seeds`, `budgets`, and optionally `teacher_recipe`, `tuning`, `evaluations`,
            `processes`; every other key is a recipe key for all runs.
        overrides: keys that replace those of the file, for all runs.

    A plan that is not there is a FileNotFoundError, one that cannot be a ValueError.
    """
    path, overrides = comparison_path(name_or_path), overrides or {}
    raw = {**read_yaml(path), **overrides}
    try:
        return _plan(raw, has_teacher="teacher" in overrides)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def folder_name(name: str) -> str:
    """A method's name as a folder's: "feature only" is `feature-only`."""
    return "".join(letter if letter.isalnum() or letter in "._+" else "-" for letter in name)


def _need(holds: Any, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _plan(raw: dict[str, Any], has_teacher: bool) -> Plan:
    own = {key: raw.pop(key) for key in _OWN_KEYS if key in raw}
    missing = [key for key in ("methods", "seeds", "budgets") if not own.get(key)]
    _need(not missing, f"it has no {' and no '.join(missing)}; a comparison needs methods, seeds and budgets.")
    _refuse_fixed(raw, "the plan")
    recipe = load_recipe(own["recipe"]) if own.get("recipe") else {}
    shared = {key: value for key, value in {**recipe, **raw}.items() if key not in _FIXED}
    methods = [_method(str(name), settings) for name, settings in _mapping("methods", own["methods"]).items()]
    names = [method.name for method in methods]
    alike = [name for name in names if [folder_name(one) for one in names].count(folder_name(name)) > 1]
    _need(not alike, f"{' and '.join(map(repr, alike))} would lie in the same folder; rename one of the methods.")
    given = own["budgets"] if isinstance(own["budgets"], list) else [own["budgets"]]
    budgets, steps = [_budget(one, names) for one in given], recipe.get("max_steps")
    timed = any(budget.seconds for budget in budgets)
    _need(steps or not timed, "a budget in seconds needs a recipe with max_steps, the steps of its schedule.")
    tuned, tuning = any(method.candidates for method in methods), _mapping("tuning", own.get("tuning", {}))
    _need(tuning or not tuned, "methods have 'tune', but there is no 'tuning: {seed: ..., iterations: ...}'.")
    if tuning:
        _need({"seed", "iterations"} <= set(tuning), f"tuning={tuning!r} needs a seed and a number of iterations.")
        _seeds([tuning["seed"]])
        _whole("tuning.iterations", tuning["iterations"])
    # A trained teacher named on the command line takes the place of the one to train.
    teacher = None if has_teacher else _teacher(own.get("teacher_recipe"), shared)
    counts = {key: _whole(key, own[key]) for key in ("evaluations", "processes") if key in own}
    return Plan(shared, methods, _seeds(own["seeds"]), budgets, tuning, teacher, steps, **counts)


def _method(name: str, given: Any) -> Method:
    settings = _mapping(f"method {name!r}", given or {})
    candidates = settings.pop("tune", [])
    listed = isinstance(candidates, list) and all(isinstance(one, dict) and one for one in candidates)
    _need(listed, f"'tune' of {name!r} must be a list of settings, e.g. [{{kd.weight: 1}}, ...].")
    for one in (settings, *candidates):
        _refuse_fixed(one, f"method {name!r}")
        alone = name == ALONE and any(key == "loss" or "." in key for key in one)
        _need(not alone, f"{ALONE!r} is the student without a teacher; give a method with a loss another name.")
    return Method(name, settings, tuple(candidates))


def _budget(given: Any, methods: Sequence[str]) -> Budget:
    forms = "{iterations: N}, {seconds: S} or {iterations: N, as_long_as: METHOD}"
    _need(isinstance(given, dict) and set(given) in _BUDGETS, f"a budget is {forms}, not {given!r}.")
    if "iterations" in given:
        _whole("iterations", given["iterations"])
        reference = given.get("as_long_as", methods[0])
        _need(reference in methods, f"as_long_as={reference!r} is not a method; there are {', '.join(methods)}.")
        return Budget(**given)
    seconds = given["seconds"]
    possible = isinstance(seconds, (int, float)) and 0 < seconds < math.inf
    _need(possible, f"seconds={seconds!r} must be a number above 0.")
    return Budget(seconds=float(seconds))


def _teacher(given: Any, shared: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe of the teacher; where the files lie and what runs on is the same as for the student."""
    if given is None:
        return None
    settings = {"recipe": given} if isinstance(given, str) else _mapping("teacher_recipe", given)
    _need("recipe" in settings, f"teacher_recipe={given!r} must name a recipe.")
    of_both = {key: shared[key] for key in ("data_dir", "use_cpu") if key in shared}
    return {**load_recipe(settings.pop("recipe")), **of_both, **settings}


def _refuse_fixed(settings: Mapping[str, Any], what: str) -> None:
    for key in settings:
        _need(key not in _FIXED, f"{what} must not set {key}; the comparison does, for each run.")


def _seeds(seeds: Any) -> list[int]:
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    _need(whole, f"seeds={seeds!r} must be a list of whole numbers, e.g. [0, 1, 2].")
    _need(len(set(seeds)) == len(seeds), f"seeds={seeds!r} names one twice.")
    return seeds


def _mapping(name: str, given: Any) -> dict[str, Any]:
    _need(isinstance(given, dict), f"{name} must hold 'key: value' lines, not {given!r}.")
    return dict(given)


def _whole(name: str, given: Any) -> int:
    _need(type(given) is int and given >= 1, f"{name}={given!r} must be a whole number, 1 or more.")
    return given
