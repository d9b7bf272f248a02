"""The model that a run begins with, from a saved one of the same or of other classes."""

from __future__ import annotations

import pytest
import torch
from images import labelled_image
from tiny import distilling, same, samples, segformer, segmenter, supervised, weights
from torch import nn

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.models.loading import load_model
from afdcd_hf.training.new_model import build_model, origin_of, renew_classifiers
from afdcd_hf.training.options import ModelArguments

NAMES = ["sky", "sun", "sea", "sand"]
OURS = ["head.classifier", "auxiliary_head.classifier"]


def saved(folder, model, names=NAMES):
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    AfDcdImageProcessor().save_pretrained(folder)
    return weights(model), ModelArguments(model=str(folder))


@pytest.mark.parametrize("classes", [["a", "b", "c"], [*NAMES, "ship"], NAMES[::-1]], ids=["fewer", "more", "order"])
@pytest.mark.parametrize("make", [lambda: segmenter(auxiliary_head=True), segformer], ids=["ours", "segformer"])
def test_other_classes_renew_the_classifiers_alone_with_a_warning(tmp_path, caplog, make, classes):
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
    assert f"made for 4 classes ({', '.join(NAMES)}), the dataset has {len(classes)} ({classes[0]}, " in warning
    assert " and ".join(layers) in warning
    assert origin_of(args) == {"started_from": "the saved model old"}


def test_a_student_of_other_classes_trains_scores_and_loads_and_the_same_ones_keep_every_weight(tmp_path, caplog):
    classes = [*NAMES, "ship", "shore"]
    before, args = saved(tmp_path / "old", segmenter(auxiliary_head=True))
    assert same(weights(build_model(args, [name.title() for name in NAMES])[0]), before) and not caplog.records
    model, processor = build_model(args, classes)
    rows = [labelled_image(index, 6, 32, 48) for index in range(2)]
    options = {"train_dataset": samples(num_labels=6), "eval_dataset": rows, "processing_class": processor}
    trainer = supervised(tmp_path / "new", model, max_steps=1, **options)
    trainer.train()
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1
    trainer.save_model()
    loaded = load_model(tmp_path / "new")
    assert list(loaded.config.id2label.values()) == classes and same(weights(loaded), weights(trainer.student))
    teacher = segmenter(1, channels=48, num_labels=6)
    distilling(tmp_path / "distilled", loaded, teacher, **options)
    with pytest.raises(ValueError, match="student has 6 classes and the teacher 4"):
        distilling(tmp_path / "other", loaded, segmenter(1, channels=48), **options)


def test_classes_scored_by_no_known_layer_are_refused():
    model = segmenter()
    model.head.classifier = nn.Sequential(nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="cannot be renewed.*num_labels and ignore_mismatched_sizes=True"):
        renew_classifiers(model, ["a", "b", "c"])
