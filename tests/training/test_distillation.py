"""Distillation of any two networks by their layers, mistakes found before training, and steps without the teacher."""

from __future__ import annotations

import pytest
import tiny
import torch
from tiny import distilling, logged, loss_options, same, same_batch_every_step, samples, segformer, segmenter, weights
from torch.nn import functional as F
from transformers import SegformerForSemanticSegmentation

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.data import RandomScaleCropFlip, TrainingSamples


def test_a_segformer_teaches_our_student_given_only_its_layer_name(tmp_path):
    trainer = distilling(tmp_path, teacher=segformer(), teacher_layer="decode_head.batch_norm")
    assert trainer.loss_module.losses["af_dcd"].teacher_channels == 16
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
    assert same(weights(reloaded), weights(student))
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1


def test_gradients_of_the_loss_reach_only_layers_up_to_the_named_one(tmp_path):
    # With the feature term alone, nothing after the tapped layer may change.
    student = segmenter()
    before = weights(student)
    feature = {"loss": "af_dcd", "loss_kwargs": {"af_dcd": loss_options(contrast_weight=0.0)["af_dcd"]}}
    distilling(tmp_path, student, student_layer="backbone[1]", **feature, task_weight=0.0, weight_decay=0.0).train()
    moved = {name for name, parameter in student.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("layer1" in name for name in moved)
    assert not any("layer3" in name or "layer4" in name or name.startswith("head") for name in moved)


def test_construction_changes_neither_mode_nor_statistics_of_the_student(tmp_path):
    student = segmenter().train()
    before = weights(student)
    trainer = distilling(tmp_path, student, segmenter(1, channels=32))
    assert not [name for name in trainer.loss_module.state_dict() if "align" in name]  # not needed for equal channels
    assert student.training and all(torch.equal(tensor, before[name]) for name, tensor in weights(student).items())


NAMES = {0: "road", 1: "sky", 2: "car", 3: "tree"}
OTHERS = {**NAMES, 1: "car", 2: "sky"}
MISTAKES = {
    r"student has 4 classes and the teacher 7.*num_labels": lambda: {"teacher": segmenter(1, 48, num_labels=7)},
    r"Class 1 is 'sky' for the student and 'car' for the teacher.*id2label": lambda: {
        "student": segmenter(id2label=NAMES), "teacher": segmenter(1, channels=48, id2label=OTHERS),
    },
    r"SegformerForSemanticSegmentation has no module .* Close: .*decode_head\.batch_norm": lambda: {
        "teacher": segformer(), "teacher_layer": "decode_head.batchnorm",
    },
    r"student_layer must name the map to distil, because the student is a Segf.*segformer, decode_head": lambda: {
        "student": segformer(),
    },
    r"names 2 map\(s\) \(backbone\[-2\], backbone\[-1\]\) and": lambda: {
        "student_layer": ["backbone[-2]", "backbone[-1]"],
    },
    r"3 map\(s\) \(a, b, c\) .* 2 \(a, b\)": lambda: {
        "student_layer": ["a", "b", "c"], "teacher_layer": ["a", "b"],
    },
    r"map is 4x6; after pooling by 4 that is 1x1, smaller than a patch of 4x4.*larger crop": lambda: {
        "loss_kwargs": loss_options(pool_size=4),
    },
    r"channel_groups=5.*teacher_channels=48": lambda: {"loss_kwargs": loss_options(channel_groups=5)},
    r"needs a train_dataset with at least one sample": lambda: {"train_dataset": []},
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_found_at_construction(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        distilling(tmp_path, **MISTAKES[message]())


def test_a_crop_too_small_for_the_contrast_is_accepted_without_the_contrast(tmp_path):
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (16, 16))
    small = TrainingSamples(samples().dataset, transform, num_labels=4)
    with pytest.raises(ValueError, match="larger crop"):
        distilling(tmp_path, train_dataset=small)
    distilling(tmp_path, train_dataset=small, loss_kwargs=loss_options(contrast_weight=0.0))
    named = {"id2label": NAMES}  # equal names are fine, and so are missing ones
    distilling(tmp_path, segmenter(**named), segmenter(1, channels=48, **named))
    distilling(tmp_path, segmenter(), segmenter(1, channels=48, **named))


def test_a_teacher_given_by_name_is_loaded_and_a_missing_one_is_named(tmp_path):
    teacher = segmenter(1, channels=48)
    teacher.save_pretrained(tmp_path / "teacher")
    named, given = (distilling(tmp_path / "run", teacher=one) for one in (str(tmp_path / "teacher"), teacher))
    assert same(weights(named.teacher), weights(given.teacher)) and not named.teacher.training
    with pytest.raises(OSError, match="'/nowhere' is neither a local folder nor a Hub id"):
        distilling(tmp_path / "run", teacher="/nowhere")


# Steps without the teacher


@pytest.mark.parametrize(
    ("options", "taught"),
    [
        ({"distill_every": 2}, [True, False, True, False, True]),
        ({"distill_until": 0.5}, [True, True, True, False, False]),  # steps 0, 1 and 2 of 5 begin before the middle
        ({"distill_every": 2, "distill_until": 0.3}, [True, False, False, False, False]),
    ],
)
def test_the_teacher_runs_and_the_loss_weights_change_only_at_the_requested_steps(tmp_path, options, taught):
    teacher, states = segmenter(1, channels=48), []
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = distilling(tmp_path, teacher=teacher, max_steps=5, **options)
    calls, remember = tiny.passes_of(teacher), lambda *_: states.append(weights(trainer.loss_module))
    remember()
    trainer.create_optimizer().register_step_post_hook(remember)
    trainer.train()
    assert len(calls) == 2 * sum(taught)
    assert [not same(*pair) for pair in zip(states, states[1:], strict=False)] == taught
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    for term in ("loss_kd", "loss_feature", "loss_contrast", "time_teacher"):
        assert [term in line for line in lines] == taught, term
    for line in lines:
        terms = [value for name, value in line.items() if name.startswith("loss_")]
        assert sum(terms) == pytest.approx(line["loss"], rel=1e-5)


def test_compute_loss_outside_training_has_the_distillation_terms(tmp_path):
    trainer = distilling(tmp_path, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    for _ in ("before", "after"):
        _, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        assert set(outputs["terms"]) == {"task", "kd", "feature", "contrast"}
        trainer.train()
    assert trainer.args.uses_teacher_at(0, 0) and not trainer.args.skips_teacher


def test_a_step_without_the_teacher_has_the_loss_of_the_student_alone(tmp_path):
    trainer = distilling(tmp_path, train_dataset=same_batch_every_step())
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    model = trainer.model.eval()
    inputs = {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}
    alone = model(**inputs)
    logits = trainer.student(pixel_values=batch["pixel_values"]).logits
    upsampled = F.interpolate(logits, batch["labels"].shape[-2:], mode="bilinear", align_corners=True)
    expected = F.cross_entropy(upsampled, batch["labels"], ignore_index=255)
    torch.testing.assert_close(alone["loss"], expected)
    assert set(alone["terms"]) == {"task"} and set(model(batch["pixel_values"])) == {"logits"}
