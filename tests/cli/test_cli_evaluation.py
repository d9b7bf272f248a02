"""End-to-end tests of `afdcd evaluate`, `predict`, `datasets` and `chart`."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import answer, saved_model
from miniatures import CITYSCAPES_IDS, camvid_folder, cityscapes_folder
from PIL import Image

from afdcd_hf.cli import main
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.inference import predictions
from afdcd_hf.metrics.confusion_csv import read_confusion_csv


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory) -> Path:
    """A model of 19 classes in `model`, and three small images of Cityscapes in `data`."""
    folder = tmp_path_factory.mktemp("cityscapes")
    saved_model(folder / "model", "cityscapes")
    cityscapes_folder(folder / "data", "val", 3, size=(32, 64))
    return folder


def evaluate(folder: Path, *options: str | Path) -> int:
    where = ["--model", folder / "model", "--dataset", "cityscapes", "--data-dir", folder / "data", "--device", "cpu"]
    return main([str(word) for word in ("evaluate", *where, *options)])


def test_results_include_the_confusion_matrix_and_overwrite_others_only_on_request(cityscapes, tmp_path, capsys):
    (tmp_path / "results.json").write_text("mine")
    options = ["--model", "nowhere", "--dataset", "cityscapes", "--output", str(tmp_path / "results.json")]
    assert "results.json exists" in answer(capsys, "evaluate", *options)  # before anything is loaded
    assert (tmp_path / "results.json").read_text() == "mine"
    assert evaluate(cityscapes, "--output", tmp_path / "results.json", "--overwrite") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["num_images"] == 3
    matrix, names = read_confusion_csv(tmp_path / "results_confusion.csv")
    assert names == list(BENCHMARKS["cityscapes"].classes) and matrix.sum() == results["num_pixels"]
    hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert results["per_category_iou"]["road"] == pytest.approx(hits[0] / union[0])
    assert (tmp_path / "results_confusion.png").read_bytes()[:4] == b"\x89PNG"
    assert "frequency_weighted_iou" in results and "data_dir" not in results["protocol"]


def test_every_option_that_influences_the_number_is_in_the_protocol(cityscapes, tmp_path, capsys):
    options = ["--scales", "0.75", "1", "--flip", "--window", "24", "32", "--stride", "16", "16", "--precision", "bf16"]
    more = ["--boundary-ratio", "0.02", "--absent-as-zero", "--batch-size", "2", "--output", tmp_path / "r.json"]
    assert evaluate(cityscapes, *options, *more) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    protocol = results["protocol"]
    assert protocol["scales"] == [0.75, 1.0] and protocol["flip"] is True and protocol["window"] == [24, 32]
    assert protocol["stride"] == [16, 16] and protocol["precision"] == "bf16" and protocol["boundary_ratio"] == 0.02
    assert protocol["absent_classes"] == "count as 0" and 0 <= results["mean_boundary_iou"] <= 1
    assert "boundary IoU %" in capsys.readouterr().out


def test_scores_of_listed_images_are_printed_as_json_on_request(cityscapes, tmp_path, capsys):
    name = "leftImg8bit/val/aachen/aachen_000000_000001_leftImg8bit.png"
    truth = "gtFine/val/aachen/aachen_000000_000001_gtFine_labelIds.png"
    (tmp_path / "one.lst").write_text(f"{name}\t{truth}\n")
    assert evaluate(cityscapes, "--json", "--list-file", tmp_path / "one.lst") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["num_images"] == 1 and "confusion_matrix" not in scores
    assert None in scores["per_category_iou"].values()  # a class that occurs nowhere


def test_predictions_are_saved_in_the_test_servers_format_even_for_a_split_without_labels(cityscapes, tmp_path, capsys):
    assert evaluate(cityscapes, "--save-predictions", tmp_path / "submission") == 0
    names = sorted(path.name for path in (tmp_path / "submission").rglob("*.png"))
    assert names == [f"aachen_000000_00000{i}_labelIds.png" for i in range(3)]
    values = np.unique(np.asarray(Image.open(next((tmp_path / "submission").rglob("*.png")))))
    assert all(CITYSCAPES_IDS[int(value)] != 255 for value in values)
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert len(archive.namelist()) == 3
    cityscapes_folder(cityscapes / "data", "test", 2, size=(32, 64), kinds=())
    assert evaluate(cityscapes, "--split", "test", "--save-predictions", tmp_path / "out") == 0
    assert "nothing to score" in capsys.readouterr().out and len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_a_model_with_different_classes_is_refused_before_it_runs(cityscapes, capsys):
    options = ["--model", str(cityscapes / "model"), "--dataset", "scenes", "--max_samples", "1", "--device", "cpu"]
    assert "The model has 19 classes, but scenes has 8" in answer(capsys, "evaluate", *options)


def parquet_of_ade20k(path: Path) -> Path:
    """A dataset as on the Hub: labels as in ADE20K's files (0 = other), columns of other names."""
    from datasets import Dataset, Features, Image as ImageFeature

    label = np.zeros((32, 48), np.uint8)
    label[:, 8:], label[:, 30:] = 1, 150
    rows = {"pixels": [Image.new("RGB", (48, 32), (9, 99, 199))], "mask": [Image.fromarray(label)]}
    features = Features({"pixels": ImageFeature(), "mask": ImageFeature()})
    Dataset.from_dict(rows, features=features).to_parquet(path / "train.parquet")
    return path


def test_a_dataset_that_is_not_a_benchmark_is_scored_through_a_label_map(tmp_path):
    saved_model(tmp_path / "model", "ade20k")
    (tmp_path / "data").mkdir()
    dataset = ["--dataset", str(parquet_of_ade20k(tmp_path / "data")), "--split", "train"]
    columns = ["--image-column", "pixels", "--label-column", "mask"]
    label_map = json.dumps({"0": 255, "1": 0, "150": 149})
    for name, mapping in {"as": ["--labels-as", "ade20k"], "map": ["--label-map", label_map]}.items():
        options = ["--model", str(tmp_path / "model"), *dataset, *columns, *mapping, "--device", "cpu"]
        assert main(["evaluate", *options, "--output", str(tmp_path / f"{name}.json")]) == 0
        matrix, names = read_confusion_csv(tmp_path / f"{name}_confusion.csv")
        truth = {names[index]: count for index, count in enumerate(matrix.sum(1)) if count}
        assert truth == {"wall": 22 * 32, "flag": 18 * 32}


def test_images_are_segmented_in_the_benchmarks_colours(cityscapes, tmp_path, capsys):
    images = cityscapes / "data" / "leftImg8bit" / "val"
    where = ["--model", str(cityscapes / "model"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(images), *where, "--window", "16", "32"]) == 0
    assert "3 images segmented" in capsys.readouterr().out
    ids = sorted((tmp_path / "out" / "ids").rglob("*.png"))
    color = sorted((tmp_path / "out" / "color").rglob("*.png"))
    label_map = np.asarray(Image.open(ids[0]))
    palette = np.array(BENCHMARKS["cityscapes"].palette)
    assert label_map.shape == (32, 64) and np.array_equal(np.asarray(Image.open(color[0])), palette[label_map])
    assert "exists" in answer(capsys, "predict", str(images), *where)
    refused = answer(capsys, "predict", str(images), *where, "--confidence", "0.5")
    assert "--confidence can only be used with --as_labels" in refused
    where[3] = str(tmp_path / "labels")
    assert "--overwrite cannot be used with --as_labels" in answer(
        capsys, "predict", str(images), *where, "--as-labels", "--overwrite"
    )
    assert main(["predict", str(images), *where, "--as-labels", "--confidence", "0"]) == 0
    printed = capsys.readouterr().out
    assert "3 images with 100.0% of their pixels labelled" in printed
    [_, dataset, *rest] = shlex.split(printed.partition("train on them\n  with ")[2])
    assert dataset == where[3] and rest == ["--eval_split", "train", "--class_names", *BENCHMARKS["cityscapes"].classes]


def test_datasets_are_listed_described_and_checked(cityscapes, capsys):
    assert main(["datasets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in BENCHMARKS) and "train 2975" in listed
    assert main(["datasets", "voc"]) == 0
    described = capsys.readouterr().out
    assert "SegmentationClassAug" in described and "tvmonitor" in described and "255 = ignored" in described
    assert main(["datasets", "cityscapes", "--data-dir", str(cityscapes / "data")]) == 0
    checked = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "3 of 500 images" in checked["val"] and "leftImg8bit/train" in checked["train"]
    assert "is not a benchmark, so only its labels can be counted: add --stats" in answer(
        capsys, "datasets", str(cityscapes)
    )
    assert "no split of ade20k can be used" in answer(capsys, "datasets", "ade20k", "--data-dir", str(cityscapes))


def test_the_labels_of_any_dataset_are_counted_and_drawn(tmp_path, capsys):
    camvid_folder(tmp_path / "camvid", "train", 3, size=(32, 48))
    counting = ["datasets", "camvid", "--data-dir", str(tmp_path / "camvid"), "--stats"]
    assert main([*counting, "--output", str(tmp_path / "samples.png")]) == 0
    table = capsys.readouterr().out
    assert "10 bicyclist" in table and "3 labelled images of 32x48 pixels" in table
    assert (tmp_path / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert "samples.png exists" in answer(capsys, *counting, "--output", str(tmp_path / "samples.png"))
    (tmp_path / "other").mkdir()
    other = ["datasets", str(parquet_of_ade20k(tmp_path / "other")), "--stats", "--image-column", "pixels"]
    other += ["--label-column", "mask", "--label-map", json.dumps({"0": 255, "1": 0, "150": 1}), "--json"]
    assert main(other) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["sizes"] == [{"height": 32, "width": 48, "images": 1}] and facts["ignored_share"] == 8 / 48
    counted = [["class 0", 22 * 32, 22 / 40, 1], ["class 1", 18 * 32, 18 / 40, 1]]
    assert [list(one.values())[:4] for one in facts["classes"]] == counted
    assert "--split can only be used with --stats" in answer(capsys, "datasets", "camvid", "--split", "val")


def test_charts_are_drawn_from_files_and_overwrite_none(cityscapes, tmp_path, capsys):
    assert evaluate(cityscapes, "--output", tmp_path / "a.json") == 0
    output = ["--output", str(tmp_path / "chart.png")]
    results = [f"first={tmp_path / 'a.json'}", f"second={tmp_path / 'a.json'}"]
    assert main(["chart", "classes", *results, *output]) == 0
    assert (tmp_path / "chart.png").read_bytes()[:4] == b"\x89PNG"
    mirrored = json.loads((tmp_path / "a.json").read_text())
    mirrored["protocol"]["flip"] = True
    (tmp_path / "b.json").write_text(json.dumps(mirrored))
    unequal = ["chart", "classes", str(tmp_path / "a.json"), str(tmp_path / "b.json"), *output, "--overwrite"]
    said = answer(capsys, *unequal)
    assert "a.json, b.json were measured with different protocols" in said and "flip: False, True" in said
    assert main([*unequal, "--allow_other_protocol"]) == 0
    matrix = ["chart", "confusion", str(tmp_path / "a_confusion.csv"), *output]
    assert "chart.png exists" in answer(capsys, *matrix)
    assert main([*matrix, "--overwrite"]) == 0
    models = [f"tiny={cityscapes / 'model'}", "--dataset", "cityscapes", "--data-dir", str(cityscapes / "data")]
    drawn = [*models, "--errors", "--indices", "0", "2", "--output", str(tmp_path / "p.png")]
    assert main(["chart", "predictions", *drawn]) == 0
    assert "same title" in answer(capsys, "chart", "classes", "x=a.json", "x=b.json")
    assert "index 9 is out of range" in answer(capsys, "chart", "predictions", *models, "--indices", "9")


def test_predictions_show_the_miou_only_for_the_same_data_and_protocol(tmp_path, monkeypatch):
    noted, score = [], "mIoU 50.0 %"

    def note(*_: Any, notes: Any, indices: Any, errors: Any, **data: Any) -> None:
        noted.append(notes)
        assert data == {"dataset": "camvid", "split": "val", "label_map": {"1": 0}}  # reach `load_split`

    monkeypatch.setattr(predictions, "draw_predictions", note)
    models = [str(tmp_path / name) for name in ("a", "b", "none")]
    for one, notes in (({}, {"a": score, "b": score}), ({"split": "test"}, {"b": score}), ({"flip": True}, {})):
        for name, protocol in {"a": one, "b": {}}.items():
            results = {"mean_iou": 0.5, "protocol": {"dataset": "camvid", "split": "val", **protocol}}
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.json").write_text(json.dumps(results))
        options = ["--dataset", "camvid", "--label_map", '{"1": 0}', "--output", str(tmp_path / "p.png")]
        assert main(["chart", "predictions", *models, *options]) == 0
        assert noted.pop() == notes


def test_curves_are_drawn_from_a_runs_folder(tmp_path, capsys):
    history = [{"step": step, "loss": 2 / step, "loss_task": 1 / step} for step in range(1, 5)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    assert main(["chart", "curves", str(tmp_path), "--output", str(tmp_path / "curves.png")]) == 0
    assert "curves.png" in capsys.readouterr().out
    assert str(tmp_path) in answer(capsys, "chart", "curves", str(tmp_path / "nothing"))
