"""The quickstart from end to end, with a few scenes and two steps a training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from afdcd_hf import AfDcdForSemanticSegmentation
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.hub.card_facts import read_facts
from afdcd_hf.hub.model_card import render_card
from afdcd_hf.training import quickstart
from afdcd_hf.training.runs import FinishedRun

SHORT = ["--max_steps", "2", "--total_batch_size", "2", "--warmup_steps", "0", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder above the three runs, and what was printed."""
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
    gain = 100 * (scores["distilled"] - scores["student-alone"])
    assert line.split()[-1] == f"{gain:+.2f}"  # the distilled student's line is the last of the table


def test_the_distilled_student_comes_with_card_pictures_and_curves(finished):
    best = finished[0] / "distilled"
    assert AfDcdForSemanticSegmentation.from_pretrained(best).config.num_labels == 8
    assert min(Image.open(best / name).width for name in ("predictions.png", "training_curves.png")) > 500
    card = ModelCard.load(best / "README.md")
    comparison = card.text.split("### Comparison")[1].split("###")[0]
    assert all(title in comparison for title in quickstart.TITLES.values())
    assert "predictions.png" in card.text and card.data.eval_results[0].metric_type == "mean_iou"


def test_the_facts_of_every_run_lie_beside_its_card_and_name_no_local_path(finished):
    folder, _ = finished
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
    assert facts.teacher == "teacher" and facts.teacher_architecture.startswith("DeepLabV3 on ")
    assert [row.model for row in facts.comparison] == list(quickstart.TITLES.values())


def test_student_alone_and_distilled_start_from_the_same_weights_and_budget(finished):
    settings = [json.loads((finished[0] / name / "training_args.json").read_text()) for name in quickstart.TITLES]
    _, alone, distilled = settings
    for name in ("seed", "max_steps", "learning_rate", "optim", "weight_decay", "per_device_train_batch_size"):
        assert alone[name] == distilled[name], name
    assert alone["seed"] == 3


def test_a_second_call_trains_only_what_is_not_finished_and_continues_what_was_stopped(finished, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(finished[0], folder)
    shutil.rmtree(folder / "distilled")
    (folder / "distilled" / "checkpoint-1").mkdir(parents=True)
    called = []

    def distill(recipe, argv):
        called.append(argv)
        shutil.rmtree(folder / "distilled")
        shutil.copytree(finished[0] / "distilled", folder / "distilled")
        return FinishedRun(folder / "distilled", read_facts(folder / "distilled"))

    monkeypatch.setattr(quickstart, "distill", distill)
    monkeypatch.setattr(quickstart, "train", None)
    for _ in range(2):  # the second time everything is finished
        assert quickstart.quickstart(folder, seed=3) == folder / "distilled"
    ((*_, resume, last, teacher, where),) = called
    assert [resume, last, teacher, where] == ["--resume_from_checkpoint", "last", "--teacher", str(folder / "teacher")]
    with pytest.raises(FileExistsError, match="quickstart with another seed than 4"):
        quickstart.quickstart(folder, seed=4)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files, such as mine.txt; give another --output_dir"):
        quickstart.quickstart(folder)
