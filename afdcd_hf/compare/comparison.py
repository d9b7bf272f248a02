"""Runs a comparison, one training run after another, and continues where an earlier call stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from ..atomic_io import atomic_write
from ..cost.machine import machine_name, without_threads
from ..data.loading import load_split
from ..data.statistics import is_generated
from ..folder_lock import lock_folder
from ..hub.card_facts import FACTS_NAME, RECIPE_NAME
from ..messages import HUB_ID
from ..structured_files import parse_yaml, read_yaml
from ..training.checkpoints import resumes_or_moves_aside
from ..training.options import DataArguments
from .plan import ALONE, Plan
from .runs import RUN_FOLDER, Run, RunResult, all_runs, read_result, run_arguments, run_settings
from .table import TABLE_NAME, write_report

LOG_NAME = "log.txt"
# How long a stopped run may take to finish its step and save before it is killed.
_GRACE_SECONDS = 120.0
# Settings that may differ between merged folders: seed, paths, compute settings, a measured time limit.
_MAY_DIFFER = {
    "seed", "data_dir", "teacher", "max_seconds", "use_cpu", "bf16", "fp16", "tf32", "torch_compile",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "dataloader_num_workers",
}  # fmt: skip


class ComparisonStopped(KeyboardInterrupt):
    """A signal stopped the comparison; `exit_status` is 130 after Ctrl-C, 143 after SIGTERM."""

    def __init__(self, exit_status: int) -> None:
        super().__init__("stopped; finished runs are kept")
        self.exit_status = exit_status


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison."""

    results: list[RunResult]  # of all finished runs
    failed: Mapping[str, str]  # subfolder of each failed run -> the last lines of its log


def check_plan(plan: Plan, output: str | Path) -> None:
    """Check recipes and teacher before any training starts; ValueError or OSError if something is wrong."""
    for run in all_runs(plan):
        if run.kind != "run" or (run.budget, run.seed) == (plan.budgets[0], plan.seeds[0]):
            run_arguments(run, run_settings(plan, run, Path(output), {}))
    if plan.teacher or all(method.name == ALONE for method in plan.methods):
        return
    from transformers import AutoConfig

    teacher = plan.shared.get("teacher")
    if teacher is None:
        raise ValueError("The plan has methods with a teacher, but neither 'teacher' nor 'teacher_recipe'.")
    if not Path(teacher).is_dir() and not HUB_ID.fullmatch(teacher):
        raise FileNotFoundError(f"teacher={teacher!r} is neither a local folder nor a Hub id (owner/name).")
    AutoConfig.from_pretrained(teacher, trust_remote_code=False)


def check_data(plan: Plan) -> None:
    """Check that the images and labels of all runs exist; ValueError or OSError if some are missing."""
    run = all_runs(plan)[-1]
    arguments = run_arguments(run, run_settings(plan, run, Path(), {}))
    data = next(args for args in arguments if isinstance(args, DataArguments))
    if not is_generated(data.dataset):  # generated images cannot be missing
        for part in ("train", "eval"):
            load_split(**data.choice(part))


def run_comparison(plan: Plan, output: str | Path, show: Callable[[str], None] = lambda line: None) -> Outcome:
    """Train the unfinished runs of a plan, and write table, CSV and charts.

    The teacher comes first, if the plan has one, then the tuning candidates of each method, then the runs, seed by
    seed. Each run is a separate process with a log in its folder. Finished runs are not repeated.

    Args:
        plan: what to compare.
        output: folder for everything; created if missing.
        show: called with a line when a run starts, and with another when it ends.

    Returns:
        The results and the failed runs. A failed run does not stop the others, unless they depend on it.

    Raises:
        ValueError: an invalid recipe, an earlier run with different settings, a time budget continued on a different
            machine, or a failed run that others depend on.
        FileNotFoundError: images, labels or the teacher are missing.
        FileExistsError: another comparison is running in this folder.
        ComparisonStopped: a signal stopped it; a second call continues.
    """
    output = Path(output)
    with lock_folder(output) as lock:
        check_plan(plan, output)
        check_data(plan)
        runs, failed = all_runs(plan), dict[str, str]()
        found = {run.subfolder: read_result(run, output / run.subfolder) for run in runs}
        results = {subfolder: result for subfolder, result in found.items() if result is not None}

        def report(charts: bool) -> list[RunResult]:
            ordered = [results[run.subfolder] for run in runs if run.subfolder in results]
            if any(result.kind == "run" for result in ordered):
                write_report(plan, output, ordered, charts=charts)
            return ordered

        for number, run in enumerate(runs, 1):
            folder, settings = output / run.subfolder, run_settings(plan, run, output, results)
            resume = _resumable(folder / RUN_FOLDER, folder / RECIPE_NAME, _yaml(settings))
            if run.subfolder in results:
                before, now = results[run.subfolder].machine, machine_name()
                if plan.processes > 1:  # torchrun sets the number of threads per process
                    before, now = without_threads(before), without_threads(now)
                if run.budget and run.budget.is_time and before != now:
                    what = f"{folder} was trained on {before}, but this machine is {now}"
                    raise ValueError(f"{what}: times of different machines cannot be compared; continue there.")
                continue
            show(f"[{number}/{len(runs)}] {run.title} ...")
            result, log = _train(run, settings, folder, resume, plan.processes, lock), folder / LOG_NAME
            if result is not None:
                results[run.subfolder] = result
                memory = f", {result.peak_memory_mb:.0f} MiB" if result.peak_memory_mb else ""
                steps = f"{result.iterations} iterations in {result.seconds:.0f} s"
                show(f"  {run.title}: mIoU {100 * result.mean_iou:.2f} %, {steps}{memory}")
            else:
                failed[run.subfolder] = last_lines(log)
                if run.is_prerequisite:
                    what = f"{run.subfolder} failed, and other runs depend on it; its log is {log}"
                    raise ValueError(f"{what}. Its last lines:\n{failed[run.subfolder]}")
                show(f"  {run.title}: failed, see {log}")
            report(charts=False)
        return Outcome(report(charts=True), failed)


def _yaml(settings: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)


def _train(
    run: Run, settings: Mapping[str, Any], folder: Path, resume: bool, processes: int, lock: int | None
) -> RunResult | None:
    """Start or resume a run and wait for it; None if it fails."""
    target, recipe = folder / RUN_FOLDER, folder / RECIPE_NAME
    with atomic_write(recipe) as part:
        part.write_text(_yaml({**settings, "output_dir": str(target)}), encoding="utf-8")
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"] if processes > 1 else []
    words = ["distill" if "loss" in settings else "train", "--config", str(recipe)]
    command = [sys.executable, "-m", *launcher, "afdcd_hf.cli", *words]
    command += ["--resume_from_checkpoint", "last"] if resume else []
    if run_logged(command, folder / LOG_NAME, [] if lock is None else [lock]) != 0:
        return None
    result = read_result(run, folder)
    for checkpoint in target.glob("checkpoint-*"):  # no longer needed
        shutil.rmtree(checkpoint)
    return result


def run_logged(command: Sequence[str], log: Path, keep_open: Sequence[int] = ()) -> int:
    """Run a command, append its output to a log, and return its exit status; it inherits the descriptors `keep_open`.

    On SIGINT or SIGTERM the command is asked to stop; once it has, ComparisonStopped is raised.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise ComparisonStopped(128 + number)

    before = signal.signal(signal.SIGTERM, stop)  # raises in the main thread, as SIGINT does
    with log.open("ab") as output:
        # In a new session, because Ctrl-C would also reach it directly, and a second signal kills a run at once.
        child = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=keep_open
        )
        try:
            return child.wait()
        except KeyboardInterrupt as error:
            raise ComparisonStopped(getattr(error, "exit_status", 130)) from None
        finally:
            if child.poll() is None:  # let it save and stop; kill its process group if it does not
                child.send_signal(signal.SIGTERM)
                try:
                    child.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
            signal.signal(signal.SIGTERM, before)


def last_lines(log: Path, lines: int = 5) -> str:
    """Return the last lines of a log, for error messages."""
    text = log.read_bytes()[-4000:].decode("utf-8", errors="replace").replace("\r", "\n")  # from progress bars
    return "\n".join([line.strip() for line in text.split("\n") if line.strip()][-lines:])


def _resumable(run: Path, recipe: Path, text: str) -> bool:
    """Whether the folder holds a complete checkpoint or a finished run with the settings of `text`.

    A run that stopped before its first checkpoint is renamed; any other content of the folder raises ValueError.
    """
    if not run.is_dir() or not any(run.iterdir()):
        return False
    if not recipe.is_file():
        raise ValueError(f"{run} holds files that no comparison has written. Move them, or give another --output_dir.")
    before, now = read_yaml(recipe), parse_yaml(text)
    for settings in (before, now):
        settings.pop("output_dir", None)  # the same folder, but a relative path may differ
    if before != now:
        what = f"{run.parent} holds a run with different settings: {_difference(before, now)}"
        raise ValueError(f"{what}. Give another --output_dir, or move or delete that folder to repeat the run.")
    return (run / FACTS_NAME).is_file() or resumes_or_moves_aside(run)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
    return f"{key}={before.get(key)!r} instead of {now.get(key)!r}"


def merge_comparisons(plan: Plan, folders: Sequence[str | Path], output: str | Path) -> list[RunResult]:
    """Write one report on the finished runs of a plan from several machines, with any seeds.

    Each budget has a table and charts per machine, since times of different machines cannot be compared. A run in two
    folders counts once. ValueError if a folder has no results, or if settings or results of a run differ;
    FileExistsError if `output` has a report.
    """
    if (report := Path(output) / TABLE_NAME).exists():
        raise FileExistsError(f"{report} exists; give a new --output_dir for the report on several folders.")
    rows = {Path(run.subfolder).parent: run for run in all_runs(plan) if run.kind == "run"}
    merged: dict[tuple, RunResult] = {}
    known: dict[tuple, dict[str, Any]] = {}
    begun, finished = set[Path](), set[Path]()  # below the folders
    for folder in map(Path, folders):
        places = [(run, place) for row, run in rows.items() for place in sorted((folder / row).glob("seed-*"))]
        read = {place.relative_to(folder): read_result(run, place) for run, place in places}
        found = [result for result in read.values() if result is not None]
        begun |= read.keys()
        finished |= {place for place, result in read.items() if result is not None}
        if not found:
            raise ValueError(f"{folder} holds no finished run of this plan; --merge takes folders of afdcd compare.")
        for result in found:
            row = (result.budget, result.method)
            own = {key: value for key, value in json.loads(result.fingerprint).items() if key not in _MAY_DIFFER}
            if own != known.setdefault(row, own):
                what = f"{result.method!r} ({result.budget}) with different settings than an earlier folder"
                raise ValueError(f"{folder} trained {what}: {_difference(own, known[row])}.")
            earlier = merged.setdefault((*row, result.seed, result.machine), result)
            if earlier.mean_iou != result.mean_iou:
                raise ValueError(f"{folder} and an earlier folder differ in {row}, seed {result.seed}; give only one.")
    with lock_folder(output):
        write_report(plan, Path(output), list(merged.values()), begun=len(merged) + len(begun - finished))
    return list(merged.values())
