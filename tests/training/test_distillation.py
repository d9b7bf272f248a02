"""What a distillation joins: any two networks, their layers, and a loss; mistakes are found before training.

And the steps without the teacher: which they are and what they train.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import (
    distilling,
    logged,
    loss_options,
    passes_of,
    same,
    same_batch_every_step,
    samples,
    segformer,
    segmenter,
    weights,
)
from torch import nn
from torch.nn import functional as F
from transformers import SegformerForSemanticSegmentation, TrainerCallback

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.data import RandomScaleCropFlip, TrainingSamples
from afdcd_hf.training.arguments import training_part
from afdcd_hf.training.distributed import settle_unused_parameter_search


@pytest.mark.parametrize(("layer", "channels"), [("decode_head.batch_norm", 16), ("segformer[0]", 32)])
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


def test_a_crop_that_is_too_small_only_for_the_contrast_passes_without_it(tmp_path):
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (16, 16))
    small = TrainingSamples(samples().dataset, transform, num_labels=4)
    with pytest.raises(ValueError, match="larger crop"):
        distilling(tmp_path, train_dataset=small)
    distilling(tmp_path, train_dataset=small, loss_kwargs=loss_options(contrast_weight=0.0))
    named = {"id2label": NAMES}  # the same names are no mistake, nor are none on one side
    distilling(tmp_path, segmenter(**named), segmenter(1, channels=48, **named))
    distilling(tmp_path, segmenter(), segmenter(1, channels=48, **named))


def test_a_teacher_given_by_name_is_loaded_and_one_that_is_not_there_named(tmp_path):
    teacher = segmenter(1, channels=48)
    teacher.save_pretrained(tmp_path / "teacher")
    named, given = (distilling(tmp_path / "run", teacher=one) for one in (str(tmp_path / "teacher"), teacher))
    assert same(weights(named.teacher), weights(given.teacher)) and not named.teacher.training
    with pytest.raises(OSError, match="'/nowhere' is neither a local folder nor a Hub id"):
        distilling(tmp_path / "run", teacher="/nowhere")


# Steps without the teacher


class Watch(TrainerCallback):
    """Remembers the weights of student and loss before each step and after the last."""

    def __init__(self):
        self.states: list[dict] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.states.append(weights(model))

    on_train_end = on_step_begin

    def moved(self, prefix: str) -> list[bool]:
        """For each step, whether it changed any weight whose name begins so."""
        pairs = zip(self.states, self.states[1:], strict=False)
        return [any(not torch.equal(a[name], b[name]) for name in a if name.startswith(prefix)) for a, b in pairs]


@pytest.mark.parametrize(
    ("options", "taught"),
    [
        ({"distill_every": 2}, [True, False, True, False, True]),
        ({"distill_until": 0.5}, [True, True, True, False, False]),  # 0, 1 and 2 of 5 lie before the middle
        ({"distill_every": 2, "distill_until": 0.3}, [True, False, False, False, False]),
    ],
)
def test_the_teacher_runs_and_the_losses_weights_move_at_the_steps_asked_for(tmp_path, options, taught):
    teacher, watch = segmenter(1, channels=48), Watch()
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = distilling(tmp_path, teacher=teacher, max_steps=5, callbacks=[watch], **options)
    calls = passes_of(teacher)
    trainer.train()
    assert len(calls) == 2 * sum(taught)
    assert watch.moved("loss.") == taught and watch.moved("student.") == [True] * 5
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    for term in ("loss_kd", "loss_feature", "loss_contrast", "time_teacher"):
        assert [term in line for line in lines] == taught, term
    for line in lines:
        terms = [value for name, value in line.items() if name.startswith("loss_")]
        assert sum(terms) == pytest.approx(line["loss"], rel=1e-5)


def test_the_loss_outside_of_a_training_has_the_teachers_terms(tmp_path):
    trainer = distilling(tmp_path, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    for _ in ("before", "after"):
        _, outputs = trainer.compute_loss(trainer.model, dict(batch), return_outputs=True)
        assert set(outputs["terms"]) == {"task", "kd", "feature", "contrast"}
        trainer.train()
    assert trainer.args.distils_at(0, 0) and not trainer.args.distils_at_times


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
    assert not {"distill_every", "distill_until"} & set(training_part({"loss": "kd", "distill_every": 2}))


@pytest.mark.parametrize("searching", [None, True, False])
@pytest.mark.parametrize("at_times", [True, False])
def test_ddp_looks_for_the_weights_that_take_no_part(searching, at_times):
    args = SimpleNamespace(distils_at_times=at_times, ddp_find_unused_parameters=searching, world_size=2)
    if at_times and searching is False:
        with pytest.raises(ValueError, match="leave out ddp_find_unused_parameters=False"):
            settle_unused_parameter_search(args, segmenter())
        return
    settle_unused_parameter_search(args, segmenter())
    assert args.ddp_find_unused_parameters is (True if at_times else bool(searching))
