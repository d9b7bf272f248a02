"""Merging a recipe and a command line into the arguments of a run."""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, fields, replace

import pytest
from transformers import TrainingArguments

from afdcd_hf.data.transforms import PAPER_SCALES
from afdcd_hf.losses import validate_loss_spec
from afdcd_hf.recipes import list_recipes, load_recipe
from afdcd_hf.training.options import DataArguments, plain_value
from afdcd_hf.training.recipe_arguments import merge_arguments, parse_arguments, training_part
from afdcd_hf.training.training_args import WITHOUT_EFFECT, DistillationTrainingArguments, SegmentationTrainingArguments

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
    return parse_arguments(recipe, argv, distils=True)


def train(argv=(), recipe=training_part(RECIPE)):  # noqa: B008
    return parse_arguments(recipe, argv, distils=False)


def test_a_recipe_fills_the_dataclasses_in_order_and_the_command_line_overrides_it():
    model, teacher, data, args = distil()
    assert model.backbone_kwargs == {"stem_type": "deep"} and teacher.teacher is None
    assert (data.crop_size, data.scales, args.max_steps, args.use_cpu) == ([96, 192], [0.5, 1.0], 300, True)
    assert args.loss_kwargs == {"kd": {"weight": 1.0}, "af_dcd": {"feature_weight": 2e-6, "contrast_weight": 5e-3}}
    assert tuple(DataArguments().scales) == PAPER_SCALES
    argv = ["--max_steps", "7", "--crop-size", "32", "48", "--scales", "1.0", "--learning-rate=0.5", "--auxiliary_head"]
    argv += ["--backbone_kwargs", '{"a": [1]}', "--teacher", "runs/teacher", "--save_strategy", "no"]
    model, teacher, data, args = distil(argv)
    assert (args.max_steps, args.learning_rate, data.crop_size, data.scales) == (7, 0.5, [32, 48], [1.0])
    assert (model.backbone_kwargs, model.auxiliary_head, teacher.teacher) == ({"a": [1]}, True, "runs/teacher")
    assert args.save_strategy.value == "no"
    assert merge_arguments({}, distils=True) == {"loss": "af_dcd"}  # so that the recipe written is a distillation's


def test_dotted_options_are_merged_with_the_loss_options_of_the_recipe():
    argv = ["--kd.weight=0.5", "--kd.temperature", "4", "--af_dcd.feature_weight", "1e-5", "--af_dcd.mask", "center"]
    kwargs = distil([*argv, "--af_dcd.pool_size", "null", "--af_dcd.projector=enhanced"])[-1].loss_kwargs
    own = {"feature_weight": 1e-5, "contrast_weight": 5e-3, "mask": "center", "pool_size": None}
    assert kwargs == {"kd": {"weight": 0.5, "temperature": 4}, "af_dcd": {**own, "projector": "enhanced"}}
    assert type(kwargs["kd"]["temperature"]) is int


@pytest.mark.parametrize(
    ("argv", "recipe", "expected"),
    [
        (["--loss=kd"], RECIPE, {"kd": {"weight": 1.0}}),
        (["--loss", "kd", "--loss_kwargs", '{"kd": {"weight": 2}}'], RECIPE, {"kd": {"weight": 2}}),
        (["--kd.weight", "2"], {"loss": "kd", "loss_kwargs": {"kd": {"weight": 1.0}}}, {"kd": {"weight": 2}}),
        (["--kd.weight", "3"], {"loss": "kd", "loss_kwargs": '{"kd": {"weight": 2.0}}'}, {"kd": {"weight": 3}}),
    ],
    ids=["another loss", "JSON replaces", "one option", "JSON in a recipe"],
)
def test_loss_options_are_merged_and_those_of_replaced_losses_dropped(argv, recipe, expected):
    before = repr(recipe)
    assert distil(argv, recipe)[-1].loss_kwargs == expected
    assert repr(recipe) == before
    assert set(distil(["--loss", "af_dcd + kd"])[-1].loss_kwargs) == {"kd", "af_dcd"}


KD = {"loss": "kd"}
MISTAKES = {
    "unknown option": (["--max_step", "3"], {}, r"Unknown argument 'max_step'\. Close: .*max_steps"),
    "unknown recipe key": ([], {"backbon": "resnet18"}, r"Unknown argument 'backbon'.*Close: .*backbone"),
    "option of an unknown loss": (["--af_dc.mask", "center"], {}, r"unknown loss 'af_dc'; known losses: .*af_dcd"),
    "option of a loss not in use": (["--kd.weight", "1"], {"loss": "af_dcd"}, r"'kd', which is not in loss='af_dcd'"),
    "dotted option without value": (["--kd.weight"], KD, r"--kd\.weight needs a value"),
    "loss options twice": (["--loss_kwargs", '{"kd": {}}', "--kd.weight", "3"], KD, r"kd\.weight.*loss_kwargs"),
    "no JSON": (["--backbone_kwargs", "{stem"], KD, r"backbone_kwargs='\{stem' is not valid JSON"),
    "a number for losses": ([], {"loss_kwargs": 3}, r"loss_kwargs=3 must map each loss to its options"),
    "a word for a number": (["--max_steps", "many"], KD, r"max_steps='many' must be a whole number, -1 or more"),
    "an option without its value": (["--max_steps"], KD, r"--max_steps needs a value"),
    "a stray word": (["oops"], KD, r"'oops' does not belong to any option"),
    "three sides": (["--crop_size", "1", "2", "3"], KD, r"crop_size=\[1, 2, 3\] must be 2 values"),
    "one side in a recipe": ([], {**KD, "crop_size": 512}, r"crop_size=512 must be a list of whole numbers, 2 values"),
    "an unknown schedule": (["--lr_scheduler_type", "cubic"], KD, r"cubic"),
    "an unknown option of the schedule": ([], {**KD, "lr_scheduler_kwargs": {"pwr": 1}}, r"lr_scheduler_type.*'pwr'"),
    "part of a step": ([], {**KD, "max_steps": 2.5}, r"max_steps=2.5 must be a whole number"),
    "no step": ([], {**KD, "max_steps": 0}, r"max_steps=0 would train nothing"),
    "words in a list": ([], {**KD, "scales": ["a"]}, r"scales=\['a'\] must be a list of finite numbers"),
    "a list for a mapping": ([], {**KD, "backbone_kwargs": [1]}, r"backbone_kwargs=\[1\] must be a mapping"),
    "several losses": (["--loss", "kd", "cwd"], {}, r"must be a string, joined by '\+' as in 'kd\+cwd'"),
    "several arguments": (["--optim_args", "a=1", "b=2"], KD, r"joined by ',' as in 'a=1,b=2'"),
    "several datasets": ([], {"dataset": ["a", "b"]}, r"dataset=\['a', 'b'\] must be a string"),
    "not a number": ([], {**KD, "learning_rate": math.nan}, r"learning_rate=nan must be a finite number, 0 or more"),
    "a huge batch": ([], {**KD, "total_batch_size": 10**12}, r"total_batch_size=10{12} must be 1 or more, 10{6} or"),
    "steps and epochs": ([], {**KD, "num_train_epochs": 2, "max_steps": 5}, r"exclude each other: .*max_steps=-1"),
    "warm-up to the end": ([], {**KD, "warmup_steps": 5, "max_steps": 5}, r"warmup_steps=5 must be less than the run"),
    "an unknown score": ([], {**KD, "metric_for_best_model": "eval_loss"}, r"'eval_loss' is not among.*mean_iou"),
    "raw columns": ([], {**KD, "remove_unused_columns": True}, r"remove_unused_columns must be False"),
    "time without steps": ([], {**KD, "max_seconds": 5, "max_steps": -1}, r"max_seconds needs max_steps > 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_raises_an_error_that_names_it(mistake):
    argv, recipe, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        distil(argv, {"use_cpu": True, **recipe})


def test_values_are_converted_to_the_intended_types(monkeypatch, caplog):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"class_names": ["no", 1], "pretrained_backbone": "~/r18.safetensors", "model": "~/saved", "fp16": "off"}
    given |= {"max_steps": 20.0, "data_dir": "~/data", "train_list": "~/list.txt"}
    model, data, args = train(recipe={"use_cpu": True, **given})
    assert data.class_names == ["no", "1"] and args.fp16 is False and args.max_steps == 20
    assert train(recipe={"use_cpu": True, "num_train_epochs": 2})[-1].max_steps == -1
    assert (model.pretrained_backbone, model.model) == ("/home/me/r18.safetensors", "/home/me/saved")
    assert (data.data_dir, data.train_list) == ("/home/me/data", "/home/me/list.txt")
    for words, meant in ((["balanced"], "balanced"), (["1", "2.5"], [1, 2.5]), (["[1, 2.5]"], [1, 2.5])):
        assert train(["--class_weights", *words], {"use_cpu": True})[-1].class_weights == meant
    unset = {"class_weights": [1.0], "max_seconds": 3.0, "student_layer": "head", "label_map": {1: 0}}
    given = merge_arguments(unset, [word for name in unset for word in (f"--{name}", "null")], distils=True)
    assert [given[name] for name in unset] == [None] * 4
    train(recipe={"use_cpu": True, "fp16": "on"})
    assert "fp16=True has no effect on the CPU" in caplog.text
    for written, meant in ((False, False), ("false", False), ("true", True), ("a.safetensors", "a.safetensors")):
        assert merge_arguments({"pretrained_backbone": written}, distils=False)["pretrained_backbone"] == meant


@pytest.mark.parametrize("given", [{}, {"max_steps": 3, "total_batch_size": 4}, {"num_train_epochs": 2}])
def test_arguments_survive_a_copy_with_a_change_and_a_round_trip(tmp_path, given):
    args = DistillationTrainingArguments(str(tmp_path), use_cpu=True, loss="kd", **given)
    read = DistillationTrainingArguments(**json.loads(args.to_json_string()))
    for copy in (replace(args, seed=7), read):
        assert {**copy.to_dict(), "seed": 0, "data_seed": 0} == {**args.to_dict(), "seed": 0, "data_seed": 0}


def test_distillation_options_are_an_error_in_supervised_training():
    for argv, recipe in ((["--kd.weight", "1"], {}), ([], {"kd.weight": 1.0}), ([], {"loss": "kd"})):
        with pytest.raises(ValueError, match="' is an option of distillation: use `afdcd distill`"):
            train(argv, recipe)


def test_a_supervised_run_drops_the_teacher_and_loss_options_of_a_recipe():
    foreign = {"teacher": "t", "teacher_layer": "x", "student_layer": "y", "loss_max_grad_norm": 15.0}
    kept = training_part({**RECIPE, **foreign, "loss_kwargs": {}, "distill_every": 2, "distill_until": 0.5})
    assert kept == {key: RECIPE[key] for key in RECIPE if key != "loss" and "." not in key}
    assert train()[-1].max_steps == 300


def test_transformers_arguments_without_effect_are_refused(tmp_path):
    for one in (one for one in fields(TrainingArguments) if one.name in WITHOUT_EFFECT):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        other = not default if isinstance(default, bool) else ["x"] if isinstance(default, list) else 0.5
        with pytest.raises(ValueError, match=f"{one.name}=.* would have no effect .*Leave it out"):
            SegmentationTrainingArguments(str(tmp_path), use_cpu=True, **{one.name: other})


# Recipes


@pytest.mark.parametrize("name", list_recipes())
def test_every_value_of_a_bundled_recipe_is_parsed_as_written_and_its_crop_fits_its_loss(name, tmp_path):
    recipe = load_recipe(name)
    machine = {"output_dir": str(tmp_path), "bf16": False, "fp16": False, "tf32": False, "use_cpu": True}
    parsed = parse_arguments({**recipe, **machine}, distils="loss" in recipe)
    model, data, args = parsed[0], parsed[-2], parsed[-1]
    values = {key: value for one in parsed for key, value in vars(one).items()}
    for key, written in recipe.items():
        if "." in key:
            loss, option = key.split(".")
            assert values["loss_kwargs"][loss][option] == written, key
        elif key not in machine:
            meant = {"true": True, "false": False}.get(written, written) if key.startswith("pre") else written
            assert plain_value(values[key]) == meant, key
    assert model.output_stride in (8, 16, 32)
    if "loss" in recipe and "af_dcd" in validate_loss_spec(args.loss, args.loss_kwargs):
        options = args.loss_kwargs["af_dcd"]
        least = (options.get("pool_size", 4) or 1) * options.get("patch_size", 4)
        assert min(side // model.output_stride for side in data.crop_size) >= least
