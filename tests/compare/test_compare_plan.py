"""Plans of `afdcd compare`: how they are read, and which mistakes are found before any training starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from command_line import answer
from tiny import segmenter

from afdcd_hf.compare.comparison import check_plan
from afdcd_hf.compare.plan import Budget, load_plan
from afdcd_hf.compare.runs import all_runs, run_settings
from afdcd_hf.recipes import list_comparisons, list_recipes, load_recipe

PLAN = {
    "recipe": "quickstart",
    "teacher_recipe": "quickstart_teacher",
    "methods": {
        "alone": None,
        "kd": {"loss": "kd", "tune": [{"kd.weight": 0.5}, {"kd.weight": 2.0}]},
        "feature only": {"af_dcd.contrast_weight": 0.0},
    },
    "seeds": [0, 1],
    "budgets": [{"iterations": 30}, {"seconds": 60}],
    "tuning": {"seed": 100, "iterations": 10},
    "warmup_steps": 5,
}


@pytest.fixture
def plan_file(tmp_path):
    def write(**changes):
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({**PLAN, **changes}, sort_keys=False))
        return path

    return write


def run_of(plan, name, budget=0):
    return next(run for run in all_runs(plan) if (run.budget, run.method.name) == (plan.budgets[budget], name))


def recipe_of(plan, name, budget=0):
    return run_settings(plan, run_of(plan, name, budget), Path("out"), {})


def test_a_method_changes_only_its_own_keys_and_drops_the_options_of_other_losses(plan_file):
    plan, recipe = load_plan(plan_file()), load_recipe("quickstart")
    alone, kd, feature_only = (recipe_of(plan, name) for name in ("alone", "kd", "feature only"))
    own = {"methods": {"mine": {"loss": "kd+my_loss.py:Cosine"}}, "Cosine.weight": 2.0}
    assert recipe_of(load_plan(plan_file(**own)), "mine")["Cosine.weight"] == 2.0  # named by the class alone
    assert (alone["max_steps"], alone["seed"], alone["backbone_kwargs"]) == (30, 0, recipe["backbone_kwargs"])
    assert not {key for key in alone if key in ("teacher", "loss") or "." in key}
    assert kd["loss"] == "kd" and kd["teacher"] == "out/teacher/run"
    assert {key for key in kd if "." in key} == {"kd.weight"}
    options = {key: value for key, value in recipe.items() if "." in key}
    assert feature_only["loss"] == "af_dcd" and feature_only["af_dcd.contrast_weight"] == 0.0
    assert {key: feature_only[key] for key in options} == {**options, "af_dcd.contrast_weight": 0.0}


@pytest.mark.parametrize(("steps", "expected"), [(30, [7, 14, 21, 28]), (300, [61, 122, 183, 244]), (1, [])])
def test_a_run_is_evaluated_along_the_way_and_never_twice_at_its_end(plan_file, steps, expected):
    every = recipe_of(load_plan(plan_file(budgets={"iterations": steps})), "alone")["eval_steps"]
    assert list(range(every, steps, every)) == expected


def test_tuning_tries_every_candidate_with_its_own_seed_and_iterations(plan_file):
    plan = load_plan(plan_file(tuning={"seed": 100, "iterations": 10, "max_eval_samples": 5}))
    tried = [run_settings(plan, run, Path("out"), {}) for run in all_runs(plan) if run.kind == "tuning"]
    keys = ("kd.weight", "seed", "max_steps", "max_eval_samples", "iterations")
    assert [[one.get(key) for key in keys] for one in tried] == [[weight, 100, 10, 5, None] for weight in (0.5, 2.0)]


def test_the_method_whose_time_is_the_budget_runs_before_the_others(plan_file):
    plan = load_plan(plan_file(budgets=[{"iterations": 30, "as_long_as": "feature only"}, {"iterations": 30}]))
    names = [run.method.name for run in all_runs(plan) if run.kind == "run"]
    assert names[:6] == ["feature only", "alone", "kd", "alone", "kd", "feature only"]


def test_a_plan_counts_its_runs_and_names_its_budgets(plan_file):
    plan = load_plan(plan_file())
    assert plan.runs == 3 * 2 * 2
    assert [budget.name for budget in plan.budgets] == ["iterations-30", "seconds-60"]
    timed = recipe_of(plan, "kd", budget=1)
    assert timed["max_seconds"] == 60.0 and timed["max_steps"] == load_recipe("quickstart")["max_steps"]
    assert Budget(seconds=0.5).title == "0.5 s of training each"
    assert "12, after 2 tuning runs" in plan.summary()
    as_long = load_plan(plan_file(budgets={"iterations": 30, "as_long_as": "feature only"})).budgets[0]
    assert as_long.name == "time-of-feature-only-30" and as_long.is_time


def test_the_command_line_overrides_keys_teacher_methods_and_seeds_of_a_plan(plan_file, capsys):
    plan = load_plan(plan_file(total_batch_size=4), {"total_batch_size": 2, "data_dir": "D"})
    assert plan.shared["total_batch_size"] == 2 and plan.shared["data_dir"] == plan.teacher["data_dir"] == "D"
    plan = load_plan(plan_file(), {"teacher": "owner/teacher"}).narrowed(["kd"], [7])
    assert plan.teacher is None and plan.shared["teacher"] == "owner/teacher"
    assert [one.name for one in plan.methods] == ["kd"] and plan.seeds == [7]
    for key, name in (("kd.weight", "kd"), ("af_dcd.contrast_weight", "feature only")):  # a candidate's, its own
        said = answer(capsys, "compare", "--config", str(plan_file()), f"--{key}", "1")
        assert f"--{key} cannot override the method '{name}'" in said
        load_plan(plan_file()).narrowed(["alone"]).check_overrides([key])
    with pytest.raises(ValueError, match="no method 'cwd'; it has alone, kd, feature only"):
        load_plan(plan_file()).narrowed(["cwd"])
    with pytest.raises(ValueError, match="is the time of 'kd'; keep that method"):
        load_plan(plan_file(budgets={"iterations": 30, "as_long_as": "kd"})).narrowed(["alone"])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    segmenter().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", list_comparisons())
def test_bundled_plans_have_valid_recipes_for_every_method(name, teacher, tmp_path):
    plan = load_plan(name, {"data_dir": "DATA", **({} if load_plan(name).teacher else {"teacher": teacher})})
    check_plan(plan, tmp_path / "out")
    assert plan.methods[0].name == "alone" and len(plan.methods) >= 5 and len(plan.seeds) >= 3


PAPER_PAIRS = [name for name in list_recipes() if load_recipe(name).get("backbone_kwargs", {}).get("stem_type")]


@pytest.mark.parametrize("recipe", [*PAPER_PAIRS, "cityscapes_deeplabv3_mbv2"])
def test_the_papers_plan_fits_each_of_its_eight_pairs(recipe, teacher, tmp_path):
    plan = load_plan("paper", {"recipe": recipe, "data_dir": "DATA", "teacher": teacher})
    check_plan(plan, tmp_path / "out")
    settings, of_recipe = recipe_of(plan, "af_dcd"), load_recipe(recipe)
    assert len(PAPER_PAIRS) == 7
    assert all(settings[key] == of_recipe[key] for key in ("dataset", "af_dcd.feature_weight"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {}}, "it has no methods"),
        ({"seeds": None, "budgets": None}, "no seeds and no budgets"),
        ({"seeds": [0, 0]}, "has duplicates"),
        ({"seeds": ["a"]}, "list of whole numbers"),
        ({"budgets": {"epochs": 3}}, r"\{iterations: N\}, \{seconds: S\} or \{iterations: N, as_long_as: METHOD\}"),
        ({"budgets": {"iterations": 3, "as_long_as": "kdd"}}, "'kdd' is not a method; known: alone, kd, feat"),
        ({"budgets": {"iterations": 0}}, "iterations=0 must be a whole number, 1 or more"),
        ({"budgets": {"seconds": -1}}, "above 0"),
        ({"max_steps": 10}, "the plan must not set max_steps"),
        ({"methods": {"kd": {"loss": "kd", "seed": 3}}}, "'kd' must not set seed"),
        ({"methods": {"alone": {"loss": "kd"}}}, "'alone' is the student without a teacher"),
        ({"methods": {"kd": {"loss": "kd", "tune": {"kd.weight": 1}}}}, "must be a list of settings"),
        ({"tuning": {}}, "methods have 'tune', but there is no 'tuning"),
        ({"tuning": {"seed": 1}}, "needs a seed and a number of iterations"),
    ],
)
def test_an_invalid_plan_raises_an_error_that_says_what_is_wrong(plan_file, changes, message):
    with pytest.raises(ValueError, match=message):
        load_plan(plan_file(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"x": {"loss": "kd", "kd.wait": 1}}}, "'x': unknown option kd.wait"),
        ({"learning_rat": 1}, "Unknown argument .learning_rat.*learning_rate"),
        ({"methods": {"a b": {}, "a-b": {}}}, "'a b' and 'a-b' would share one folder"),
        ({"teacher_recipe": None, "teacher": "/a/b/nothing"}, "neither a local folder nor a Hub id"),
        ({"teacher_recipe": None, "teacher": None, "recipe": "camvid_lite0"}, "neither 'teacher' nor 'teacher_recipe'"),
    ],
)
def test_an_invalid_recipe_or_teacher_is_found_before_the_first_run(plan_file, tmp_path, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        check_plan(load_plan(plan_file(**changes)), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="'scene': neither a file nor a known name. Close: scenes"):
        load_plan("scene")
