"""Running a comparison: what is trained, kept, retried and written. All runs but those of one test are stand-ins."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from afdcd_hf.cli import main
from afdcd_hf.compare import comparison, table
from afdcd_hf.compare.comparison import ComparisonStopped, last_lines, merge_comparisons, run_comparison, run_logged
from afdcd_hf.compare.plan import load_plan
from afdcd_hf.compare.runs import all_runs, read_result
from afdcd_hf.cost.machine import machine_name
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.hub.card_facts import CardFacts, DatasetFacts, MeasuredResults, TrainingFacts, write_facts
from afdcd_hf.training.checkpoints import mark_complete

PLAN = {
    "recipe": "quickstart",
    "warmup_steps": 2,
    "teacher_recipe": "quickstart_teacher",
    "methods": {"alone": None, "kd": {"loss": "kd", "tune": [{"kd.weight": 0.5}, {"kd.weight": 2.0}]}},
    "seeds": [0, 1],
    "budgets": [{"iterations": 40}, {"seconds": 6}],
    "tuning": {"seed": 100, "iterations": 10, "eval_split": "train"},
    "evaluations": 1,
}


class StandIns:
    """Replaces training: writes the files of a run. A step takes 0.1 s, or 0.2 s with a teacher."""

    def __init__(self):
        self.trained, self.resumed, self.fail, self.stop = [], [], None, None
        self.machine = machine_name()

    def __call__(self, command, log, keep_open):
        recipe = yaml.safe_load(Path(command[command.index("--config") + 1]).read_text())
        place = str(Path(recipe["output_dir"]).parent)
        self.trained.append(place)
        self.resumed += [place] * ("--resume_from_checkpoint" in command)
        log.write_text("first line\nlast line\n")
        if self.stop and self.stop in place:
            checkpoint = Path(recipe["output_dir"]) / "checkpoint-5"
            checkpoint.mkdir(parents=True)
            mark_complete(checkpoint, {})
            raise ComparisonStopped(143)
        if self.fail and self.fail in place:
            return 1
        self._leave(recipe, command[command.index("--config") - 1])
        return 0

    def _leave(self, recipe, word):
        run, each = Path(recipe["output_dir"]), 0.2 if word == "distill" else 0.1
        steps = round(recipe["max_seconds"] / each) if "max_seconds" in recipe else recipe["max_steps"]
        run.mkdir(parents=True, exist_ok=True)
        iou = 0.3 + 0.001 * recipe.get("seed", 42) + 0.1 * recipe.get("kd.weight", 0) + 0.0001 * steps
        lines = [{"step": step, "images_per_second": 8 / each, "time_data": each} for step in range(1, steps + 1)]
        (run / "trainer_state.json").write_text(
            json.dumps({"log_history": [*lines, {"step": steps // 2, "eval_mean_iou": iou / 2}]})
        )
        scores = MeasuredResults(iou, per_category_iou={"sky": iou, "car": None}, date="2026-11-29")
        training = TrainingFacts(
            seed=recipe.get("seed"), iterations=steps, seconds_in_steps=each * steps,
            images_per_second=8 / each, peak_memory_mb=1000.0, hardware=self.machine,
        )  # fmt: skip
        write_facts(run, CardFacts("m", "a", dataset=DatasetFacts("scenes"), measured=scores, training=training))
        (run / "checkpoint-7").mkdir(exist_ok=True)


@pytest.fixture
def stand_ins(monkeypatch):
    stand_ins = StandIns()
    monkeypatch.setattr(comparison, "run_logged", stand_ins)
    for name in ("plot_method_scores", "plot_score_over_time"):  # drawn once, for `done`
        monkeypatch.setattr(table, name, lambda values, path, title: path.touch())
    return stand_ins


def write_plan(folder, **changes):
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
    return load_plan(folder / "plan.yaml")


@pytest.fixture
def plan(tmp_path):
    return partial(write_plan, tmp_path)


def recipe_of(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def moved(source, target):
    """A copy of a comparison, with the paths in its recipes adjusted."""
    shutil.copytree(source, target)
    for path in target.rglob("recipe.yaml"):
        path.write_text(path.read_text().replace(str(source), str(target)))
    return target


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished comparison, to read or copy."""
    folder, stand_ins = tmp_path_factory.mktemp("done"), StandIns()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "run_logged", stand_ins)
        outcome = run_comparison(write_plan(folder), folder / "out")
    return SimpleNamespace(out=folder / "out", outcome=outcome, trained=stand_ins.trained)


def test_every_run_is_trained_once_in_order_with_the_best_candidate(done):
    places = [Path(place).relative_to(done.out).parts[0] for place in done.trained]
    each_seed = ["iterations-40", "iterations-40", "seconds-6", "seconds-6"]
    assert places == ["teacher", "tuning", "tuning", *each_seed, *each_seed]
    assert done.outcome.failed == {} and len(done.outcome.results) == 11
    assert not list(done.out.rglob("checkpoint-*"))  # of finished runs
    recipe, timed = (recipe_of(done.out / f"{budget}/kd/seed-0") for budget in ("iterations-40", "seconds-6"))
    assert (
        "with seed 100, for 10 iterations, and scored on images of scenes train"
        in (done.out / "results.md").read_text()
    )
    assert recipe["kd.weight"] == 2.0 and recipe["teacher"] == str(done.out / "teacher/run")
    assert (recipe.get("max_seconds"), timed["max_seconds"]) == (None, 6.0)


def test_the_time_of_a_method_can_be_the_budget_of_all(plan, stand_ins, tmp_path):
    outcome = run_comparison(plan(budgets={"iterations": 50, "as_long_as": "kd"}, seeds=[1]), tmp_path / "out")
    assert {one.method: one.iterations for one in outcome.results if one.kind == "run"} == {"alone": 100, "kd": 50}
    alone, kd = (recipe_of(tmp_path / f"out/time-of-kd-50/{method}/seed-1") for method in ("alone", "kd"))
    assert alone.pop("max_seconds") == pytest.approx(10) and "max_seconds" not in kd
    assert alone["max_steps"] == kd["max_steps"] == 50


def test_a_stopped_comparison_resumes_the_unfinished_run_unless_its_settings_differ(plan, stand_ins, tmp_path):
    stand_ins.stop = "iterations-40/kd/seed-0"
    with pytest.raises(ComparisonStopped):
        run_comparison(plan(), tmp_path / "out")
    assert "1 of 8 runs are finished" in (tmp_path / "out/results.md").read_text()
    stand_ins.stop = None
    moved(tmp_path / "out", tmp_path / "other")
    shutil.rmtree(tmp_path / "other/iterations-40/alone")
    with pytest.raises(ValueError, match="seed-0 holds a run with different settings: eval_steps=21 instead of 11"):
        run_comparison(plan(evaluations=3), tmp_path / "other")
    assert (tmp_path / "other/iterations-40/kd/seed-0/run/checkpoint-5").is_dir() and stand_ins.resumed == []
    run_comparison(plan(), tmp_path / "out")
    assert [place.endswith("iterations-40/kd/seed-0") for place in stand_ins.resumed] == [True]


def test_files_that_no_comparison_has_written_are_kept(plan, stand_ins, tmp_path):
    kept = tmp_path / "out/iterations-40/alone/seed-0/run/precious.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("x")
    with pytest.raises(ValueError, match="seed-0/run holds files that no comparison has written"):
        run_comparison(plan(), tmp_path / "out")
    assert kept.read_text() == "x"


def test_missing_data_is_found_before_the_first_run(plan, stand_ins, tmp_path, capsys):
    asked = plan(recipe="camvid_lite0", data_dir=str(tmp_path / "nowhere"), teacher_recipe="camvid_lite2")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; camvid needs one with train/"):
        run_comparison(asked, tmp_path / "out")
    assert not stand_ins.trained
    options = ["--config", str(tmp_path / "plan.yaml"), "--output", str(tmp_path / "dry"), "--dry-run"]
    assert main(["compare", *options]) == 2 and "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "dry").exists()


def test_a_failed_run_does_not_stop_the_others_and_is_retried_without_deleting_its_files(plan, stand_ins, tmp_path):
    stand_ins.fail = place = "iterations-40/alone/seed-0"
    outcome = run_comparison(plan(), tmp_path / "out")
    assert outcome.failed == {place: "first line\nlast line"}
    assert sum(result.kind == "run" for result in outcome.results) == 7
    (tmp_path / "out" / place / "run/checkpoint-1").mkdir(parents=True)  # killed while it was written
    (tmp_path / "out" / place / "run/trainer_state.json").write_text("{}")
    stand_ins.fail = None
    stand_ins.trained.clear()
    assert run_comparison(plan(), tmp_path / "out").failed == {} and len(stand_ins.trained) == 1
    assert (tmp_path / "out" / place / "run-stopped-1/trainer_state.json").is_file()
    stand_ins.fail = place = "time-of-kd-50/kd/seed-0"  # whose time others need
    with pytest.raises(ValueError, match=rf"(?s){place} failed.*{place}/log.txt.*last line"):
        run_comparison(plan(budgets={"iterations": 50, "as_long_as": "kd"}), tmp_path / "out")


def test_a_finished_run_is_not_repeated_nor_mixed_with_other_settings_other_machines_or_damaged_results(
    plan, done, stand_ins, tmp_path, monkeypatch
):
    again = moved(done.out, tmp_path / "out")
    table = (again / "results.md").read_text()
    run_comparison(plan(), again)
    assert stand_ins.trained == [] and (again / "results.md").read_text() == table
    shutil.rmtree(again / "seconds-6/kd/seed-1")
    lines = []
    run_comparison(plan(methods={**PLAN["methods"], "=mine": {"loss": "cwd"}}, seeds=[1]), again, lines.append)
    assert [line for line in lines if "..." in line][-1] == "[9/9] seconds-6 =mine seed 1 ..."
    places = [str(Path(place).relative_to(again)) for place in stand_ins.trained]
    assert places == ["iterations-40/-mine/seed-1", "seconds-6/kd/seed-1", "seconds-6/-mine/seed-1"]
    assert "'=mine" in (again / "results.csv").read_text()  # no spreadsheet computes it
    with pytest.raises(ValueError, match=r"tuning/kd/1 .* different settings: learning_rate=0.004 instead of 0.1"):
        run_comparison(plan(learning_rate=0.1), again)
    monkeypatch.setattr(comparison, "machine_name", lambda: f"{machine_name().rpartition(',')[0]}, 99 threads")
    run_comparison(plan(processes=2), again)
    monkeypatch.setattr(comparison, "machine_name", lambda: "another")
    run_comparison(plan(budgets={"iterations": 40}), again)
    with pytest.raises(ValueError, match="times of different machines cannot be compared"):
        run_comparison(plan(), again)
    (again / "iterations-40/kd/seed-1/run/card_facts.json").write_text("{")
    with pytest.raises(ValueError, match="seed-1/run cannot be read .*; delete .*seed-1 to repeat that run"):
        run_comparison(plan(), again)


def test_csv_and_table_have_every_run_mean_deviation_and_the_gain_per_seed(done):
    rows = list(csv.DictReader((done.out / "results.csv").open()))
    kd = next(row for row in rows if (row["budget"], row["method"], row["seed"]) == ("seconds-6", "kd", "1"))
    assert kd["iterations"] == "30" and float(kd["seconds"]) == pytest.approx(6) and kd["iou_car"] == ""
    assert float(kd["mean_iou"]) == float(kd["iou_sky"]) == pytest.approx(0.3 + 0.001 + 0.2 + 0.003)
    assert json.loads(kd["settings"])["kd.weight"] == 2.0 and len(rows) == 11
    text = (done.out / "results.md").read_text()
    # alone: 0.304 and 0.305; kd 0.2 more with each seed
    assert "| alone | 30.45 ± 0.07 |  | 2 | 40 | 4.0 | 100 ± 0 | 80.0 | 1000 |" in text
    assert "| kd | 50.45 ± 0.07 | +20.00 ± 0.00 | 2 | 40 | 8.0 | 200 ± 0 | 40.0 | 1000 |" in text
    assert "| kd | `kd.weight: 2.0` | 60.10 | chosen |" in text and "with seed 100, for 10 iterations" in text
    assert "8 of 8 runs are finished" in text
    assert sorted(path.name for path in done.out.glob("*.png")) == [
        f"{kind}_{budget}.png" for kind in ("mean_iou", "over_time") for budget in ("iterations-40", "seconds-6")
    ]
    result = next(one for one in done.outcome.results if (one.budget, one.method) == ("iterations-40", "kd"))
    (second, score), (last_second, last) = result.curve
    assert (second, last_second, score) == pytest.approx((4.0, 8.0, last / 2))


def test_folders_of_several_machines_make_one_report(plan, stand_ins, tmp_path):
    small = {"budgets": {"iterations": 40}, "evaluations": 1}
    run_comparison(plan(**small, seeds=[0]), tmp_path / "a")
    stand_ins.machine = "GPU"
    run_comparison(plan(**small, seeds=[0, 7], bf16=True), tmp_path / "b")
    (tmp_path / "a/iterations-40/kd/seed-8").mkdir()  # begun, not finished
    asked = plan(**small)
    merged = merge_comparisons(asked, [tmp_path / "a", tmp_path / "b", tmp_path / "a"], tmp_path / "both")
    assert [(one.method, one.seed, one.machine == "GPU") for one in merged] == [
        ("alone", 0, False), ("kd", 0, False), ("alone", 0, True), ("alone", 7, True), ("kd", 0, True), ("kd", 7, True),
    ]  # fmt: skip
    text = (tmp_path / "both/results.md").read_text()
    assert (
        text.count("### 40 iterations each, on ") == 2
        and "6 of 7 runs are finished" in text
        and "| kd | 50.75 ± 0.49 | +20.00 ± 0.00 | 2 |" in text
    )
    assert len(list((tmp_path / "both").glob("*.png"))) == 4
    with pytest.raises(FileExistsError, match="both/results.md exists; give a new --output_dir"):
        merge_comparisons(asked, [tmp_path / "a"], tmp_path / "both")
    run_comparison(plan(**small, seeds=[1], learning_rate=0.1), tmp_path / "c")
    with pytest.raises(ValueError, match="'alone' .iterations-40. with different settings.*rate=0.1 instead of 0.004"):
        merge_comparisons(asked, [tmp_path / "a", tmp_path / "c"], tmp_path / "other")
    with pytest.raises(ValueError, match="nothing holds no finished run of this plan"):
        merge_comparisons(asked, [tmp_path / "nothing"], tmp_path / "other")


SAVING = r"""
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (print(" 50%\rsaved", flush=True), exit(143)))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_forwarded_so_that_the_run_can_save(tmp_path, number, status):
    log = tmp_path / "log"

    def interrupt():
        while not log.exists() or "ready" not in log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(ComparisonStopped) as stopped:
            run_logged([sys.executable, "-c", SAVING], log)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.exit_status == status and last_lines(log, 1) == "saved"


def test_a_comparison_of_real_runs_fills_the_table(tmp_path, monkeypatch, capsys):
    """In this process, which saves starting Python for each run."""

    def train_here(command, log, keep_open):
        with log.open("w") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            return main(command[command.index("afdcd_hf.cli") + 1 :])

    monkeypatch.setattr(comparison, "run_logged", train_here)
    scenes = replace(BENCHMARKS["scenes"], split_sizes={"train": 8, "val": 4})  # generating all takes longest
    monkeypatch.setitem(BENCHMARKS, "scenes", scenes)
    short = {"max_train_samples": 4, "max_eval_samples": 2, "total_batch_size": 2, "warmup_steps": 0,
             "preflight": False, "crop_size": [48, 64]}  # fmt: skip
    tiny = {
        "recipe": "quickstart", "methods": {"kd+cwd": {"loss": "kd+cwd"}}, "seeds": [0], "budgets": {"iterations": 4},
        "evaluations": 1, "teacher_recipe": {"recipe": "quickstart_teacher", "max_steps": 1, **short}, **short,
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    options = ["compare", "--config", str(tmp_path / "tiny.yaml"), "--output", str(tmp_path / "out")]
    assert main([*options, "--seeds", "3", "--learning_rate", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "| kd+cwd | " in printed and "1 of 1 runs are finished" in printed
    result = read_result(all_runs(load_plan(tmp_path / "tiny.yaml"))[-1], tmp_path / "out/iterations-4/kd+cwd/seed-3")
    assert result.iterations == 4 and result.seconds > 0 and len(result.curve) == 2 and result.seed == 3
    assert 0 < result.curve[0][0] < result.curve[1][0] == pytest.approx(result.seconds)
    assert json.loads(result.fingerprint)["learning_rate"] == 0.001
