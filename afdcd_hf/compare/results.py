"""What a finished training is remembered by: `cell.json` in its folder."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ..atomic_io import written_whole
from ..charts.history import load_history
from ..evaluation.results import library_versions, machine_name
from ..hub.facts_file import read_facts
from .cells import Cell, Teaching

FACTS_NAME = "cell.json"
RUN_FOLDER = "run"
# kinds of steps, which take different times
WITH_TEACHER, WITHOUT_TEACHER = "with teacher", "without teacher"
_FIRST_STEPS = 3  # of a calibration: slower than those that follow


@dataclass(frozen=True)
class CellResult:
    """One finished training.

    Attributes:
        kind, method, seed, budget: Which one it is; `budget` by name, None except for a "run".
        fingerprint: Its settings, as JSON.
        mean_iou: Fraction 0-1, of the saved network on the whole evaluation split.
        per_category_iou: Class name to IoU; None for a class that occurs in neither truth nor prediction.
        iterations: Optimizer steps.
        seconds: Wall-clock time of these, evaluations and saving left out.
        seconds_per_iteration: Mean over these.
        wall_seconds: From start to end of its process: start, checks, evaluations and saving too.
        images_per_second: Images trained on per second of `seconds`.
        peak_memory_mb: Highest on any device, in MiB.
        curve: `(seconds, mIoU)` on its way and at its end; seconds of training steps, mIoU as a fraction.
        machine, versions, date: Where, with what and when.
        step_seconds: Of a calibration: mean seconds of a step with and without the teacher, the first ones left out.
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
    seconds_per_iteration: float
    wall_seconds: float
    images_per_second: float | None
    peak_memory_mb: float | None
    curve: list[tuple[float, float]]
    machine: str
    date: str
    versions: Mapping[str, str] = field(default_factory=dict)
    step_seconds: Mapping[str, float] = field(default_factory=dict)

    def seconds_for(self, iterations: int, teaching: Teaching) -> float:
        """That so many iterations take; a kind of step that was not timed counts as the other."""
        taught, alone = self._phases(teaching)
        return iterations * (teaching.until * taught + (1 - teaching.until) * alone)

    def iterations_within(self, seconds: float, teaching: Teaching) -> int:
        """That so many seconds are expected to be enough for; the teacher's share is one of the time, as in a run."""
        taught, alone = self._phases(teaching)
        return max(1, round(seconds * (teaching.until / taught + (1 - teaching.until) / alone)))

    def _phases(self, teaching: Teaching) -> tuple[float, float]:
        """Mean seconds of a step while the teacher takes part, and afterwards."""
        taught, alone = (
            self.step_seconds.get(kind, self.seconds_per_iteration) for kind in (WITH_TEACHER, WITHOUT_TEACHER)
        )
        return taught / teaching.every + alone * (1 - 1 / teaching.every), alone


def collect(cell: Cell, folder: Path, wall_seconds: float) -> CellResult:
    """Read what a finished training has left in `folder/run`, and write it down as `folder/cell.json`."""
    run = folder / RUN_FOLDER
    training = read_facts(run).training
    scores = json.loads((run / "results.json").read_text(encoding="utf-8"))
    history = load_history(run)
    result = CellResult(
        kind=cell.kind,
        method=cell.method,
        seed=training.seed,
        budget=cell.budget.name if cell.budget else None,
        fingerprint=cell.fingerprint,
        mean_iou=scores["mean_iou"],
        per_category_iou=scores["per_category_iou"],
        iterations=training.iterations,
        seconds=training.seconds_in_steps,
        seconds_per_iteration=training.seconds_in_steps / training.iterations,
        wall_seconds=wall_seconds,
        images_per_second=training.images_per_second,
        peak_memory_mb=training.peak_memory_mb,
        curve=[*_curve(history, training.iterations), (training.seconds_in_steps, scores["mean_iou"])],
        machine=machine_name(),
        date=date.today().isoformat(),
        versions=library_versions(),
        step_seconds=_step_seconds(history) if cell.kind == "calibration" else {},
    )
    with written_whole(folder / FACTS_NAME) as part:
        part.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def read_result(folder: Path) -> CellResult | None:
    """What `collect` wrote; None where the training has not finished.

    Raises:
        ValueError: The file is not one of ours.
    """
    path = folder / FACTS_NAME
    if not path.is_file():
        return None
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return CellResult(**{**raw, "curve": [tuple(point) for point in raw["curve"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete {folder} to train that one again.") from error


def _step_times(lines: list[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """`(step, seconds per step)` of each line of the log; a line stands for the steps since the one before."""
    timed = [line for line in lines if "images_per_second" in line]
    return [(line["step"], sum(v for name, v in line.items() if name.startswith("time_"))) for line in timed]


def _step_seconds(history: list[Mapping[str, Any]]) -> dict[str, float]:
    """Mean seconds of each kind of step of a calibration, which logs every step.

    Not the median: what makes some steps slow does so in a run too, whose total is what matters.
    """
    kinds = {WITH_TEACHER: [], WITHOUT_TEACHER: []}
    for line in history:
        kinds[WITH_TEACHER if "time_teacher" in line else WITHOUT_TEACHER].append(line)
    times = {kind: [each for step, each in _step_times(lines) if step > _FIRST_STEPS] for kind, lines in kinds.items()}
    return {kind: statistics.mean(each) for kind, each in times.items() if each}


def _curve(history: list[Mapping[str, Any]], iterations: int) -> list[tuple[float, float]]:
    """`(seconds of training so far, mIoU)` of each evaluation before the last step."""
    times = _step_times(history)
    scored = [line for line in history if "eval_mean_iou" in line and line["step"] < iterations]
    return [(_elapsed(times, line["step"]), line["eval_mean_iou"]) for line in scored]


def _elapsed(times: list[tuple[int, float]], step: int) -> float:
    """Seconds of training up to a step, which may lie between two lines of the log, or after the last."""
    total, before, seconds = 0.0, 0, 0.0
    for end, seconds in times:
        total += seconds * max(min(end, step) - before, 0)
        before = end
    return total + seconds * max(step - before, 0)
