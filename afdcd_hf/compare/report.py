"""The outcome of a comparison as files: `results.csv`, `results.md` and charts."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_io import written_whole
from ..charts.comparison import MethodCurve, MethodScore, plot_method_scores, plot_score_over_time
from .plan import ALONE, Budget, Plan
from .results import CellResult

CSV_NAME, TABLE_NAME = "results.csv", "results.md"
_CSV_COLUMNS = (
    "kind", "budget", "method", "seed", "mean_iou", "iterations", "seconds", "seconds_per_iteration", "wall_seconds",
    "images_per_second", "peak_memory_mb", "machine", "date",
)  # fmt: skip


def write_report(
    plan: Plan,
    output: Path,
    results: Sequence[CellResult],
    chosen: Mapping[str, Mapping[str, Any]],
    *,
    charts: bool = True,
) -> list[Path]:
    """Writes what is known so far, replacing the report of an earlier call.

    Args:
        plan: What is compared.
        output: Folder of the comparison.
        results: Every finished training.
        chosen: Method to the candidate that tuning chose.
        charts: Also draws, for each budget, `mean_iou_<budget>.png` and `over_time_<budget>.png`.

    Returns:
        The files.
    """
    files = [_write_csv(output / CSV_NAME, results)]
    with written_whole(output / TABLE_NAME) as part:
        part.write_text(markdown(plan, results, chosen), encoding="utf-8")
    files.append(output / TABLE_NAME)
    for budget in plan.budgets if charts else ():
        by_method = _runs_of(plan, results, budget)
        if by_method:
            files += _draw(output, budget, by_method)
    return files


def markdown(plan: Plan, results: Sequence[CellResult], chosen: Mapping[str, Mapping[str, Any]]) -> str:
    """A table for each budget, what was tuned, and how it was measured."""
    parts = []
    for budget in plan.budgets:
        if by_method := _runs_of(plan, results, budget):
            parts.append(f"### {budget.title[0].upper()}{budget.title[1:]}\n\n" + _table(by_method))
    if any(result.kind == "tuning" for result in results):
        parts.append("### Tuning\n\n" + _tuning_table(plan, results, chosen))
    return "\n\n".join([*parts, _notes(plan, results)]) + "\n"


def gains(by_method: Mapping[str, Sequence[CellResult]], method: str) -> list[float]:
    """mIoU of a method minus that of the student alone, for each seed that both have."""
    alone = {result.seed: result.mean_iou for result in by_method.get(ALONE, ())}
    return [result.mean_iou - alone[result.seed] for result in by_method[method] if result.seed in alone]


def _runs_of(plan: Plan, results: Sequence[CellResult], budget: Budget) -> dict[str, list[CellResult]]:
    """Method, in the plan's order, to its finished runs with that budget."""
    runs = [result for result in results if result.kind == "run" and result.budget == budget.name]
    by_method = {method.name: [run for run in runs if run.method == method.name] for method in plan.methods}
    return {name: found for name, found in by_method.items() if found}


def _table(by_method: Mapping[str, Sequence[CellResult]]) -> str:
    lines = [
        "| method | mIoU %, measured | gain over alone | seeds | iterations | seconds | ms/iteration | images/s | peak memory, MiB |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in by_method.items():
        gain = "" if name == ALONE else _spread([100 * value for value in gains(by_method, name)], signed=True)
        cells = [
            _cell(name),
            _spread([100 * run.mean_iou for run in runs]),
            gain,
            str(len(runs)),
            f"{statistics.mean(run.iterations for run in runs):.0f}",
            f"{statistics.mean(run.seconds for run in runs):.1f}",
            _spread([1000 * run.seconds_per_iteration for run in runs], digits=0),  # uneven: something else ran too
            _mean([run.images_per_second for run in runs], "{:.1f}"),
            _mean([run.peak_memory_mb for run in runs], "{:.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tuning_table(plan: Plan, results: Sequence[CellResult], chosen: Mapping[str, Mapping[str, Any]]) -> str:
    tuned: dict[str, list[CellResult]] = {}
    for result in results:
        if result.kind == "tuning":
            tuned.setdefault(result.method, []).append(result)
    lines = ["| method | candidate | mIoU % | |", "|---|---|---|---|"]
    for method in plan.methods:
        for candidate, result in zip(method.candidates, tuned.get(method.name, ()), strict=False):
            text = ", ".join(f"`{key}: {value}`" for key, value in candidate.items())
            mark = "chosen" if chosen.get(method.name) == candidate else ""
            lines.append(f"| {_cell(method.name)} | {text} | {100 * result.mean_iou:.2f} | {mark} |")
    seed, steps = plan.tuning["seed"], plan.tuning["iterations"]
    lines += ["", f"Each candidate was trained once, with seed {seed}, for {steps} iterations."]
    return "\n".join(lines)


def _notes(plan: Plan, results: Sequence[CellResult]) -> str:
    runs = [result for result in results if result.kind == "run"]
    machines = ", ".join(sorted({run.machine for run in runs}))
    dates = sorted({run.date for run in runs})
    when = dates[0] if len(set(dates)) == 1 else f"{dates[0]} to {dates[-1]}"
    split, dataset = plan.shared.get("eval_split", "val"), plan.shared.get("dataset", "scenes")
    return (
        f"mIoU of the saved network on {dataset} {split}; mean ± standard deviation over seeds; the gain is taken seed "
        "by seed. Seconds are those of training steps: evaluations, checks and saving are left out. Peak memory is "
        f"that of each training's own process. {len(runs)} of {plan.runs} runs are finished. {machines}, {when}."
    )


def _write_csv(path: Path, results: Sequence[CellResult]) -> Path:
    """A row for each training; IoU as fractions 0-1, empty where it is undefined."""
    classes = list(dict.fromkeys(name for result in results for name in result.per_category_iou))
    with written_whole(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*_CSV_COLUMNS, *(f"iou_{name}" for name in classes), "settings"])
        for result in results:
            plain = [_or_empty(getattr(result, column)) for column in _CSV_COLUMNS]
            ious = [_or_empty(result.per_category_iou.get(name)) for name in classes]
            writer.writerow([*plain, *ious, result.fingerprint])
    return path


def _draw(output: Path, budget: Budget, by_method: Mapping[str, Sequence[CellResult]]) -> list[Path]:
    scores = {
        name: MethodScore([run.mean_iou for run in runs], gains(by_method, name) if name != ALONE else [])
        for name, runs in by_method.items()
    }
    curves = {name: MethodCurve(*_mean_curve(runs)) for name, runs in by_method.items()}
    return [
        plot_method_scores(scores, output / f"mean_iou_{budget.name}.png", title=budget.title),
        plot_score_over_time(curves, output / f"over_time_{budget.name}.png", title=budget.title),
    ]


def _mean_curve(runs: Sequence[CellResult]) -> tuple[list[float], list[float], list[float]]:
    """Seconds, mean and standard deviation of the mIoU, point by point over the seeds."""
    on_its_way = zip(*(run.curve[:-1] for run in runs), strict=False)  # runs of equal time may differ by a point
    points = [*on_its_way, [run.curve[-1] for run in runs]]
    seconds = [statistics.mean(second for second, _ in point) for point in points]
    scores = [[score for _, score in point] for point in points]
    return seconds, [statistics.mean(one) for one in scores], [_deviation(one) for one in scores]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float], signed: bool = False, digits: int = 2) -> str:
    if not values:
        return "not measured"
    mean = f"{statistics.mean(values):{'+' if signed else ''}.{digits}f}"
    return f"{mean} ± {_deviation(values):.{digits}f}" if len(values) > 1 else mean


def _mean(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(statistics.mean(known)) if known else "not measured"


def _or_empty(value: Any) -> Any:
    return "" if value is None else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
