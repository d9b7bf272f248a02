"""Evaluation: the same scores as an independent computation, for any batches, sizes and processes."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState, debug_launcher
from images import labelled_image
from PIL import Image
from sklearn.metrics import confusion_matrix
from tiny import segmenter
from torch import nn
from torch.nn import functional as F
from transformers import MobileViTImageProcessor

from afdcd_hf import AfDcdImageProcessor, evaluate_segmenter
from afdcd_hf.cli import _parser
from afdcd_hf.cli.command import inference_settings
from afdcd_hf.evaluation.results import check_writable, dataset_context, evaluate_command, public_protocol
from afdcd_hf.inference.segment import InferenceSettings, segment_image
from afdcd_hf.metrics.boundary_iou import StreamingBoundaryIoU

SIZES = ((16, 24), (24, 16), (16, 24), (17, 31), (16, 24), (24, 16), (20, 20))


def odd_images() -> list[dict]:
    """Make seven images of four sizes."""
    return [labelled_image(index, 4, *size) for index, size in enumerate(SIZES)]


def lively(model: nn.Module) -> nn.Module:
    """Make a random model predict every class somewhere: an untrained classifier tends to prefer one."""
    with torch.no_grad():
        logits = model.eval()(pixel_values=torch.from_numpy(pixels(labelled_image(0, 4, 16, 24)["image"]))).logits
        model.head.classifier.bias -= logits.mean(dim=(0, 2, 3))
    return model


def pixels(image: Image.Image) -> np.ndarray:
    """Process an image by hand: (1, 3, H, W), ImageNet's mean and standard deviation."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)


@torch.no_grad()
def predictions_by_hand(model: nn.Module, image: Image.Image, align_corners: bool = True) -> np.ndarray:
    logits = model.eval()(pixel_values=torch.from_numpy(pixels(image))).logits
    scores = F.interpolate(logits, (image.height, image.width), mode="bilinear", align_corners=align_corners)
    return scores.argmax(1)[0].numpy()


def confusion_by_hand(model: nn.Module, rows: list[dict], num_labels: int, align_corners: bool = True) -> np.ndarray:
    total = np.zeros((num_labels, num_labels), dtype=np.int64)
    for row in rows:
        truth, predicted = np.asarray(row["label"]), predictions_by_hand(model, row["image"], align_corners)
        kept = truth != 255
        total += confusion_matrix(truth[kept], predicted[kept], labels=range(num_labels))
    return total


def evaluate(model: nn.Module, rows: list[dict], **options) -> dict:
    return evaluate_segmenter(model, rows, **{"processor": AfDcdImageProcessor(), "progress": False, **options})


def without_matrix(scores: dict) -> dict:
    """Return the scores that can be compared with == and written as JSON."""
    return {name: value for name, value in scores.items() if name not in ("confusion_matrix", "seconds")}


class Plain(nn.Module):
    """A model of no library: no configuration, one convolution at a quarter of the resolution."""

    def __init__(self, num_labels: int):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_labels, 4, stride=4)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.conv(pixel_values))


@pytest.mark.parametrize("kind", [segmenter, Plain])
def test_scores_equal_those_of_sklearn_on_predictions_made_by_hand(kind):
    model, rows, options = (Plain(4), odd_images(), {"num_labels": 4, "id2label": dict(enumerate("abcd"))})
    if kind is segmenter:
        model, options = lively(segmenter()), {}
    matrix = confusion_by_hand(model, rows, 4, align_corners=kind is segmenter)
    assert kind is Plain or (matrix.sum(axis=0) > 0).sum() >= 3  # several classes, so that mistakes are possible
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    scores = evaluate(model, rows, **options)
    iou = hits / (truth + predicted - hits)
    names = model.config.id2label if kind is segmenter else options["id2label"]
    assert scores["per_category_iou"] == pytest.approx(dict(zip(names.values(), iou, strict=True)), abs=1e-12)
    assert scores["mean_iou"] == pytest.approx(iou.mean(), abs=1e-12)
    assert scores["mean_accuracy"] == pytest.approx((hits / truth).mean(), abs=1e-12)
    assert scores["overall_accuracy"] == pytest.approx(hits.sum() / matrix.sum(), abs=1e-12)
    assert scores["num_pixels"] == matrix.sum() == sum((height - 1) * width for height, width in SIZES)
    assert scores["frequency_weighted_iou"] == pytest.approx((truth / matrix.sum() * iou).sum(), abs=1e-12)
    assert scores["confusion_matrix"].dtype == np.int64 and np.array_equal(scores["confusion_matrix"], matrix)
    assert scores["num_images"] == scores["num_labelled"] == 7 and "mean_boundary_iou" not in scores
    assert scores["protocol"]["align_corners"] is (kind is segmenter)


def test_a_label_that_does_not_fit_is_an_error_naming_the_image():
    first = odd_images()[0]
    for row, message in (
        ({"label": Image.new("L", (24, 12)), "name": "x"}, "x: the image is 16x24 pixels but its label 12x24"),
        ({"label": Image.new("L", (24, 16), 9)}, r"image 1: 384 label pixels .* outside 0\.\.3 \(values 9\)"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(segmenter(), [first, {"image": first["image"], **row}])


def test_unscorable_data_is_rejected_and_a_ground_truth_of_one_class_gives_a_warning(caplog):
    for model, given, options, message in (
        (segmenter(num_labels=1), odd_images(), {}, "A model of one class is right at every pixel"),
        (segmenter(), [], {}, "the dataset is empty"),
        (Plain(4), odd_images(), {}, "Pass num_labels to evaluate_segmenter"),
        (segmenter(), odd_images(), {"boundary_ratio": 2, "on_prediction": pytest.fail}, "ratio=2: expected a share"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, given, **options)
    crack = np.where(np.asarray(odd_images()[0]["label"]) == 1, 255, 0).astype(np.uint8)  # a mask of 0 and 255
    evaluate(segmenter(num_labels=2), 2 * [{**odd_images()[0], "label": Image.fromarray(crack)}])
    assert "All labelled pixels are 'LABEL_0': this score says little" in caplog.text
    caplog.clear()
    evaluate(segmenter(), odd_images())
    assert not caplog.text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_random_state_is_changed(num_workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    scores = evaluate(segmenter(), odd_images(), num_workers=num_workers)
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    parts = scores["seconds"]
    assert parts.keys() == {"waiting for images", "model", "label maps", "counting", "all"}
    assert 0 < sum(parts.values()) - parts["all"] <= parts["all"] + 0.01


def test_the_models_mode_is_restored_even_after_an_error():
    model, rows = segmenter().train(), odd_images()[:1]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    evaluate(model, rows)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    with pytest.raises(ValueError):
        evaluate(model, [{**rows[0], "label": Image.new("L", (24, 16), 77)}])
    assert all(module.training for module in model.modules())


def test_the_protocol_holds_everything_that_influences_the_score():
    scores = evaluate(segmenter(), odd_images())
    expected = {"scales": [1.0], "flip": False, "window": None, "stride": None, "precision": "fp32", "dtype": "float32"}
    expected |= {"scored_at": "label size", "logits_upsampling": "bilinear", "align_corners": True, "ignore_index": 255}
    expected |= {"absent_classes": "left out of the mean", "boundary_ratio": None, "input_size": "image size"}
    expected |= {"input_resampling": None, "channel_order": "RGB", "rescale_factor": 1 / 255}
    expected |= {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    assert json.loads(json.dumps(scores["protocol"])) == expected
    released = {"do_flip_channels": True, "do_rescale": False, "image_mean": [104, 117, 123], "image_std": [1, 1, 1]}
    resize = {"do_resize": True, "size": {"height": 32, "width": 32}, "do_normalize": False}
    given = {"channel_order": "BGR", "rescale_factor": None, "image_mean": [104, 117, 123]}
    resized = {"input_size": resize["size"], "input_resampling": "bilinear", "image_mean": None, "image_std": None}
    for processor, facts in (
        (AfDcdImageProcessor(**released), given),
        (AfDcdImageProcessor(**resize), resized),
        (MobileViTImageProcessor(do_resize=False), {"channel_order": "BGR", "input_size": "image size"}),
    ):
        scores = evaluate(segmenter(), odd_images()[:2], processor=processor)
        assert scores["protocol"].items() >= facts.items() and scores["num_pixels"] == 15 * 24 + 23 * 16


SLIDING = InferenceSettings(scales=(0.75, 1.5), flip=True, window=(12, 16), stride=(7, 9), precision="bf16")


def test_settings_reach_the_model_and_the_protocol_and_boundaries_are_scored_on_the_same_label_maps():
    model, rows, seen = lively(segmenter()), odd_images()[:4], {}
    options = {"settings": SLIDING, "batch_size": 2, "boundary_ratio": 0.1}
    scores = evaluate(model, rows, **options, on_prediction=seen.__setitem__)
    assert scores["protocol"].items() >= {**SLIDING.describe(), "boundary_ratio": 0.1}.items()
    metric = StreamingBoundaryIoU(4, ratio=0.1, id2label=model.config.id2label)
    for row in rows:
        assert np.array_equal(seen[row["name"]], segment_image(model, AfDcdImageProcessor(), row["image"], SLIDING))
        metric.update(seen[row["name"]], np.asarray(row["label"]))
    assert scores["mean_boundary_iou"] != scores["mean_iou"] and scores.items() >= metric.compute().items()


def test_every_prediction_is_passed_on_once_with_its_name_even_without_a_label():
    model, rows, calls = lively(segmenter()), odd_images(), []
    some = [{**row, "label": None} if index % 2 else row for index, row in enumerate(rows)]
    del some[1]["label"], some[2]["name"]
    scores = evaluate(model, some, on_prediction=lambda *call: calls.append(call))
    assert {name for name, _ in calls} == {row.get("name", "image 2") for row in some} and len(calls) == 7
    for name, label_map in calls:
        image = next(row["image"] for row in some if row.get("name", "image 2") == name)
        assert label_map.dtype == np.uint8 and np.array_equal(label_map, predictions_by_hand(model, image))
    assert (scores["num_images"], scores["num_labelled"]) == (7, 4)
    assert without_matrix(scores) == {**without_matrix(evaluate(model, rows[::2])), "num_images": 7}
    with pytest.raises(ValueError, match=r"columns \['image'\]; 'image' and 'label' are needed"):
        evaluate(model, datasets.Dataset.from_dict({"image": []}))


def test_ignore_index_and_absent_classes_count_as_configured():
    model, rows = lively(segmenter(num_labels=6)), odd_images()
    with torch.no_grad():
        model.head.classifier.bias[4:] = -1e6  # classes 4 and 5 are neither in the truth nor predicted
    usual = evaluate(model, rows)
    for row in rows:
        row["label"] = row["label"].point(lambda value: 200 if value == 255 else value)
    scores = evaluate(model, rows, ignore_index=200, absent_as_zero=True)
    assert evaluate(model, odd_images(), ignore_index=-100)["mean_iou"] == usual["mean_iou"]  # files have 255
    assert scores["absent_classes"] == usual["absent_classes"] == ["LABEL_4", "LABEL_5"]
    assert scores["mean_iou"] == pytest.approx(usual["mean_iou"] * 4 / 6, abs=1e-12)
    assert scores["protocol"].items() >= {"ignore_index": 200, "absent_classes": "count as 0"}.items()


PROCESSES = {"batch_size": 2, "boundary_ratio": 0.05, "settings": InferenceSettings(flip=True, window=(16, 16))}


@pytest.mark.slow
def test_two_processes_score_an_odd_number_of_images_exactly_like_one(tmp_path):
    debug_launcher(_score_on_this_rank, (tmp_path,))
    model, label_maps = lively(segmenter()).double(), {}  # as above
    alone = evaluate(model, some_labelled(), **PROCESSES, on_prediction=label_maps.__setitem__)
    assert alone["num_labelled"] == 6 and 0 < alone["mean_boundary_iou"] < 1
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == json.loads(json.dumps(_as_json(alone)))
    assert {path.stem for path in tmp_path.glob("*.npy")} == label_maps.keys() and len(label_maps) == 7
    for name, label_map in label_maps.items():
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), label_map)


def some_labelled() -> list[dict]:
    rows = odd_images()
    rows[3]["label"] = None
    return rows


def _as_json(scores: dict) -> dict:
    return {**without_matrix(scores), "confusion_matrix": scores["confusion_matrix"].tolist()}


def _score_on_this_rank(folder: Path) -> None:
    PartialState._reset_state()  # inherited from the forked process

    def write(name: str, label_map: np.ndarray) -> None:
        with (folder / f"{name}.npy").open("xb") as file:  # x: a second time is an error
            np.save(file, label_map)

    state = PartialState(cpu=True)
    model = lively(segmenter()).double()
    scores = evaluate(model, some_labelled(), **PROCESSES, on_prediction=write)
    assert state.num_processes == 2
    (folder / f"{state.process_index}.json").write_text(json.dumps(_as_json(scores)))


# results.json: its content, and the command that it names


DEFAULTS = {"model": "runs/m", "dataset": "scenes", "split": "val", "scales": [1.0], "flip": False, "window": None,
            "stride": None, "precision": "fp32", "absent_classes": "left out of the mean"}  # fmt: skip


def parsed(protocol):
    program, name, *words = shlex.split(evaluate_command(protocol))
    assert (program, name) == ("afdcd", "evaluate")
    command = _parser()[1].choices["evaluate"]
    return argparse.Namespace(**command.options(words))


def test_the_command_of_a_plain_evaluation_is_short():
    assert evaluate_command(DEFAULTS) == "afdcd evaluate --model runs/m --dataset scenes --split val"
    assert evaluate_command({**DEFAULTS, "dataset": "voc"}).endswith("--dataset voc --split val --data_dir FOLDER")


def test_the_command_sets_everything_that_influences_the_score_and_is_quoted_for_a_shell():
    asked = {"scales": [0.5, 1.25], "flip": True, "window": [512, 1024], "stride": [256, 512], "precision": "bf16"}
    words = {"boundary_ratio": 0.005, "max_samples": 7, "list_file": "it's my list.txt", "model": "$(touch PWNED)"}
    words |= {"dataset": "x; touch PWNED #", "split": "train[:80%]", "image_column": "pixels", "label_column": "mask"}
    words |= {"labels_as": "ade20k", "data_dir": "parts/v2"}
    args = parsed({**DEFAULTS, **asked, **words, "absent_classes": "count as 0", "label_map": {"it's": 255}})
    assert inference_settings(vars(args)) == InferenceSettings(**asked)
    assert args.absent_as_zero and json.loads(args.label_map) == {"it's": 255}
    assert vars(args).items() >= words.items()


def test_the_part_of_a_dataset_is_in_the_protocol_but_no_local_path(tmp_path):
    for given, kept in (("parts/v2", "parts/v2"), (tmp_path / "v2", "v2"), ("../secret/v2", "v2"), (None, None)):
        assert public_protocol(dataset_context("me/streets", "val", given)).get("data_dir") == kept
    assert dataset_context("camvid", "val", tmp_path) == {"dataset": "camvid", "split": "val"}


def test_unwritable_results_are_reported_before_the_evaluation(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give --output the name of a file"):
        check_writable(tmp_path)
    with pytest.raises(OSError, match="/proc/results.json"):
        check_writable("/proc/results.json")
    (tmp_path / "r_confusion.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="r_confusion.csv exists"):
        check_writable(tmp_path / "r.json")
