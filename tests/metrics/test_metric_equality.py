"""The scores against scikit-learn's, cityscapesScripts', and the formulas of papers' scripts."""

from __future__ import annotations

import copy
import math

import evaluate
import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes_script
from cityscapesscripts.helpers.labels import trainId2label
from miniatures import CITYSCAPES_IDS, cityscapes_folder, train_ids
from PIL import Image

from afdcd_hf import StreamingMeanIoU
from afdcd_hf.metrics.mean_iou import streaming_mean_iou_path
from afdcd_hf.metrics.streaming_mean_iou import StreamingMeanIoUMetric

IGNORED = 255


def random_maps(seed, num_labels=19, sizes=((37, 53), (64, 1), (1, 1), (41, 29))):
    """Draw maps of odd sizes in large regions; two classes occur nowhere, one only in the truth, one only predicted."""
    rng = np.random.default_rng(seed)
    nowhere, elsewhere, only_true, only_predicted = rng.choice(num_labels, 4, replace=False)
    predictions, references = [], []
    for height, width in sizes:
        regions = rng.integers(0, num_labels, (height // 8 + 1, width // 8 + 1))
        truth = np.kron(regions, np.ones((8, 8), int))[:height, :width].astype(np.uint8)
        predicted = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, num_labels, truth.shape))
        truth[np.isin(truth, (nowhere, elsewhere, only_predicted))] = IGNORED
        truth[rng.random(truth.shape) < 0.1] = IGNORED
        predicted[np.isin(predicted, (nowhere, elsewhere, only_true))] = only_predicted
        predictions.append(predicted.astype(np.uint8))
        references.append(truth)
    return predictions, references


def scores_of(predictions, references, num_labels, **options):
    """Return our class's scores, after checking that the module for `evaluate` gives the same."""
    streaming = StreamingMeanIoU(num_labels, IGNORED, **options)
    streaming.add_batch(predictions=predictions, references=references)
    scores = streaming.compute()
    module = StreamingMeanIoUMetric(num_labels=num_labels, keep_in_memory=True, **options)
    for name, value in module.compute(predictions=predictions, references=references).items():
        ours = list(scores[name].values()) if isinstance(scores[name], dict) else scores[name]
        np.testing.assert_array_equal(value, ours, err_msg=name)
    return {
        name: np.array(list(value.values())) if isinstance(value, dict) else value for name, value in scores.items()
    }


@pytest.mark.parametrize("seed", range(3))
def test_counting_absent_classes_as_zero_equals_the_released_codes_formula(seed):
    """Count classes from 1, so that ignored pixels become 0; an epsilon keeps the denominator from being zero."""
    predictions, references = random_maps(seed)
    both, union, labelled = np.zeros(19), np.zeros(19), 0
    for predicted, truth in zip(predictions, references, strict=True):
        truth = np.where(truth == IGNORED, 0, truth.astype(int) + 1)
        predicted = (predicted.astype(int) + 1) * (truth > 0)
        hits = np.bincount((predicted * (predicted == truth)).ravel(), minlength=20)[1:]
        union += np.bincount(predicted.ravel(), minlength=20)[1:] + np.bincount(truth.ravel(), minlength=20)[1:] - hits
        both, labelled = both + hits, labelled + (truth > 0).sum()
    epsilon = 2.220446049250313e-16
    iou = both / (union + epsilon)
    scores = scores_of(predictions, references, 19, absent_as_zero=True)
    # The epsilon, relative to a union of at least one pixel, is far below the tolerance.
    np.testing.assert_allclose(scores["per_category_iou"], iou, rtol=0, atol=1e-12)
    assert scores["mean_iou"] == pytest.approx(iou.mean(), rel=0, abs=1e-12)
    assert scores["overall_accuracy"] == pytest.approx(both.sum() / (labelled + epsilon), rel=0, abs=1e-12)
    assert scores["mean_iou"] < scores_of(predictions, references, 19)["mean_iou"]


def test_scores_equal_those_of_cityscapes_scripts(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.array([value for value in CITYSCAPES_IDS if value not in (16, 31)])  # no train: absent from the truth
    truths = [ids[rng.integers(0, len(ids), (8, 16))].repeat(8, 0).repeat(8, 1) for _ in range(3)]
    cityscapes_folder(tmp_path, "val", labels=truths, city="frankfurt")
    label_ids = {train: value for value, train in CITYSCAPES_IDS.items() if train != IGNORED}
    references = [train_ids(truth, CITYSCAPES_IDS) for truth in truths]
    predictions, files = [], []
    for index, truth in enumerate(references):
        wrong = (rng.random(truth.shape) < 0.3) | (truth == IGNORED)
        predicted = np.where(wrong, rng.choice([0, 1, 2, 11, 13, 18], truth.shape), truth)
        predictions.append(predicted)
        files.append(tmp_path / f"frankfurt_000000_{index:06d}_pred.png")
        Image.fromarray(np.vectorize(label_ids.get)(predicted).astype(np.uint8)).save(files[-1])
    truth_files = sorted((tmp_path / "gtFine" / "val").rglob("*_gtFine_labelIds.png"))
    args = copy.copy(cityscapes_script.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    official = cityscapes_script.evaluateImgLists(list(map(str, files)), list(map(str, truth_files)), args)
    scores = scores_of(predictions, references, 19)
    expected = [official["classScores"][trainId2label[train].name] for train in range(19)]
    assert np.isnan(expected).sum() == 1 and np.isnan(expected[16])
    np.testing.assert_allclose(scores["per_category_iou"], expected, rtol=0, atol=1e-9)
    assert scores["mean_iou"] == pytest.approx(official["averageScoreClasses"], rel=0, abs=1e-9)


# The metric as `evaluate` knows metrics: with the options and results of its `mean_iou`


KEYS = {"mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy"}


def documented_mean_iou(
    predictions, references, num_labels=7, ignore_index=255, nan_to_num=None, label_map=None, reduce_labels=False
):
    """Score as `mean_iou`'s card says: areas from one histogram per image and class, summed, then divided once."""
    areas = np.zeros((3, num_labels))
    for predicted, truth in zip(predictions, references, strict=True):
        predicted, truth = np.array(predicted), np.array(truth)
        if label_map is not None:
            truth = np.vectorize(lambda value: label_map.get(value, value))(truth)
        if reduce_labels:
            truth = np.where(truth == 0, 255, truth) - 1
            truth[truth == 254] = 255
        predicted, truth = predicted[truth != ignore_index], truth[truth != ignore_index]
        for row, values in enumerate((predicted[predicted == truth], predicted, truth)):
            areas[row] += np.histogram(values, bins=np.arange(num_labels + 1) - 0.5)[0]
    both, predicted, truth = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = both / (predicted + truth - both), both / truth
    scores = {"mean_iou": np.nanmean(iou), "mean_accuracy": np.nanmean(accuracy)}
    scores |= {"overall_accuracy": both.sum() / truth.sum()}
    scores |= {"per_category_iou": iou, "per_category_accuracy": accuracy}
    return (
        scores if nan_to_num is None else {name: np.nan_to_num(value, nan=nan_to_num) for name, value in scores.items()}
    )


def some_maps(seed=0, ignored=IGNORED, **sizes):
    predictions, references = random_maps(seed, 7, **sizes)
    references = [np.where(truth == IGNORED, ignored, truth).astype(np.uint8) for truth in references]
    return {"predictions": predictions, "references": references}


def assert_same(scores, expected):
    assert scores.keys() == expected.keys() == KEYS
    for name in KEYS:
        np.testing.assert_allclose(scores[name], expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.fixture
def metric(tmp_path):
    """A new metric as users load it: by path, without options."""
    return evaluate.load(streaming_mean_iou_path(), cache_dir=str(tmp_path))


OPTIONS = [
    {},
    {"ignore_index": 0},
    {"nan_to_num": -1.0},
    {"label_map": {0: 1, 2: 255}},
    {"ignore_index": 1, "label_map": {0: 2, 2: 0}},
    {"reduce_labels": True},
    {"reduce_labels": True, "label_map": {7: 0, 1: 3}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scores_equal_the_documented_mean_iou(metric, options):
    for seed in range(3):
        maps = some_maps(seed, ignored=options.get("ignore_index", 255))
        if "reduce_labels" in options:
            maps["references"] = [np.where(one == 255, 255, one + 1).astype(np.uint8) for one in maps["references"]]
            maps["references"][0][0, :] = 0
            maps["references"][1][0, :] = 7 if "label_map" in options else 0
        scores = metric.compute(**maps, num_labels=7, **options)
        assert_same(scores, documented_mean_iou(**maps, **options))
        assert isinstance(scores["per_category_iou"], np.ndarray)


def test_options_given_at_loading_apply_until_compute_overrides_them(tmp_path):
    maps, options = some_maps(ignored=1), {"num_labels": 7, "ignore_index": 1, "label_map": {0: 2}}
    metric = evaluate.load(streaming_mean_iou_path(), cache_dir=str(tmp_path), **options)
    for given, expected in (({}, options), ({"label_map": {}}, {"ignore_index": 1}), ({}, options)):
        assert_same(metric.compute(**maps, **given), documented_mean_iou(**maps, **expected))


def test_every_way_of_adding_maps_counts_the_same_in_constant_memory_and_compute_resets(metric):
    maps = some_maps(sizes=4 * ((6, 7),))
    expected = documented_mean_iou(**maps)
    stacked = {name: np.stack(arrays) for name, arrays in maps.items()}
    as_lists = {name: arrays.tolist() for name, arrays in stacked.items()}
    as_tensors = {name: torch.from_numpy(arrays).long() for name, arrays in stacked.items()}
    for batch in (stacked, as_lists, as_tensors, maps):
        metric.add_batch(**batch)
        assert_same(metric.compute(num_labels=7), expected)
    for predicted, truth in 50 * list(zip(*maps.values(), strict=True)):
        metric.add(prediction=predicted, reference=truth)
    assert len(metric._counts) <= 8 * 8
    assert_same(metric.compute(num_labels=7), expected)
    assert math.isnan(metric.compute(num_labels=7)["mean_iou"])


def test_uncountable_maps_are_rejected_and_earlier_ones_kept(metric):
    maps = some_maps()
    metric.add_batch(**maps)
    for options, message in (
        ({}, "pass num_labels to evaluate.load or to compute"),
        ({"num_labels": 2}, r"references outside 0\.\.1: values"),
        ({"num_labels": 7, "reduce_labels": True, "ignore_index": 0}, "values 255. References .* must be 0"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.compute(**options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_lables'"):
        metric.compute(num_lables=5)
    with pytest.raises(ValueError, match=r"references outside 0\.\.6: values 7"):
        metric.compute(predictions=[[[0]]], references=[[[7]]], num_labels=7)
    with pytest.raises(ValueError, match="shorter"):
        metric.add_batch(predictions=[[[0]], [[0]]], references=[[[0]]])
    assert_same(metric.compute(num_labels=7), documented_mean_iou(**maps))
    with pytest.raises(ValueError, match="num_process=2: gather the maps"):
        evaluate.load(streaming_mean_iou_path(), num_process=2, process_id=0, experiment_id="two")
