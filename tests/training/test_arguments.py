"""From a recipe and a command line to the arguments of a run."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from afdcd_hf.data.transforms import PAPER_SCALES
from afdcd_hf.losses import validate_loss_spec
from afdcd_hf.recipes import list_recipes, load_recipe
from afdcd_hf.training.arguments import merge_arguments, parse_arguments, training_part
from afdcd_hf.training.options import DataArguments, plain_value
from afdcd_hf.training.training_args import WITHOUT_EFFECT, SegmentationTrainingArguments

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


def train(argv=(), recipe=None):
    return parse_arguments(training_part(RECIPE) if recipe is None else recipe, argv, distils=False)


def test_a_recipe_fills_the_dataclasses_in_their_order_and_the_command_line_overrides_it():
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


def test_dotted_options_reach_their_loss_beside_those_of_the_recipe():
    argv = ["--kd.weight=0.5", "--kd.temperature", "4", "--af_dcd.feature_weight", "1e-5", "--af_dcd.mask", "center"]
    kwargs = distil([*argv, "--af_dcd.pool_size", "null", "--af_dcd.projector=enhanced"])[-1].loss_kwargs
    own = {"feature_weight": 1e-5, "contrast_weight": 5e-3, "mask": "center", "pool_size": None}
    assert kwargs == {"kd": {"weight": 0.5, "temperature": 4}, "af_dcd": {**own, "projector": "enhanced"}}
    assert type(kwargs["kd"]["temperature"]) is int


@pytest.mark.parametrize(
    ("argv", "recipe", "expected"),
    [
        (["--loss", "kd"], RECIPE, {"kd": {"weight": 1.0}}),
        (["--loss=kd"], RECIPE, {"kd": {"weight": 1.0}}),
        (["--loss", "kd", "--loss_kwargs", '{"kd": {"weight": 2}}'], RECIPE, {"kd": {"weight": 2}}),
        (["--kd.weight", "2"], {"loss": "kd", "loss_kwargs": {"kd": {"weight": 1.0}}}, {"kd": {"weight": 2}}),
        (
            ["--kd.temperature", "3"],
            {"loss": "kd", "loss_kwargs": '{"kd": {"weight": 2.0}}'},
            {"kd": {"weight": 2.0, "temperature": 3}},
        ),
    ],
    ids=["another loss", "with =", "JSON replaces", "one option", "JSON in a recipe"],
)
def test_options_of_losses_are_joined_and_those_of_replaced_losses_left_out(argv, recipe, expected):
    before = repr(recipe)
    assert distil(argv, recipe)[-1].loss_kwargs == expected
    assert repr(recipe) == before
    assert set(distil(["--loss", "af_dcd + kd"])[-1].loss_kwargs) == {"kd", "af_dcd"}


KD = {"loss": "kd"}
MISTAKES = {
    "unknown option": (["--max_step", "3"], {}, r"Unknown argument 'max_step'\. Close: .*max_steps"),
    "unknown recipe key": ([], {"backbon": "resnet18"}, r"Unknown argument 'backbon'.*Close: .*backbone"),
    "nothing like it": ([], {"xyzzy": 1}, r"Unknown argument 'xyzzy'\. --help_all"),
    "option of an unknown loss": (["--af_dc.mask", "center"], {}, r"unknown loss 'af_dc'; known losses: .*af_dcd"),
    "option of a loss not in use": (["--kd.weight", "1"], {"loss": "af_dcd"}, r"'kd', which is not in loss='af_dcd'"),
    "unknown option of a loss": (["--kd.wieght", "1"], KD, r"unknown option kd\.wieght; kd accepts weight"),
    "missing option of a loss": ([], {"loss": "af_dcd"}, r"missing af_dcd\.feature_weight"),
    "bad option of a loss": (["--kd.weight", "much"], KD, r"weight"),
    "dotted option without value": (["--kd.weight"], KD, r"--kd\.weight needs a value"),
    "loss options twice": (["--loss_kwargs", '{"kd": {}}', "--kd.weight", "3"], KD, r"kd\.weight.*loss_kwargs"),
    "no JSON": (["--backbone_kwargs", "{stem"], KD, r"backbone_kwargs='\{stem' is not valid JSON"),
    "no JSON object": (["--loss_kwargs", "3"], KD, r"loss_kwargs='3' must be a JSON object"),
    "a number for losses": ([], {"loss_kwargs": 3}, r"loss_kwargs=3 must give each loss its options"),
    "a word for a number": (["--max_steps", "many"], KD, r"max_steps='many' must be a whole number, -1 or more"),
    "an option without its value": (["--max_steps"], KD, r"--max_steps needs a value"),
    "a stray word": (["oops"], KD, r"'oops' does not belong to an option"),
    "three sides": (["--crop_size", "1", "2", "3"], KD, r"crop_size=\[1, 2, 3\] must be 2 values"),
    "one side in a recipe": ([], {**KD, "crop_size": 512}, r"crop_size=512 must be a list of whole numbers, 2 values"),
    "an unknown schedule": (["--lr_scheduler_type", "cubic"], KD, r"cubic"),
    "an unknown option of the schedule": ([], {**KD, "lr_scheduler_kwargs": {"pwr": 1}}, r"lr_scheduler_type.*'pwr'"),
    "part of a step": ([], {**KD, "max_steps": 2.5}, r"max_steps=2.5 must be a whole number"),
    "no step": ([], {**KD, "max_steps": 0}, r"max_steps=0 would train nothing"),
    "words in a list": ([], {**KD, "scales": ["a"]}, r"scales=\['a'\] must be a list of finite numbers"),
    "an empty list": ([], {**KD, "scales": []}, r"scales=\[\] must be one value or more"),
    "a list for a mapping": ([], {**KD, "backbone_kwargs": [1]}, r"backbone_kwargs=\[1\] must be a mapping"),
    "not a number": ([], {**KD, "learning_rate": math.nan}, r"learning_rate=nan must be a finite number, 0 or more"),
    "infinity": (["--learning_rate", "inf"], KD, r"learning_rate='inf' must be a finite number"),
    "a huge batch": ([], {**KD, "total_batch_size": 10**12}, r"total_batch_size=10{12} must be 1 or more, 10{6} or"),
    "steps and epochs": ([], {**KD, "num_train_epochs": 2, "max_steps": 5}, r"exclude each other: .*max_steps=-1"),
    "warm-up to the end": ([], {**KD, "warmup_steps": 5, "max_steps": 5}, r"warmup_steps=5 must be less than the run"),
    "transformers' range": ([], {**KD, "adam_beta1": 3}, r"adam_beta1=3.0 must be 0 or more, below 1"),
    "transformers' type": ([], {**KD, "full_determinism": "maybe"}, r"full_determinism='maybe' must be true or false"),
    "an unknown score": ([], {**KD, "metric_for_best_model": "eval_loss"}, r"'eval_loss' is not among.*mean_iou"),
    "raw columns": ([], {**KD, "remove_unused_columns": True}, r"remove_unused_columns must be False"),
    "time without steps": ([], {**KD, "max_seconds": 5, "max_steps": -1}, r"max_seconds needs max_steps > 0"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_error_that_names_it(mistake):
    argv, recipe, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        distil(argv, {"use_cpu": True, **recipe})


def test_values_are_read_as_they_are_meant(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = {"class_names": ["no", 1], "pretrained_backbone": "~/r18.safetensors", "model": "~/saved", "fp16": "off"}
    given |= {"max_steps": 20.0, "data_dir": "~/data", "train_list": "~/list.txt"}
    model, data, args = train(recipe={"use_cpu": True, **given})
    assert data.class_names == ["no", "1"] and args.fp16 is False and args.max_steps == 20
    assert (model.pretrained_backbone, model.model) == ("/home/me/r18.safetensors", "/home/me/saved")
    assert (data.data_dir, data.train_list) == ("/home/me/data", "/home/me/list.txt")
    for words, meant in ((["balanced"], "balanced"), (["1", "2.5"], [1, 2.5])):
        assert train(["--class_weights", *words], {"use_cpu": True})[-1].class_weights == meant
    for written, meant in ((False, False), ("false", False), ("true", True), ("a.safetensors", "a.safetensors")):
        assert merge_arguments({"pretrained_backbone": written}, distils=False)["pretrained_backbone"] == meant


@pytest.mark.parametrize(
    ("argv", "recipe"), [(["--kd.weight", "1"], {}), ([], {"kd.weight": 1.0}), ([], {"loss": "kd"})]
)
def test_options_of_a_distillation_given_to_a_supervised_training_are_an_error(argv, recipe):
    with pytest.raises(ValueError, match="' belongs to a distillation: use `afdcd distill`"):
        train(argv, recipe)


def test_epochs_take_the_place_of_the_default_number_of_steps():
    for recipe, steps in (({"num_train_epochs": 2}, -1), ({}, 40_000), ({"max_steps": -1, "num_train_epochs": 2}, -1)):
        assert train(recipe={"use_cpu": True, **recipe})[-1].max_steps == steps


def test_a_training_keeps_what_concerns_it_and_drops_teacher_and_loss():
    recipe = {**RECIPE, "teacher": "t", "teacher_layer": "x", "student_layer": "y", "loss_max_grad_norm": 15.0}
    kept = training_part({**recipe, "loss_kwargs": {}})
    assert kept == {key: RECIPE[key] for key in RECIPE if key not in ("loss",) and "." not in key}
    assert train()[-1].max_steps == 300


# transformers' arguments


# What the Trainer, accelerate or torch do with them holds here too; a new one has to be looked at.
WITH_EFFECT = set(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16 bf16_full_eval fp16_full_eval tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size eval_on_start
    save_only_model save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub
    hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision load_best_model_at_end
    metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint full_determinism
    seed data_seed use_cpu accelerator_config parallelism_config dataloader_drop_last dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context
    dataloader_in_order remove_unused_columns ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers
    ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics
    resume_from_checkpoint local_rank train_sampling_strategy
    """.split()
)


def test_every_argument_of_transformers_has_an_effect_or_is_refused(tmp_path):
    names = {one.name for one in fields(TrainingArguments) if one.init}
    assert names == WITH_EFFECT | WITHOUT_EFFECT and not WITH_EFFECT & WITHOUT_EFFECT
    defaults = {one.name: one for one in fields(TrainingArguments)}
    for name in WITHOUT_EFFECT:
        one = defaults[name]
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        other = not default if isinstance(default, bool) else ["x"] if isinstance(default, list) else 0.5
        with pytest.raises(ValueError, match=f"{name}=.* would have no effect .*Leave it out"):
            SegmentationTrainingArguments(str(tmp_path), use_cpu=True, **{name: other})


# Recipes


def test_an_unknown_recipe_lists_the_known_ones_and_the_closest():
    with pytest.raises(FileNotFoundError, match=r"Close: quickstart") as error:
        load_recipe("quickstrat")
    assert all(name in str(error.value) for name in list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_every_value_of_a_bundled_recipe_arrives_as_it_is_written_and_its_crop_fits_its_loss(name, tmp_path):
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


def test_what_was_asked_for_is_plain_enough_for_a_file():
    odd = {"a": [SchedulerType.LINEAR, Path("x")], 1: {"b": (2e-6, None, True)}}
    assert plain_value(odd) == {"a": ["linear", "x"], 1: {"b": [2e-6, None, True]}}
