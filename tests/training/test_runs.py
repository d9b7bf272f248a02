"""The initial model of a run, new or saved, and the quickstart from end to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from images import labelled_image
from PIL import Image
from tiny import distilling, same, samples, segformer, segmenter, weights
from torch import nn

from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.hub.card_facts import read_facts
from afdcd_hf.hub.model_card import render_card
from afdcd_hf.models.loading import load_model
from afdcd_hf.training import quickstart
from afdcd_hf.training.checkpoints import mark_complete
from afdcd_hf.training.new_model import build_model, initial_weights, reset_classifiers
from afdcd_hf.training.options import ModelArguments
from afdcd_hf.training.runs import FinishedRun

SHORT = ["--max_steps", "2", "--total_batch_size", "2", "--warmup_steps", "0", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the three runs, and the printed output."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    printed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "scenes", replace(BENCHMARKS["scenes"], split_sizes={"train": 6, "val": 5}))
        for name in ("train", "distill"):
            run = getattr(quickstart, name)
            patch.setattr(quickstart, name, lambda recipe, argv, run=run: run(recipe, [*argv, *SHORT]))
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        quickstart.quickstart(folder, seed=3)
        yield folder, "\n".join(printed)


def test_the_table_holds_the_scores_of_the_saved_folders_and_the_gain_over_the_student_alone(finished):
    folder, printed = finished
    scores = {name: json.loads((folder / name / "results.json").read_text())["mean_iou"] for name in quickstart.TITLES}
    for name, title in quickstart.TITLES.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(title + " ")]
        assert f"{100 * scores[name]:.2f}" in line
    assert line.split()[-1] == f"{100 * (scores['distilled'] - scores['student-alone']):+.2f}"  # the table's last line


def test_the_distilled_student_has_a_card_images_and_curves(finished):
    best = finished[0] / "distilled"
    assert min(Image.open(best / name).width for name in ("predictions.png", "training_curves.png")) > 500
    card = ModelCard.load(best / "README.md")
    assert all(title in card.text.split("### Comparison")[1].split("###")[0] for title in quickstart.TITLES.values())
    assert "predictions.png" in card.text and card.data.eval_results[0].metric_type == "mean_iou"


def test_every_run_saves_facts_without_local_paths_and_all_have_the_same_budget(finished):
    folder, settings = finished[0], {}
    for name in quickstart.TITLES:
        facts = read_facts(folder / name)
        assert render_card(facts) == (folder / name / "README.md").read_text("utf-8")
        training, dataset = facts.training, facts.dataset
        assert training.iterations == 2 and training.seconds_in_steps > 0 and training.images_per_second > 0
        assert (dataset.train_images, dataset.num_images) == (6, 5) and len(dataset.train_fingerprint) == 16
        assert [(row.height, row.width) for row in facts.costs] == [(512, 512), (512, 1024), (1024, 2048)]
        assert facts.started_from == "random weights"
        for path in ("README.md", "card_facts.json", "results.json"):
            assert str(folder.parent) not in (folder / name / path).read_text("utf-8")
        settings[name] = json.loads((folder / name / "training_args.json").read_text())
    assert facts.teacher == "teacher" and facts.teacher_architecture.startswith("DeepLabV3 on ")
    assert [row.model for row in facts.comparison] == list(quickstart.TITLES.values())
    for name in ("seed", "max_steps", "learning_rate", "optim", "weight_decay", "per_device_train_batch_size"):
        assert settings["student-alone"][name] == settings["distilled"][name], name
    assert settings["distilled"]["seed"] == 3


def test_a_second_call_trains_only_unfinished_runs_and_resumes_those_with_a_complete_checkpoint(
    finished, tmp_path, monkeypatch
):
    folder, called = tmp_path / "out", []
    shutil.copytree(finished[0], folder)
    for name in ("teacher", "distilled"):
        shutil.rmtree(folder / name)
        (folder / name / "checkpoint-1").mkdir(parents=True)
        (folder / name / "checkpoint-1" / "training_args.json").write_text('{"seed": 3}')
    mark_complete(folder / "distilled" / "checkpoint-1", {})  # the teacher was killed while writing
    shutil.copytree(folder / "teacher", tmp_path / "stopped" / "teacher")

    def run(recipe, argv):
        called.append(argv)
        target = Path(argv[argv.index("--output_dir") + 1])
        shutil.copytree(finished[0] / target.name, target, dirs_exist_ok=True)
        return FinishedRun(target, read_facts(target))

    for name in ("train", "distill"):
        monkeypatch.setattr(quickstart, name, run)
    monkeypatch.setattr(quickstart, "draw_predictions", lambda *_, **__: None)
    for _ in range(2):  # the second time, everything is finished
        assert quickstart.quickstart(folder, seed=3) == folder / "distilled"
    assert called == [
        ["--output_dir", str(folder / "teacher"), "--seed", "3"],
        ["--output_dir", str(folder / "distilled"), "--seed", "3", "--resume_from_checkpoint", "last",
         "--teacher", str(folder / "teacher")],
    ]  # fmt: skip
    assert (folder / "teacher-stopped-1" / "checkpoint-1").is_dir()
    for place in (folder, tmp_path / "stopped"):
        with pytest.raises(FileExistsError, match="quickstart with another seed than 4"):
            quickstart.quickstart(place, seed=4)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files, such as mine.txt; give another --output_dir"):
        quickstart.quickstart(folder)


# Starting from a saved model

NAMES = ["sky", "sun", "sea", "sand"]
OURS = ["head.classifier", "auxiliary_head.classifier"]


def saved(folder, model):
    model.config.id2label, model.config.label2id = dict(enumerate(NAMES)), {name: i for i, name in enumerate(NAMES)}
    return weights(model), ModelArguments(model=str(tiny.saved(folder, model)))


@pytest.mark.parametrize(("make", "classes"), [
    (lambda: segmenter(auxiliary_head=True), ["a", "b", "c"]), (segformer, [*NAMES, "ship"]), (segformer, NAMES[::-1]),
], ids=["fewer", "more", "order"])  # fmt: skip
def test_different_classes_reset_only_the_classifiers_with_a_warning(tmp_path, caplog, make, classes):
    before, args = saved(tmp_path / "old", make())
    torch.manual_seed(3)
    model, _ = build_model(args, classes)
    layers = OURS if hasattr(model, "auxiliary_head") else ["decode_head.classifier"]
    after, expected = weights(model), {}
    torch.manual_seed(3)
    for path in layers:
        fresh = nn.Conv2d(before[f"{path}.weight"].shape[1], len(classes), 1)  # PyTorch's own initialisation
        expected |= {f"{path}.{name}": tensor for name, tensor in weights(fresh).items()}
    assert same({name: after[name] for name in expected}, expected)
    kept = before.keys() - expected.keys()
    assert same({name: after[name] for name in kept}, {name: before[name] for name in kept})
    assert model.config.id2label == dict(enumerate(classes)) and model.config.label2id[classes[2]] == 2
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert f"trained for 4 classes ({', '.join(NAMES)}), the dataset has {len(classes)} ({classes[0]}, " in warning
    assert " and ".join(layers) in warning
    assert initial_weights(args) == {"started_from": "the saved model old"}


def test_a_student_with_new_classes_trains_scores_and_loads_and_equal_classes_keep_every_weight(tmp_path, caplog):
    classes = [*NAMES, "ship", "shore"]
    before, args = saved(tmp_path / "old", segmenter(auxiliary_head=True))
    assert same(weights(build_model(args, [name.title() for name in NAMES])[0]), before) and not caplog.records
    model, processor = build_model(args, classes)
    rows = [labelled_image(index, 6, 32, 48) for index in range(2)]
    options = {"train_dataset": samples(num_labels=6), "eval_dataset": rows, "processing_class": processor}
    trainer = distilling(tmp_path, model, segmenter(1, channels=48, num_labels=6), max_steps=1, **options)
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1
    trainer.save_model()
    loaded = load_model(tmp_path)
    assert list(loaded.config.id2label.values()) == classes and same(weights(loaded), weights(trainer.student))

    trainer.student.head.classifier = nn.Sequential(nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="cannot be reset.*num_labels and ignore_mismatched_sizes=True"):
        reset_classifiers(trainer.student, ["a", "b", "c"])
