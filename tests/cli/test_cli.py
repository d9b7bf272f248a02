"""End-to-end tests of the command line: whole runs on a few generated scenes, and the answers to mistakes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from command_line import answer
from hub_client import no_waiting, serving
from images import TINY_RESNET
from PIL import Image
from safetensors.torch import load_file
from tiny import loss_options

from afdcd_hf.cli import main
from afdcd_hf.cli.training import _COMMON_OPTIONS
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.recipes import load_recipe
from afdcd_hf.training.options import DataArguments, ModelArguments, TeacherArguments
from afdcd_hf.training.recipe_arguments import parse_arguments
from afdcd_hf.training.runs import write_recipe
from afdcd_hf.training.training_args import WITHOUT_EFFECT, DistillationTrainingArguments

MODEL = {"backbone": "resnet18", "backbone_kwargs": TINY_RESNET, "pretrained_backbone": "false"}
RECIPE = {"dataset": "scenes", "max_train_samples": 4, "max_eval_samples": 2, "crop_size": [32, 64], **MODEL}
RECIPE |= {"head": "fcn", "head_channels": 8, "total_batch_size": 2, "max_steps": 2, "logging_steps": 1}
RECIPE |= {"save_strategy": "steps", "save_steps": 1, "report_to": "none", "use_cpu": True, "loss": "kd+af_dcd"}
RECIPE |= {f"af_dcd.{name}": value for name, value in loss_options()["af_dcd"].items()}


@pytest.fixture(scope="module", autouse=True)
def few_scenes():
    """Generate 8 and 4 scenes instead of the benchmark's 400 and 100."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "scenes", replace(BENCHMARKS["scenes"], split_sizes={"train": 8, "val": 4}))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A recipe, a trained teacher, a distilled student and a model without weights; tests must not write there."""
    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    wider = json.dumps({"channels": [8, 16, 16, 48], "layers": [1, 1, 1, 1]})
    teacher = ["--output_dir", str(folder / "teacher"), "--backbone_kwargs", wider, "--class_weights", "balanced"]
    assert main(["train", "--config", str(recipe), *teacher]) == 0
    student = ["--output_dir", str(folder / "student"), "--teacher", str(folder / "teacher")]
    assert main(["distill", "--config", str(recipe), *student]) == 0
    (folder / "broken").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(folder / "teacher" / name, folder / "broken")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_a_run_writes_weights_results_curves_and_card(runs, name):
    folder = runs / name
    files = contents(folder)
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "trainer_state.json"} <= files.keys()
    assert files["training_curves.png"][:4] == b"\x89PNG"
    assert not [path for path in files if path.endswith("training_args.bin")]
    results = json.loads(files["results.json"])
    assert {"mean_accuracy", "overall_accuracy"} <= results.keys() and 0 <= results["mean_iou"] <= 1
    assert list(results["per_category_iou"]) == list(BENCHMARKS["scenes"].classes) and results["num_images"] == 2
    protocol = results["protocol"]
    assert {"date", "machine", "versions", "scales", "flip", "scored_at"} <= protocol.keys()
    assert (protocol["model"], protocol["dataset"], protocol["split"]) == (name, "scenes", "val")  # no path of ours
    assert protocol["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    card = files["README.md"].decode()
    assert card.startswith("---\n") and "scenes" in card and "not measured" not in card.split("mIoU")[0]
    assert f"{100 * results['mean_iou']:.2f}" in card and "recipe.yaml" in card and str(runs) not in card
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, flags=re.MULTILINE))
    assert float(rows["Images per second in these steps"]) > 0 and re.fullmatch(
        r"\d+ MiB", rows["Peak memory, process"]
    )
    if name == "student":
        assert "distilled from **teacher** (FCN on" in card
        assert re.fullmatch(r"[\d.]+ ms: data \d+ %, teacher \d+ %, student .*", rows["Time of a step"])
        history = json.loads(files["trainer_state.json"])["log_history"]
        assert {"loss_task", "loss_kd", "loss_feature", "loss_contrast"} <= history[0].keys()


def test_a_run_writes_a_recipe_of_its_options_without_local_paths(runs, tmp_path):
    path = runs / "student" / "recipe.yaml"
    assert str(runs) not in path.read_text()
    written = load_recipe(path)
    assert written == {**RECIPE, "pretrained_backbone": False, "teacher": "teacher"}
    recipes = [{**recipe, "teacher": "t", "output_dir": str(tmp_path)} for recipe in (written, RECIPE)]
    again, first = (parse_arguments(recipe, distils=True) for recipe in recipes)
    assert again[:3] == first[:3] and again[3].loss_kwargs == first[3].loss_kwargs
    assert again[3].max_steps == 2 and again[3].use_cpu and again[3].per_device_train_batch_size == 2
    text = (runs / "teacher" / "recipe.yaml").read_text()
    assert "afdcd train --config recipe.yaml" in text
    written = yaml.safe_load(text)
    assert written["backbone_kwargs"]["channels"] == [8, 16, 16, 48]  # set on the command line
    assert "loss" not in written and not [key for key in written if "." in key]
    numbers = written["class_weights"]  # "balanced" is written as numbers
    assert len(numbers) == 8 and sum(numbers) == pytest.approx(8, abs=1e-5) and min(numbers) < 0.5
    facts = json.loads((runs / "teacher" / "card_facts.json").read_text())
    assert facts["training"]["hyperparameters"]["class_weights"] == numbers


def test_evaluate_reproduces_the_scores_of_the_run(runs, tmp_path, capsys):
    output = tmp_path / "new" / "results.json"
    options = ["--dataset", "scenes", "--max-samples", "2", "--device", "cpu"]
    assert main(["evaluate", "--model", str(runs / "student"), *options, "--output", str(output)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in BENCHMARKS["scenes"].classes) and "2 images" in table
    mine, theirs = json.loads(output.read_text()), json.loads((runs / "student" / "results.json").read_text())
    assert mine["protocol"] == theirs["protocol"]  # no path, here either
    own = dict.fromkeys(("protocol", "seconds"))
    assert {**mine, **own} == {**theirs, **own}


def test_a_second_run_into_the_same_folder_is_refused_and_changes_nothing(runs, capsys):
    before = contents(runs / "student")
    words = ["train", "--config", str(runs / "recipe.yaml"), "--output_dir", str(runs / "student")]
    for others in ([], ["--resume_from_checkpoint", str(runs / "teacher" / "checkpoint-1")]):
        line = answer(capsys, *words, *others)
        assert "is not empty" in line and "--resume_from_checkpoint last" in line and "--output_dir" in line
        assert contents(runs / "student") == before


def test_a_run_is_resumed_from_its_last_checkpoint_and_keeps_what_its_owner_put_on_its_card(runs, tmp_path, caplog):
    run = shutil.copytree(runs / "student", tmp_path / "run")
    Image.new("RGB", (4, 4)).save(tmp_path / "street.png")
    stated = ["--repo_id", "me/student", "--license", "mit", "--tag", "streets", "--note", "Mind.", "--reported", "50"]
    stated += ["a paper", "--dataset_title", "My scenes", "--picture", str(tmp_path / "street.png"), "A street"]
    assert main(["card", str(run), *stated]) == 0
    assert main(["card", str(run), "--title", "Mine", "--teacher", "me/teacher"]) == 0
    before = contents(run)
    (run / "model.safetensors").unlink()
    resume = ["--config", str(runs / "recipe.yaml"), "--output_dir", str(run), "--resume_from_checkpoint", "last"]
    resume = ["distill", *resume, "--teacher", str(runs / "teacher")]
    assert main(resume) == 0
    after = contents(run)
    settings = "training_args.json"
    assert {**after, settings: b""} == {**before, settings: b""} and "result will differ" not in caplog.text
    assert main([*resume, "--max_steps", "3", "--flip_probability", "0"]) == 0
    assert "max_steps was 2, now 3; flip_probability was 0.5, now 0.0: the result will differ" in caplog.text
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    old, new = (json.loads(text) for text in (before["card_facts.json"], (run / "card_facts.json").read_text()))
    assert new["training"]["iterations"] == 3 and new["training"]["seconds"] is None
    assert {name for name in new if new[name] != old[name]} == {"training", "measured"}
    assert new["measured"]["protocol"]["model"] == "me/student" and "# Mine\n" in (run / "README.md").read_text()
    other = shutil.copytree(runs / "teacher", tmp_path / "other", ignore=shutil.ignore_patterns("checkpoint-*"))
    assert main([*resume, "--max_steps", "4", "--teacher", str(other)]) == 0
    card = (run / "README.md").read_text()
    assert "distilled from **other** (FCN" in card and "Distilled from me/teacher, then resumed" in card


def test_a_failure_after_training_is_reported_in_one_line_keeps_the_weights_and_leaks_no_token(
    runs, tmp_path, capsys, monkeypatch
):
    def fail(*_):
        raise KeyError("per_category_iou")

    for function in ("write_recipe", "preflight"):
        monkeypatch.setattr(f"afdcd_hf.training.runs.{function}", fail)
    token, folder = "hf_" + "a1B2c3D4e5" * 3, tmp_path / "out"
    options = ["--config", str(runs / "recipe.yaml"), "--output_dir", str(folder), "--run_name", f"mine-{token}"]
    assert "afdcd train: KeyError: 'per_category_iou'" in answer(capsys, "train", *options)
    line = answer(capsys, "train", *options, "--preflight", "false")
    assert f"RuntimeError: The training is finished and the model is saved in {folder}" in line
    assert "KeyError: 'per_category_iou'" in line and (folder / "model.safetensors").is_file()
    assert not (folder / "card_facts.json").exists()  # it marks a finished run
    assert not [name for name, content in contents(folder).items() if token.encode() in content]
    private = {"data_dir": "/home/me", "unlabelled_dir": "/home/me/data", "deepspeed": "/home/me/zero2.json"}
    private |= {"push_to_hub": True, "hub_model_id": "me/mine"}
    text = write_recipe(folder, {"run_name": token, **private, "loss": "kd + /home/me/my.py:Mine"}).read_text()
    public = {"unlabelled_dir": "data", "deepspeed": "zero2.json", "loss": "kd+my.py:Mine"}
    assert token not in text and yaml.safe_load(text) == public


def test_after_a_failed_push_the_error_suggests_to_push_again_not_to_evaluate(runs, tmp_path, capsys, monkeypatch):
    no_waiting(monkeypatch)
    options = ["--config", str(runs / "recipe.yaml"), "--output_dir", str(tmp_path / "out"), "--push_to_hub"]
    with serving(tmp_path) as hub:
        hub.break_uploads = 10_000
        assert main(["train", *options, "--hub_model_id", "street/student", "--hub_strategy", "end"]) == 2
    said = capsys.readouterr().err
    assert f"`afdcd push {tmp_path / 'out'} street/student` retries it" in said and "afdcd evaluate" not in said


MISTAKES = {
    "unknown dataset": (["train", "--dataset", "scense"], ["'scense'", "scenes"]),
    "missing data_dir": (["train", "--dataset", "camvid"], ["camvid", "data_dir"]),
    "unknown backbone": (["train", "--backbone", "resnet18x"], ["'resnet18x'", "resnet18"]),
    "unknown head": (["train", "--head", "deeplab"], ["'deeplab'", "deeplabv3"]),
    "missing backbone weights": (["train", "--pretrained_backbone", "no.safetensors"], ["no.safetensors"]),
    "missing teacher": (["distill"], ["--teacher"]),
    "teacher without weights": (["distill", "--teacher", "RUNS/broken"], ["model.safetensors", "runs0/broken"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_one_helpful_line_and_status_2(runs, tmp_path, capsys, mistake):
    (command, *options), words = MISTAKES[mistake]
    options = [word.replace("RUNS", str(runs)) for word in options]
    output = ["--output_dir", str(tmp_path / "out")]
    line = answer(capsys, command, "--config", str(runs / "recipe.yaml"), *output, *options)
    assert all(word in line for word in words)
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_training_can_start_from_a_saved_model_and_ends_with_its_score_and_its_folder(runs, tmp_path, capsys):
    model = shutil.copytree(runs / "student", tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(
        config.replace('"semantic_loss_ignore_index": 255', '"semantic_loss_ignore_index": -100')
    )
    recipe = ["--config", str(runs / "recipe.yaml"), "--output_dir", str(tmp_path / "out"), "--model", str(model)]
    best = ["--load_best_model_at_end", "--eval_strategy", "steps", "--eval_steps", "1"]
    assert main(["train", *recipe, *best, "--learning_rate", "1e-9", "--crop_size", "32", "256"]) == 0  # padded
    assert "| `load_best_model_at_end` | True |" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["semantic_loss_ignore_index"] == -100
    before, after = (load_file(folder / "model.safetensors") for folder in (runs / "student", tmp_path / "out"))
    name = "head.classifier.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    score = json.loads((tmp_path / "out" / "results.json").read_text())["mean_iou"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"mIoU {100 * score:.2f} % on scenes val (2 images), from the saved weights",
        f"saved in {tmp_path / 'out'}",
    ]


def test_training_help_is_short_and_help_all_lists_every_argument(capsys):
    for command in ("train", "distill"):
        assert main([command, "--help"]) == 0
        short, hidden = capsys.readouterr().out, () if command == "distill" else ("teacher", "loss")
        assert all(f"--{name} " in short for name in _COMMON_OPTIONS if name not in hidden)
        assert len(short.splitlines()) < 60
        assert all(word in short for word in ("example:", "--config", "(default 0.02)"))
    assert "--max_steps" in short and "--dataloader_pin_memory" not in short
    assert main(["distill", "--help_all"]) == 0
    everything = capsys.readouterr().out
    for kind in (ModelArguments, TeacherArguments, DataArguments, DistillationTrainingArguments):
        for name in (one.name for one in fields(kind) if one.init):
            assert (f"--{name} " in everything) is (name not in WITHOUT_EFFECT), name
