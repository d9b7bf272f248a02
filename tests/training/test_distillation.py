"""What a distillation joins: any two networks, their layers, and a loss; mistakes are found before training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import distilling, logged, loss_options, same, same_batch_every_step, samples, segformer, segmenter, weights
from torch import nn
from transformers import SegformerForSemanticSegmentation

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.data import RandomScaleCropFlip, TrainingSamples


@pytest.mark.parametrize(
    ("layer", "channels"), [("decode_head.batch_norm", 16), ("segformer.stages.1", 16), ("segformer[0]", 32)]
)
def test_a_segformer_teaches_our_student_by_the_name_of_its_layer_alone(tmp_path, layer, channels):
    trainer = distilling(tmp_path, teacher=segformer(), teacher_layer=layer)
    assert trainer.loss_module.losses["af_dcd"].teacher_channels == channels
    trainer.train()
    assert all(0 < value < 100 for value in logged(trainer, "loss_feature") + logged(trainer, "loss_kd"))


def test_our_teacher_teaches_a_segformer(tmp_path):
    student = segformer()
    before = weights(student)
    trainer = distilling(tmp_path, student, student_layer="segformer.stages.1", train_dataset=same_batch_every_step())
    trainer.train()
    trainer.save_model()
    assert trainer.loss_module.losses["af_dcd"].student_channels == 16
    name = "segformer.stages.1.patch_embeddings.proj.weight"
    assert not torch.equal(weights(student)[name], before[name])
    reloaded = SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = [model.eval()(pixel_values=pixel_values).logits for model in (student, reloaded)]
    assert torch.equal(*logits)
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1


def test_the_students_map_gets_its_gradient_from_the_named_layer_on(tmp_path):
    # With only the feature term, nothing behind the tapped layer may move.
    student = segmenter()
    before = weights(student)
    trainer = distilling(
        tmp_path,
        student,
        student_layer="backbone[1]",
        loss="af_dcd",
        loss_kwargs={"af_dcd": loss_options(contrast_weight=0.0)["af_dcd"]},
        task_weight=0.0,
        weight_decay=0.0,
    )
    trainer.train()
    moved = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("layer1" in name for name in moved)
    assert not any("layer3" in name or "layer4" in name or name.startswith("head") for name in moved)


def test_a_loss_on_logits_alone_needs_no_layers(tmp_path):
    trainer = distilling(tmp_path, teacher=segformer(), loss="kd", loss_kwargs=None)
    trainer.train()
    assert {name for name in trainer.state.log_history[0] if name.startswith("loss_")} == {"loss_task", "loss_kd"}


def test_construction_leaves_the_students_mode_and_statistics_alone(tmp_path):
    student = segmenter().train()
    before = weights(student)
    trainer = distilling(tmp_path, student, segmenter(1, channels=32))
    assert not [name for name in trainer.loss_module.state_dict() if "align" in name]  # equal channels need none
    assert student.training and all(torch.equal(tensor, before[name]) for name, tensor in weights(student).items())


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv2d(3, 16, 8, stride=8)
        self.classifier = nn.Conv2d(16, 4, 1)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.classifier(self.trunk(pixel_values)))


NAMES = {0: "road", 1: "sky", 2: "car", 3: "tree"}
MISTAKES = {
    "class counts": (
        lambda: {"teacher": segmenter(1, channels=48, num_labels=7)},
        r"student has 4 classes and the teacher 7.*num_labels",
    ),
    "class names": (
        lambda: {
            "student": segmenter(id2label=NAMES),
            "teacher": segmenter(1, channels=48, id2label={**NAMES, 1: "car", 2: "sky"}),
        },
        r"Class 1 is 'sky' for the student and 'car' for the teacher.*id2label",
    ),
    "unknown student layer": (
        lambda: {"student_layer": "head.feature"},
        r"AfDcdForSemanticSegmentation has no module 'head.feature'\. Close: .*head\.features",
    ),
    "unknown teacher layer": (
        lambda: {"teacher": segformer(), "teacher_layer": "decode_head.batchnorm"},
        r"SegformerForSemanticSegmentation has no module .* Close: .*decode_head\.batch_norm",
    ),
    "no layer for a foreign teacher": (
        lambda: {"teacher": segformer()},
        r"teacher_layer must name the map.*SegformerForSemanticSegmentation.*segformer, decode_head",
    ),
    "no layer for a foreign student": (
        lambda: {"student": Plain()},
        r"student_layer must name the map.*Plain.*trunk, classifier",
    ),
    "a layer that is no map": (
        lambda: {"teacher": segformer(), "teacher_layer": "segformer.stages.1.layer_norm"},
        r"gives a tensor of shape .* but a \(B, C, h, w\) map is needed",
    ),
    "several maps and no index": (lambda: {"student_layer": "backbone"}, r"returns 5 values; pick one"),
    "an index that is not there": (lambda: {"student_layer": "backbone[9]"}, r"index 9 is out of range"),
    "a crop too small for a patch": (
        lambda: {"loss_kwargs": loss_options(pool_size=4)},
        r"map is 4x6; after pooling by 4 that is 1x1, smaller than a patch of 4x4.*larger crop",
    ),
    "groups that do not divide": (
        lambda: {"loss_kwargs": loss_options(channel_groups=5)},
        r"channel_groups=5.*teacher_channels=48",
    ),
    "no samples": (lambda: {"train_dataset": []}, r"needs a train_dataset with at least one sample"),
    "no training set": (lambda: {"train_dataset": None}, r"needs a train_dataset with at least one sample"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_at_construction(tmp_path, mistake):
    build, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        distilling(tmp_path, **build())


def test_the_same_class_names_or_none_at_all_are_no_mistake(tmp_path):
    named = {"id2label": NAMES}
    distilling(tmp_path, segmenter(**named), segmenter(1, channels=48, **named))
    distilling(tmp_path, segmenter(), segmenter(1, channels=48, **named))


def test_a_crop_that_is_too_small_only_for_the_contrast_passes_without_it(tmp_path):
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (16, 16))
    small = TrainingSamples(samples().dataset, transform, num_labels=4)
    with pytest.raises(ValueError, match="larger crop"):
        distilling(tmp_path, train_dataset=small)
    distilling(tmp_path, train_dataset=small, loss_kwargs=loss_options(contrast_weight=0.0))


def test_a_teacher_given_by_name_is_loaded_and_one_that_is_not_there_named(tmp_path):
    teacher = segmenter(1, channels=48)
    teacher.save_pretrained(tmp_path / "teacher")
    named, given = (distilling(tmp_path / "run", teacher=one) for one in (str(tmp_path / "teacher"), teacher))
    assert same(weights(named.teacher), weights(given.teacher)) and not named.teacher.training
    with pytest.raises(OSError, match="'/nowhere' is neither a local folder nor a Hub id"):
        distilling(tmp_path / "run", teacher="/nowhere")
