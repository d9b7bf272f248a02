"""The scores against other people's: scikit-learn, cityscapesScripts, and the formulas that papers' scripts use."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from miniatures import CITYSCAPES_IDS, cityscapes_folder, train_ids
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from afdcd_hf import StreamingMeanIoU
from afdcd_hf.metrics.streaming_mean_iou.streaming_mean_iou import StreamingMeanIoUMetric

IGNORED = 255


def random_maps(seed, num_labels=19, sizes=((37, 53), (64, 1), (1, 1), (41, 29))):
    """Maps of odd sizes in large regions; two classes occur nowhere, one only in the truth, one only predicted."""
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
    """What our class says, after making sure that the module for `evaluate` says the same."""
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


def flat(maps, references):
    """The pixels that count, of all maps in one row."""
    return np.concatenate([one[truth != IGNORED] for one, truth in zip(maps, references, strict=True)])


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_scikit_learns(seed):
    num_labels = (19, 21, 11, 150)[seed % 4]
    predictions, references = random_maps(seed, num_labels)
    scores, atol = scores_of(predictions, references, num_labels), 1e-12
    predicted, truth = flat(predictions, references), flat(references, references)
    present = np.union1d(predicted, truth)
    iou = jaccard_score(truth, predicted, labels=present, average=None, zero_division=0)
    np.testing.assert_allclose(scores["per_category_iou"][present], iou, rtol=0, atol=atol)
    assert scores["mean_iou"] == pytest.approx(iou.mean(), rel=0, abs=atol)
    assert scores["overall_accuracy"] == pytest.approx(accuracy_score(truth, predicted), rel=0, abs=atol)
    accuracy = recall_score(truth, predicted, labels=range(num_labels), average=None, zero_division=np.nan)
    np.testing.assert_allclose(scores["per_category_accuracy"], accuracy, rtol=0, atol=atol)
    assert scores["mean_accuracy"] == pytest.approx(np.nanmean(accuracy), rel=0, abs=atol)
    absent = np.setdiff1d(np.arange(num_labels), present)
    assert np.isnan(scores["per_category_iou"][absent]).all()


@pytest.mark.parametrize("seed", range(3))
def test_counting_absent_classes_as_zero_equals_the_released_codes_formula(seed):
    """Classes counted from 1 so that ignored pixels become 0; an epsilon keeps the denominator from being zero."""
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


def official_scores(predictions, truths):
    """Scores of label-id files by the Cityscapes benchmark's own script."""
    module = "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    official = pytest.importorskip(module, reason="needs cityscapesscripts")
    args = copy.copy(official.args)
    args.evalInstLevelScore, args.JSONOutput, args.quiet = False, False, True
    return official.evaluateImgLists([str(path) for path in predictions], [str(path) for path in truths], args)


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
    official = official_scores(files, sorted((tmp_path / "gtFine" / "val").rglob("*_gtFine_labelIds.png")))
    from cityscapesscripts.helpers.labels import trainId2label

    scores = scores_of(predictions, references, 19)
    expected = [official["classScores"][trainId2label[train].name] for train in range(19)]
    assert np.isnan(expected).sum() == 1 and np.isnan(expected[16])
    np.testing.assert_allclose(scores["per_category_iou"], expected, rtol=0, atol=1e-9)
    assert scores["mean_iou"] == pytest.approx(official["averageScoreClasses"], rel=0, abs=1e-9)
