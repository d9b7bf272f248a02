"""Training: what is trained and what is not, what the log says, and the paper's schedule, decay and clipping."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    distilling,
    logged,
    loss_options,
    pictures,
    same,
    same_batch_every_step,
    samples,
    segmenter,
    settings,
    supervised,
    weights,
    without_batch_effects,
)
from torch import nn
from transformers import TrainerCallback

from afdcd_hf import AfDcdForSemanticSegmentation, AfDcdImageProcessor, evaluate_segmenter
from afdcd_hf.training.training_args import DistillationTrainingArguments, SegmentationTrainingArguments


class GradientSpy(TrainerCallback):
    """Copies the gradients with which the optimizer is about to step."""

    def __init__(self):
        self.steps: list[dict] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


def test_training_on_labels_alone_lowers_the_loss(tmp_path):
    student = without_batch_effects(segmenter())
    trainer = supervised(tmp_path, student, max_steps=20, learning_rate=0.3, train_dataset=same_batch_every_step())
    before = weights(student)
    trainer.train()
    losses = logged(trainer, "loss_task")
    assert losses == pytest.approx(logged(trainer, "loss"), rel=1e-6)
    assert losses[-1] < 0.9 * losses[0]
    assert not any(torch.equal(parameter, before[name]) for name, parameter in student.named_parameters())


def test_distillation_lowers_every_term_and_changes_student_and_loss_weights(tmp_path):
    trainer = distilling(
        tmp_path,
        without_batch_effects(segmenter()),
        max_steps=6,
        learning_rate=0.02,
        train_dataset=same_batch_every_step(),
        loss_kwargs=loss_options(mask="center"),
        task_weight=0.0,  # a random teacher's classes contradict the labels
    )
    student, loss = weights(trainer.student), weights(trainer.loss_module)
    trainer.train()
    assert logged(trainer, "loss_task") == [0.0] * 6
    for term in ("kd", "feature", "contrast"):
        values = logged(trainer, f"loss_{term}")
        assert len(values) == 6 and values[-1] < 0.98 * values[0], term
    assert not any(torch.equal(parameter, student[name]) for name, parameter in trainer.student.named_parameters())
    assert {name.split(".")[2] for name in loss} == {"align", "projector"}
    assert not any(torch.equal(parameter, loss[name]) for name, parameter in trainer.loss_module.named_parameters())


def test_the_teacher_stays_as_it_was_and_is_no_part_of_what_is_trained(tmp_path):
    teacher = segmenter(1, channels=48).train()
    before = weights(teacher)
    modes = []
    teacher.backbone.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    trainer = distilling(tmp_path, teacher=teacher)
    trainer.train()
    assert same(weights(teacher), before)  # batch norm statistics too
    assert set(modes) == {(False, False)} and not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    trained = {id(parameter) for parameter in trainer.model.parameters()}
    assert not trained & {id(parameter) for parameter in teacher.parameters()}
    assert len(trainer.model.state_dict()) == len(trainer.student.state_dict()) + len(trainer.loss_module.state_dict())


def test_the_terms_of_the_first_batch_are_reported_once_and_balanced_ones_raise_no_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO, "afdcd_hf")
    distilling(tmp_path, max_steps=2).train()
    (line,) = [record for record in caplog.records if record.name == "afdcd_hf.training.progress"]
    assert line.levelno == logging.INFO
    assert all(f"{term} " in line.getMessage() for term in ("task", "kd", "feature", "contrast"))


@pytest.mark.parametrize(
    ("weight", "words"), [(1e4, "dominates"), (1e-6, "is negligible next to")], ids=["huge", "tiny"]
)
def test_a_term_out_of_all_proportion_to_the_task_is_warned_of(tmp_path, caplog, weight, words):
    distilling(tmp_path, max_steps=1, loss_kwargs=loss_options(feature_weight=weight)).train()
    (warning,) = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING and record.name == "afdcd_hf.training.progress"
    ]
    assert "'feature'" in warning and words in warning and "reduction='mean'" in warning


def test_only_the_loss_weights_are_clipped(tmp_path):
    runs = {}
    for limit in (15.0, 1e6, 0.0):
        spy = GradientSpy()
        huge = loss_options(feature_weight=1e4, contrast_weight=1e2)
        distilling(tmp_path, max_steps=1, loss_kwargs=huge, loss_max_grad_norm=limit, callbacks=[spy]).train()
        (runs[limit],) = spy.steps
    clipped, free = runs[15.0], runs[0.0]
    own = [name for name in free if name.startswith("loss.")]
    norm = torch.linalg.vector_norm(torch.cat([free[name].flatten() for name in own]))
    assert norm > 100 and len(own) == 6
    for name in free:
        expected = free[name] * (15 / norm) if name in own else free[name]
        torch.testing.assert_close(clipped[name], expected, rtol=1e-4 if name in own else 0, atol=0)
    assert same(runs[1e6], free)  # below the limit nothing is changed


@pytest.mark.parametrize("make", [supervised, distilling])
def test_all_weights_decay_unless_told_otherwise(tmp_path, make):
    trainer = make(tmp_path)
    groups = trainer.create_optimizer().param_groups
    decaying = [id(p) for group in groups if group["weight_decay"] == 1e-4 for p in group["params"]]
    assert sorted(decaying) == sorted(id(p) for p in trainer.model.parameters())
    groups = make(tmp_path, decay_all=False).create_optimizer().param_groups
    assert any(group["weight_decay"] == 0 and group["params"] for group in groups)


def test_the_optimizer_is_sgd_with_momentum_whose_learning_rate_falls_polynomially(tmp_path):
    trainer = supervised(tmp_path, max_steps=6, learning_rate=0.02)
    trainer.train()
    optimizer = trainer.optimizer.optimizer  # accelerate has wrapped it
    assert type(optimizer) is torch.optim.SGD
    assert all(group["momentum"] == 0.9 and not group["nesterov"] for group in optimizer.param_groups)
    expected = [0.02 * (1 - step / 6) ** 0.9 for step in range(6)]
    assert logged(trainer, "learning_rate") == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_a_batch_are_an_error_unless_it_may_be_incomplete(tmp_path):
    with pytest.raises(ValueError, match="training set has 8 samples, but a batch takes 9"):
        supervised(tmp_path, per_device_train_batch_size=9)
    supervised(tmp_path, per_device_train_batch_size=9, dataloader_drop_last=False).train()
    supervised(tmp_path, per_device_train_batch_size=8).train()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("task_weight", -1.0, "task_weight=-1.0"),
        ("aux_weight", float("nan"), "aux_weight=nan"),
        ("loss_max_grad_norm", -15.0, "loss_max_grad_norm=-15.0"),
        ("remove_unused_columns", True, "remove_unused_columns must be False"),
        ("loss", "kd+nonsense", "unknown loss 'nonsense'"),
        ("ema_decay", 1.0, "ema_decay=1.0 must be .*above 0, below 1"),
        ("max_seconds", float("nan"), "max_seconds=nan must be a finite number, above 0"),
        ("distill_every", 1.5, "distill_every=1.5 must be a whole number"),
        ("distill_until", 0.0, "distill_until=0.0 must be above 0, 1 or less"),
    ],
)
def test_bad_arguments_are_refused_when_they_are_given(tmp_path, option, value, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments(**{**settings(tmp_path, loss="kd"), option: value})
    with pytest.raises(ValueError, match="max_seconds needs max_steps > 0, not -1"):
        SegmentationTrainingArguments(**settings(tmp_path, max_seconds=3.0, max_steps=-1))


def test_the_schedules_default_options_belong_to_the_polynomial_one_only(tmp_path):
    assert SegmentationTrainingArguments(**settings(tmp_path)).lr_scheduler_kwargs == {"power": 0.9, "lr_end": 0.0}
    assert SegmentationTrainingArguments(**settings(tmp_path, lr_scheduler_type="linear")).lr_scheduler_kwargs == {}
    given = SegmentationTrainingArguments(**settings(tmp_path, lr_scheduler_kwargs='{"power": 2.0}'))
    assert given.lr_scheduler_kwargs == {"power": 2.0}


def test_augmentation_differs_from_epoch_to_epoch_and_is_the_same_in_another_run(tmp_path):
    def batches() -> list[torch.Tensor]:
        seen = []

        def collate(rows):
            seen.append(torch.stack([row["pixel_values"] for row in rows]))
            return {"pixel_values": seen[-1], "labels": torch.stack([row["labels"] for row in rows])}

        order = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 8}
        supervised(tmp_path, max_steps=3, data_collator=collate, train_dataset=samples(), **order).train()
        return seen

    first, second = batches(), batches()
    assert len(first) == 3 and all(map(torch.equal, first, second))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    expected = samples()
    for epoch, batch in enumerate(first):
        expected.set_epoch(epoch)
        assert torch.equal(batch, torch.stack([expected[index]["pixel_values"] for index in range(8)]))


def test_an_evaluation_in_training_equals_one_of_the_saved_folder(tmp_path):
    trainer = distilling(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer.train()
    trainer.save_model()
    model = AfDcdForSemanticSegmentation.from_pretrained(tmp_path)
    processor = AfDcdImageProcessor.from_pretrained(tmp_path)
    scores = evaluate_segmenter(model, pictures(), processor=processor, progress=False)
    for name in ("mean_iou", "mean_accuracy", "overall_accuracy"):
        assert logged(trainer, f"eval_{name}") == [scores[name]]


def test_several_evaluation_sets_are_scored_under_their_names(tmp_path):
    trainer = supervised(tmp_path, eval_dataset={"day": pictures(2), "night": pictures(1)})
    metrics = trainer.evaluate()
    assert {"eval_day_mean_iou", "eval_night_mean_iou"} <= metrics.keys()
    assert metrics["eval_night_mean_iou"] == trainer.evaluate(pictures(1))["eval_mean_iou"]


def test_an_evaluation_without_pictures_or_processor_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="eval_dataset"):
        supervised(tmp_path, eval_dataset=None).evaluate()
    with pytest.raises(ValueError, match="processing_class"):
        supervised(tmp_path, processing_class=None).evaluate()
    with pytest.raises(NotImplementedError, match=r"all images at once.*metric_key_prefix=.*segment_image"):
        supervised(tmp_path).predict(pictures(1))


class Plain(nn.Module):
    """A network of nobody's: no configuration."""

    def __init__(self, channels: int, num_labels: int = 4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, channels, 8, stride=8), nn.ReLU())
        self.classifier = nn.Conv2d(channels, num_labels, 1)

    def forward(self, pixel_values):
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values)))


def test_plain_modules_are_trained_scored_and_saved(tmp_path):
    layers = {"student_layer": "body", "teacher_layer": "body.0"}
    trainer = distilling(tmp_path, Plain(8), Plain(16), eval_strategy="steps", eval_steps=2, **layers)
    trainer.train()
    trainer.save_model()
    assert 0 < logged(trainer, "eval_mean_iou")[0] < 1
    assert same(load_file(tmp_path / "model.safetensors"), weights(trainer.student))
