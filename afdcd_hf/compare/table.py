"""The report of a comparison: `results.csv`, `results.md` and charts."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_io import atomic_write
from ..charts.runs import plot_method_scores, plot_score_over_time
from ..metrics.confusion_csv import text_cell
from .plan import ALONE, Plan
from .runs import RunResult

CSV_NAME, TABLE_NAME = "results.csv", "results.md"
_CSV_COLUMNS = (
    "kind", "budget", "method", "seed", "mean_iou", "iterations", "seconds", "seconds_per_iteration",
    "images_per_second", "peak_memory_mb", "machine", "date",
)  # fmt: skip
_HEADER = (
    "method", "mIoU %, measured", "gain over alone", "seeds", "iterations", "seconds", "ms/iteration", "images/s",
    "peak memory, MiB",
)  # fmt: skip
_Runs = Mapping[str, Sequence[RunResult]]  # per method, in the plan's order


def write_report(
    plan: Plan, output: Path, results: Sequence[RunResult], *, charts: bool = True, begun: int | None = None
) -> None:
    """Write the report on the results, of which at least one is a "run"; an earlier report is overwritten.

    With `charts`, `mean_iou_<budget>.png` and `over_time_<budget>.png` are drawn too. The report counts finished runs
    out of those that were `begun`, by default all of the plan.
    """
    tables = _tables(plan, results)
    _write_csv(output / CSV_NAME, results)
    parts = [f"### {title[0].upper()}{title[1:]}\n\n{_table(runs)}" for title, _, runs in tables]
    if any(result.kind == "tuning" for result in results):
        parts.append("### Tuning\n\n" + _tuning_table(plan, results))
    with atomic_write(output / TABLE_NAME) as part:
        part.write_text("\n\n".join([*parts, _notes(plan, results, begun or plan.runs)]) + "\n", encoding="utf-8")
    for title, name, runs in tables if charts else ():
        scores, heading = {}, f"{_data(plan.shared)}: {title}"
        for method, own in runs.items():
            gains = _gains(runs, method)
            scores[method] = [run.mean_iou for run in own], statistics.mean(gains) if gains else None
        curves = {method: _mean_curve(own) for method, own in runs.items()}
        plot_method_scores(scores, output / f"mean_iou_{name}.png", heading)
        plot_score_over_time(curves, output / f"over_time_{name}.png", heading)


def _data(settings: Mapping[str, Any]) -> str:
    """Dataset and split that runs with these recipe keys are scored on."""
    return f"{Path(settings.get('dataset', 'scenes')).name} {settings.get('eval_split', 'val')}"


def _gains(runs: _Runs, method: str) -> list[float]:
    """Return the method's mIoU minus that of the student alone, for each common seed; empty for the student alone."""
    alone = {result.seed: result.mean_iou for result in runs.get(ALONE, ()) if method != ALONE}
    return [result.mean_iou - alone[result.seed] for result in runs[method] if result.seed in alone]


def _tables(plan: Plan, results: Sequence[RunResult]) -> list[tuple[str, str, _Runs]]:
    """Return title, file name suffix and runs of each table: one per budget and machine."""
    tables: list[tuple[str, str, _Runs]] = []
    for budget in plan.budgets:
        of_budget = [result for result in results if result.kind == "run" and result.budget == budget.name]
        machines = list(dict.fromkeys(result.machine for result in of_budget))
        for number, machine in enumerate(machines, 1):
            runs: dict[str, list[RunResult]] = {}
            for method in plan.methods:
                if own := [run for run in of_budget if (run.machine, run.method) == (machine, method.name)]:
                    runs[method.name] = own
            where, suffix = (f", on {machine}", f"_{number}") if len(machines) > 1 else ("", "")
            tables.append((budget.title + where, budget.name + suffix, runs))
    return tables


def _table(runs: _Runs) -> str:
    lines = [_line(_HEADER), "|---" * len(_HEADER) + "|"]
    for name, own in runs.items():
        cells = [
            name.replace("|", "\\|"),
            _spread([100 * run.mean_iou for run in own], ".2f"),
            "" if name == ALONE else _spread([100 * value for value in _gains(runs, name)], ".2f", sign="+"),
            str(len(own)),
            f"{statistics.mean(run.iterations for run in own):.0f}",
            f"{statistics.mean(run.seconds for run in own):.1f}",
            _spread([1000 * run.seconds_per_iteration for run in own], ".0f"),  # a large spread reveals other load
            _mean([run.images_per_second for run in own], ".1f"),
            _mean([run.peak_memory_mb for run in own], ".0f"),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def _tuning_table(plan: Plan, results: Sequence[RunResult]) -> str:
    lines = [_line(("method", "candidate", "mIoU %", "")), "|---|---|---|---|"]
    for method in plan.methods:
        tried = [result for result in results if result.kind == "tuning" and result.method == method.name]
        for candidate, result in zip(method.candidates, tried, strict=False):
            text = ", ".join(f"`{key}: {value}`" for key, value in candidate.items())
            mark = "chosen" if result is max(tried, key=lambda run: run.mean_iou) else ""
            lines.append(_line((method.name.replace("|", "\\|"), text, f"{100 * result.mean_iou:.2f}", mark)))
    how = f"with seed {plan.tuning['seed']}, for {plan.tuning['iterations']} iterations"
    scored_on = _data({**plan.shared, **plan.tuning})
    return "\n".join([*lines, "", f"Each candidate was trained once, {how}, and scored on images of {scored_on}."])


def _notes(plan: Plan, results: Sequence[RunResult], total: int) -> str:
    runs = [result for result in results if result.kind == "run"]
    machines, dates = ", ".join(sorted({run.machine for run in runs})), sorted({run.date for run in runs})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"mIoU of the saved model on {_data(plan.shared)}; mean ± standard deviation over seeds; the gain is computed "
        "per seed. Seconds are those of training steps: evaluations, checks and saving are excluded. Peak memory is "
        f"that of each run's own process. {len(runs)} of {total} runs are finished. {machines}, {when}."
    )


def _write_csv(path: Path, results: Sequence[RunResult]) -> None:
    """Write one row per run; IoU as fractions 0-1, empty if undefined."""
    classes = list(dict.fromkeys(name for result in results for name in result.per_category_iou))
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_CSV_COLUMNS, *(f"iou_{name}" for name in classes), "settings"])
        for result in results:
            plain = [getattr(result, column) for column in _CSV_COLUMNS]
            row = [*plain, *(result.per_category_iou.get(name) for name in classes), result.fingerprint]
            writer.writerow([text_cell(cell) if isinstance(cell, str) else cell for cell in row])  # None becomes empty


def _mean_curve(runs: Sequence[RunResult]) -> list[tuple[float, float, float]]:
    """Return seconds, mean and standard deviation of the mIoU over the seeds, for each evaluation."""
    points = [*zip(*(run.curve[:-1] for run in runs), strict=False)]  # runs with a time budget may differ by a point
    curves = [zip(*point, strict=True) for point in [*points, [run.curve[-1] for run in runs]]]
    return [(statistics.mean(seconds), statistics.mean(scores), _deviation(scores)) for seconds, scores in curves]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float], form: str, sign: str = "") -> str:
    mean = _mean(values, sign + form)
    return f"{mean} ± {_deviation(values):{form}}" if len(values) > 1 else mean


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):{form}}" if known else "not measured"
