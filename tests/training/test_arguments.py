"""From a recipe and a command line to the arguments of a run."""

from __future__ import annotations

import pytest
import yaml

from afdcd_hf.losses import validate_loss_spec
from afdcd_hf.recipes import list_recipes, load_recipe, recipe_path
from afdcd_hf.training.arguments import DISTILL_ARGUMENTS, TRAIN_ARGUMENTS, parse_arguments, training_part

RECIPE = {
    "dataset": "scenes",
    "crop_size": [96, 192],
    "backbone_kwargs": {"stem_type": "deep"},
    "max_steps": 300,
    "scales": [0.5, 1.0],
    "loss": "kd+af_dcd",
    "kd.weight": 1.0,
    "af_dcd.feature_weight": 2e-6,
    "af_dcd.contrast_weight": 5e-3,
    "use_cpu": True,
}


def distil(argv=(), recipe=RECIPE):
    return parse_arguments(DISTILL_ARGUMENTS, recipe, argv)


def train(argv=(), recipe=None):
    return parse_arguments(TRAIN_ARGUMENTS, training_part(RECIPE) if recipe is None else recipe, argv)


def test_a_recipe_alone_fills_the_dataclasses_in_their_order():
    model, teacher, data, args = distil()
    assert [type(one) for one in (model, teacher, data, args)] == list(DISTILL_ARGUMENTS)
    assert model.backbone_kwargs == {"stem_type": "deep"} and teacher.teacher is None
    assert data.crop_size == [96, 192] and data.scales == [0.5, 1.0]
    assert args.max_steps == 300 and args.use_cpu is True
    assert args.loss_kwargs == {"kd": {"weight": 1.0}, "af_dcd": {"feature_weight": 2e-6, "contrast_weight": 5e-3}}


def test_the_command_line_overrides_the_recipe():
    argv = ["--max_steps", "7", "--crop_size", "32", "48", "--scales", "1.0", "--learning-rate=0.5"]
    argv += ["--backbone_kwargs", '{"a": [1]}', "--auxiliary_head", "true", "--teacher", "runs/teacher"]
    model, teacher, data, args = distil(argv)
    assert (args.max_steps, args.learning_rate, data.crop_size, data.scales) == (7, 0.5, [32, 48], [1.0])
    assert (model.backbone_kwargs, model.auxiliary_head, teacher.teacher) == ({"a": [1]}, True, "runs/teacher")


@pytest.mark.parametrize(
    ("argv", "loss", "option", "value"),
    [
        (["--kd.weight=0.5"], "kd", "weight", 0.5),
        (["--kd.temperature", "4"], "kd", "temperature", 4),
        (["--af_dcd.feature_weight", "1e-5"], "af_dcd", "feature_weight", 1e-5),
        (["--af_dcd.mask", "center"], "af_dcd", "mask", "center"),
        (["--af_dcd.pool_size", "null"], "af_dcd", "pool_size", None),
        (["--af_dcd.projector=enhanced"], "af_dcd", "projector", "enhanced"),
    ],
)
def test_dotted_options_reach_their_loss_beside_those_of_the_recipe(argv, loss, option, value):
    kwargs = distil(argv)[-1].loss_kwargs
    assert kwargs[loss][option] == value and type(kwargs[loss][option]) is type(value)
    for name, options in distil()[-1].loss_kwargs.items():
        assert all(kwargs[name][key] == given for key, given in options.items() if (name, key) != (loss, option))


def test_dotted_options_do_not_change_the_recipe_itself():
    recipe = {"loss": "kd", "loss_kwargs": {"kd": {"weight": 1.0}}}
    assert distil(["--kd.weight", "2"], recipe)[-1].loss_kwargs == {"kd": {"weight": 2}}
    assert recipe["loss_kwargs"] == {"kd": {"weight": 1.0}}


@pytest.mark.parametrize("argv", [["--loss", "kd"], ["--loss=kd"]])
def test_a_recipes_options_of_a_loss_that_the_command_line_replaces_are_left_out(argv):
    args = distil(argv)[-1]
    assert args.loss == "kd" and args.loss_kwargs == {"kd": {"weight": 1.0}}
    assert set(distil(["--loss", "af_dcd + kd"])[-1].loss_kwargs) == {"kd", "af_dcd"}


def test_loss_options_as_json_are_read_and_replace_those_of_the_recipe():
    argv = ["--loss", "kd", "--loss_kwargs", '{"kd": {"weight": 2}}']
    assert distil(argv)[-1].loss_kwargs == {"kd": {"weight": 2}}


def test_json_in_a_recipe_is_joined_with_dotted_options():
    recipe = {"loss": "kd", "loss_kwargs": '{"kd": {"weight": 2.0}}'}
    assert distil(["--kd.temperature", "3"], recipe)[-1].loss_kwargs == {"kd": {"weight": 2.0, "temperature": 3}}


def test_loss_options_in_both_ways_on_the_command_line_are_an_error():
    argv = ["--loss", "kd", "--loss_kwargs", '{"kd": {"weight": 2}}', "--kd.temperature", "3"]
    with pytest.raises(ValueError, match="kd.temperature.*loss_kwargs"):
        distil(argv, {})


MISTAKES = {
    "unknown option": (["--max_step", "3"], {}, r"'max_step' is no argument.*Close: .*max_steps"),
    "unknown option after =": (["--crop-sizes=3"], {}, r"'crop_sizes' is no argument.*crop_size"),
    "unknown recipe key": ([], {"backbon": "resnet18"}, r"'backbon' is no argument.*Close: .*backbone"),
    "nothing like it": ([], {"xyzzy": 1}, r"'xyzzy' is no argument of this command\. --help"),
    "option of an unknown loss": (["--af_dc.mask", "center"], {}, r"there is no loss 'af_dc'; known losses: .*af_dcd"),
    "recipe option of an unknown loss": ([], {"cwdx.weight": 1}, r"there is no loss 'cwdx'"),
    "option of a loss not in use": (["--kd.weight", "1"], {"loss": "af_dcd"}, r"'kd', which is not in loss='af_dcd'"),
    "unknown option of a loss": (["--kd.wieght", "1"], {"loss": "kd"}, r"unknown option kd\.wieght; kd accepts weight"),
    "missing option of a loss": ([], {"loss": "af_dcd"}, r"missing af_dcd\.feature_weight"),
    "bad option of a loss": (["--kd.weight", "much"], {"loss": "kd"}, r"weight"),
    "broken value of a loss": (["--kd.weight", "[1"], {"loss": "kd"}, r"weight"),
    "dotted option without value": (["--kd.weight"], {"loss": "kd"}, r"--kd\.weight needs a value"),
    "no JSON": (["--backbone_kwargs", "{stem"], {"loss": "kd"}, r"backbone_kwargs='\{stem' is not valid JSON"),
    "no JSON object": (["--loss_kwargs", "3"], {"loss": "kd"}, r"loss_kwargs='3' must be a JSON object"),
    "a word for a number": (["--max_steps", "many"], {"loss": "kd"}, r"max-steps: invalid int value: 'many'"),
    "a word for a number in a recipe": ([], {"loss": "kd", "max_steps": "many"}, r"max-steps: invalid int value"),
    "an option without its value": (["--max_steps"], {"loss": "kd"}, r"max-steps: expected one argument"),
    "a stray word": (["oops"], {"loss": "kd"}, r"oops"),
    "three sides": (["--crop_size", "1", "2", "3"], {"loss": "kd"}, r"crop_size=\[1, 2, 3\] must be two numbers"),
    "one side in a recipe": ([], {"loss": "kd", "crop_size": 512}, r"crop_size=512 must be two numbers"),
    "an unknown schedule": (["--lr_scheduler_type", "cubic"], {"loss": "kd"}, r"cubic"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_it(mistake):
    argv, recipe, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        distil(argv, recipe)


@pytest.mark.parametrize(("argv", "recipe"), [(["--kd.weight", "1"], {}), ([], {"kd.weight": 1.0})])
def test_options_of_a_distillation_given_to_a_supervised_training_are_an_error(argv, recipe):
    with pytest.raises(ValueError, match="'kd.weight' belongs to a distillation loss: use `afdcd distill`"):
        train(argv, recipe)
    with pytest.raises(ValueError, match="'teacher' is no argument"):
        train(["--teacher", "runs/teacher"])


@pytest.mark.parametrize("flag", [["--help"], ["-h"], ["--max_steps", "3", "--help"]])
def test_help_lists_the_arguments_with_what_they_mean(capsys, flag):
    with pytest.raises(SystemExit) as stop:
        distil(flag)
    text = capsys.readouterr().out
    assert stop.value.code in (0, None)
    assert "--crop_size" in text and "Images per optimizer step" in text and "Folder or Hub id of the trained" in text


def test_a_training_keeps_what_concerns_it_and_drops_teacher_and_loss():
    recipe = {**RECIPE, "teacher": "t", "teacher_layer": "x", "student_layer": "y", "loss_max_grad_norm": 15.0}
    kept = training_part({**recipe, "loss_kwargs": {}})
    assert kept == {key: RECIPE[key] for key in RECIPE if key not in ("loss",) and "." not in key}
    assert train()[-1].max_steps == 300


def test_a_number_without_a_dot_before_its_exponent_is_a_number(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "af_dcd.feature_weight: 2e-6\nlearning_rate: 1E-2\nmax_steps: 40\nbackbone: resnet18e\n"
        "loss_kwargs: {kd: {weight: 1e-1}}\nscales: [5e-1, 1.0]\n"
    )
    assert type(yaml.safe_load(path.read_text())["learning_rate"]) is str  # what YAML 1.1 makes of it
    expected = {"af_dcd.feature_weight": 2e-6, "learning_rate": 0.01, "max_steps": 40, "backbone": "resnet18e"}
    expected |= {"loss_kwargs": {"kd": {"weight": 0.1}}, "scales": [0.5, 1.0]}
    assert load_recipe(path) == expected


@pytest.mark.parametrize(("written", "meant"), [("false", "false"), ("true", "true"), ('"false"', "false")])
def test_a_yaml_truth_value_is_taken_for_the_pretrained_backbone(tmp_path, written, meant):
    path = tmp_path / "mine.yaml"
    path.write_text(f"pretrained_backbone: {written}\n")
    assert train(recipe=load_recipe(path))[0].pretrained_backbone == meant


def test_an_unknown_recipe_lists_the_known_ones_and_the_closest():
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'quickstart'\?") as error:
        load_recipe("quickstrat")
    assert all(name in str(error.value) for name in list_recipes())


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "is not valid YAML"), ("- a\n- b", "not a list"), ("", "not a NoneType"), ("word", "not a str")],
)
def test_a_file_that_is_no_recipe_is_an_error_that_names_it(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml .*{message}"):
        load_recipe(path)


def test_the_bundled_recipes_are_found_by_name():
    assert "quickstart" in list_recipes() and len(list_recipes()) >= 2
    assert all(recipe_path(name).is_file() for name in list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_a_bundled_recipe_parses_and_its_crop_fits_its_loss(name, tmp_path):
    recipe = load_recipe(name)
    machine = ["--output_dir", str(tmp_path), "--bf16", "false", "--fp16", "false", "--tf32", "false"]
    model, data, _ = train([*machine, "--use_cpu", "true"], training_part(recipe))
    assert len(data.crop_size) == 2 and model.output_stride in (8, 16, 32)
    if "loss" not in recipe:
        return  # a teacher's
    args = distil([*machine, "--use_cpu", "true"], recipe)[-1]
    names = validate_loss_spec(args.loss, args.loss_kwargs)
    options = args.loss_kwargs.get("af_dcd", {}) if "af_dcd" in names else None
    if options is not None:
        least = (options.get("pool_size", 4) or 1) * options.get("patch_size", 4)
        assert min(side // model.output_stride for side in data.crop_size) >= least


@pytest.mark.parametrize("name", list_recipes())
def test_every_value_of_a_bundled_recipe_arrives_as_it_is_written(name, tmp_path):
    recipe = load_recipe(name)
    distils = "loss" in recipe
    types = DISTILL_ARGUMENTS if distils else TRAIN_ARGUMENTS
    parsed = parse_arguments(types, recipe, ["--use_cpu", "true"])
    values = {key: value for one in parsed for key, value in vars(one).items()}
    for key, written in recipe.items():
        if "." in key:
            loss, option = key.split(".")
            assert values["loss_kwargs"][loss][option] == written, key
        elif key != "use_cpu":
            assert getattr(values[key], "value", values[key]) == written, key


def test_what_was_asked_for_is_plain_enough_for_a_file():
    from pathlib import Path

    from transformers.trainer_utils import SchedulerType

    from afdcd_hf.training.arguments import plain_value

    odd = {"a": [SchedulerType.LINEAR, Path("x")], 1: {"b": (2e-6, None, True)}}
    assert plain_value(odd) == {"a": ["linear", "x"], 1: {"b": [2e-6, None, True]}}
