"""The trainers: trained and frozen weights, the log, and the paper's schedule, decay and clipping."""

from __future__ import annotations

import json
import logging
import math

import pytest
import tiny
import torch
from datasets import Dataset, Image
from images import labelled_image
from tiny import distilling, logged, loss_options, pictures, same, samples, segmenter, supervised, weights
from torch.utils.data import ConcatDataset, Subset
from transformers import TrainerCallback

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.cli import main
from afdcd_hf.data import RandomScaleCropFlip, StreamedSamples
from afdcd_hf.data.samples import collate_samples
from afdcd_hf.evaluation.segmenter import evaluate_segmenter
from afdcd_hf.training.recipe_arguments import parse_arguments
from afdcd_hf.training.training_args import SegmentationTrainingArguments


def test_distillation_lowers_every_term_and_changes_student_and_loss_weights(tmp_path):
    options = {"max_steps": 6, "learning_rate": 0.02, "train_dataset": tiny.same_batch_every_step()}
    options |= {"task_weight": 0.0, "loss_kwargs": loss_options(mask="center")}  # a random teacher contradicts labels
    trainer = distilling(tmp_path, tiny.without_batch_effects(segmenter()), **options)
    student, loss = weights(trainer.student), weights(trainer.loss_module)
    trainer.train()
    assert logged(trainer, "loss_task") == [0.0] * 6
    for term in ("kd", "feature", "contrast"):
        values = logged(trainer, f"loss_{term}")
        assert len(values) == 6 and values[-1] < 0.98 * values[0], term
    assert not any(torch.equal(parameter, student[name]) for name, parameter in trainer.student.named_parameters())
    assert {name.split(".")[2] for name in loss} == {"align", "projector"}
    assert not any(torch.equal(parameter, loss[name]) for name, parameter in trainer.loss_module.named_parameters())


def test_the_teacher_is_unchanged_and_not_part_of_the_trained_module(tmp_path):
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


@pytest.mark.parametrize(("weight", "words"), [(1e4, "dominates"), (1e-6, "is negligible next to"), (0.5, None)])
def test_the_terms_of_the_first_batch_are_logged_with_a_warning_for_one_out_of_proportion(
    tmp_path, caplog, weight, words
):
    caplog.set_level(logging.INFO, "afdcd_hf")
    distilling(tmp_path, loss_kwargs=loss_options(feature_weight=weight)).train()
    told, *warnings = [one.getMessage() for one in caplog.records if one.name == "afdcd_hf.training.progress"]
    assert all(f"{term} " in told for term in ("task", "kd", "feature", "contrast"))
    assert len(warnings) == (words is not None)
    assert all("'feature'" in one and words in one and "reduction='mean'" in one for one in warnings)


def test_only_the_loss_weights_are_clipped(tmp_path):
    runs, huge = {}, loss_options(feature_weight=1e4, contrast_weight=1e2)
    for limit in (15.0, 1e6, 0.0):
        trainer = distilling(tmp_path, max_steps=1, loss_kwargs=huge, loss_max_grad_norm=limit)
        trainer.create_optimizer().step = lambda *_: None  # keeps the gradients that the optimizer gets
        trainer.model.zero_grad = lambda *_: None
        trainer.train()
        runs[limit] = {name: each.grad for name, each in trainer.model.named_parameters() if each.grad is not None}
    clipped, free = runs[15.0], runs[0.0]
    own = [name for name in free if name.startswith("loss.")]
    norm = torch.linalg.vector_norm(torch.cat([free[name].flatten() for name in own]))
    assert norm > 100 and len(own) == 6
    for name in free:
        expected = free[name] * (15 / norm) if name in own else free[name]
        torch.testing.assert_close(clipped[name], expected, rtol=1e-4 if name in own else 0, atol=0)
    assert same(runs[1e6], free)  # no change below the limit


@pytest.mark.parametrize("make", [supervised, distilling])
def test_sgd_decays_all_weights_by_default_and_its_learning_rate_falls_polynomially(tmp_path, make):
    trainer = make(tmp_path, max_steps=6, learning_rate=0.02)
    trainer.train()
    optimizer = trainer.optimizer.optimizer  # accelerate has wrapped it
    groups = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD and all(group["momentum"] == 0.9 for group in groups)
    expected = [0.02 * (1 - step / 6) ** 0.9 for step in range(6)]
    assert logged(trainer, "learning_rate") == pytest.approx(expected, rel=1e-6)
    decaying = [id(p) for group in groups if group["weight_decay"] == 1e-4 for p in group["params"]]
    assert sorted(decaying) == sorted(id(p) for p in trainer.model.parameters())
    groups = make(tmp_path, decay_all=False).create_optimizer().param_groups
    assert any(group["weight_decay"] == 0 and group["params"] for group in groups)


def test_fewer_samples_than_a_batch_are_an_error_unless_incomplete_batches_are_kept(tmp_path):
    with pytest.raises(ValueError, match="training set has 8 samples, but a batch takes 9"):
        supervised(tmp_path, per_device_train_batch_size=9)
    supervised(tmp_path, per_device_train_batch_size=9, dataloader_drop_last=False, max_steps=1).train()


@pytest.mark.parametrize(("make", "part"), [(supervised, list), (distilling, list), (supervised, Subset)])
def test_the_task_loss_ignores_what_the_samples_ignore_whatever_the_models_configuration_says(tmp_path, make, part):
    padded = samples(scales=[0.5])
    padded = Subset(padded, range(8)) if part is Subset else padded
    trainer = make(tmp_path, segmenter(semantic_loss_ignore_index=-100), train_dataset=padded, max_steps=1)
    trainer.train()
    assert 0 < logged(trainer, "loss_task")[0] < 10


def test_only_the_polynomial_schedule_has_default_options(tmp_path):
    for given, meant in (({}, {"power": 0.9, "lr_end": 0.0}), ({"lr_scheduler_type": "linear"}, {}),
                         ({"lr_scheduler_kwargs": '{"power": 2.0}'}, {"power": 2.0})):  # fmt: skip
        assert SegmentationTrainingArguments(**tiny.settings(tmp_path, **given)).lr_scheduler_kwargs == meant


@pytest.mark.parametrize(
    "wrap", [lambda data: data, lambda data: Subset(ConcatDataset([data, data]), range(8))], ids=["samples", "parts"]
)
def test_augmentation_differs_between_epochs_and_depends_only_on_seed_and_epoch(tmp_path, wrap):
    seen, expected = [], samples()

    def collate(rows):
        seen.append(torch.stack([row["pixel_values"] for row in rows]))
        return {"pixel_values": seen[-1], "labels": torch.stack([row["labels"] for row in rows])}

    order = {"train_sampling_strategy": "sequential", "per_device_train_batch_size": 8}
    supervised(tmp_path, max_steps=3, data_collator=collate, train_dataset=wrap(samples()), **order).train()
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    for epoch, batch in enumerate(seen):
        expected.set_epoch(epoch)
        assert torch.equal(batch, torch.stack([expected[index]["pixel_values"] for index in range(8)]))


def test_several_evaluation_sets_are_scored_under_their_names_and_missing_parts_are_named(tmp_path):
    both = {"eval_dataset": {"day": pictures(2), "night": pictures(1)}, "eval_strategy": "steps", "eval_steps": 2}
    trainer = supervised(tmp_path, **both)
    trainer.train()
    assert logged(trainer, "eval_day_mean_iou") and trainer.state.best_metric is None
    best = {**both, "load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(ValueError, match="'mean_iou' does not say which .* give one of day_mean_iou, .*night_mean_iou"):
        supervised(tmp_path, **best)
    supervised(tmp_path, metric_for_best_model="eval_night_mean_iou", **best)
    metrics = trainer.evaluate()
    assert {"eval_day_mean_iou", "eval_night_mean_iou"} <= metrics.keys()
    assert metrics["eval_night_mean_iou"] == trainer.evaluate(pictures(1))["eval_mean_iou"]
    for part in ("eval_dataset", "processing_class"):
        with pytest.raises(ValueError, match=part):
            supervised(tmp_path, **{part: None}).evaluate()
    with pytest.raises(NotImplementedError, match=r"all images at once.*metric_key_prefix=.*segment_image"):
        trainer.predict(pictures(1))


# Class weights from the training labels


def unequal():
    """Samples with class 3 relabelled as 0: classes 0, 1 and 2 have a half, a quarter and a quarter of the pixels."""
    found = samples()
    for row in found.dataset:
        row["label"] = row["label"].point(lambda value: 0 if value == 3 else value)
    return found


def test_balanced_weights_become_numbers_before_the_first_step_in_both_trainers(tmp_path, caplog):
    caplog.set_level(logging.INFO, "afdcd_hf")
    by_hand = [1 / math.log(1.02 + share) for share in (0.5, 0.25, 0.25, 0)]
    by_hand = [4 * one / sum(by_hand) for one in by_hand]
    for make in (supervised, distilling):
        trainer = make(tmp_path, train_dataset=unequal(), class_weights="balanced")
        assert trainer.args.class_weights == pytest.approx(by_hand, abs=1e-6)
        task_loss = trainer.task_loss if make is supervised else trainer.trained_module.task_loss
        torch.testing.assert_close(task_loss.class_weights, torch.tensor(trainer.args.class_weights))
    assert "class_weights, balanced over 8 labels: [" in caplog.text
    assert supervised(tmp_path, class_weights="balanced").args.class_weights == [1.0] * 4  # equally many columns each


def test_class_weights_that_cannot_be_balanced_are_refused(tmp_path):
    with pytest.raises(ValueError, match="class_weights have no effect on task_loss='dice'"):
        supervised(tmp_path, class_weights="balanced", task_loss="dice")
    with pytest.raises(ValueError, match="train_dataset is a list: give one number for each class"):
        supervised(tmp_path, train_dataset=[samples()] * 8, class_weights="balanced")
    with pytest.raises(ValueError, match="class_weights='equal' must be a list of finite numbers or 'balanced'"):
        parse_arguments({"class_weights": "equal"}, distils=False)


class OtherIgnoreIndex(list):
    ignore_index = 9


def torch_samples(dtype: torch.dtype = torch.int64, classes: int = 4) -> list[dict]:
    labels = torch.arange(32 * 48).view(32, 48).remainder(classes).to(dtype)
    return [{"pixel_values": torch.zeros(3, 32, 48), "labels": labels}] * 4


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (supervised, {"eval_dataset": torch_samples()}, "eval_dataset needs .*image and label; .* has pixel"),
        (supervised, {"train_dataset": pictures(4)}, "train_dataset needs .* has image, label.*`TrainingSamples`"),
        (distilling, {"train_dataset": [(1, 2)] * 4}, "train_dataset needs .* has a tuple"),
        (supervised, {"train_dataset": torch_samples(torch.uint8)}, "must be int64 .*, not uint8 .1, 32, 48"),
        (supervised, {"train_dataset": torch_samples(classes=6)}, r"hold \[4, 5\], but the model has classes 0..3"),
        (supervised, {"train_dataset": samples(num_labels=6)}, "num_labels=6, but the model 4"),
        (supervised, {"train_dataset": ConcatDataset([samples(), OtherIgnoreIndex()])}, r"ignore_index \[9, 255\]"),
    ],
)  # fmt: skip
def test_datasets_that_cannot_be_trained_on_or_scored_are_refused_at_once(tmp_path, make, options, words):
    with pytest.raises(ValueError, match=words):
        make(tmp_path, **options)


def test_own_samples_need_no_collator_and_own_rows_only_a_collator(tmp_path):
    supervised(tmp_path, train_dataset=torch_samples(), max_steps=1).train()
    rows, collate = list(range(8)), lambda rows: collate_samples([samples()[index] for index in rows])
    distilling(tmp_path, train_dataset=rows, data_collator=collate, max_steps=1).train()


def test_an_optimizer_without_the_weights_of_the_loss_is_refused(tmp_path):
    student, optimizer = segmenter(), torch.optim.AdamW
    with pytest.raises(ValueError, match="lacks 6 trainable weights of the loss, such as .*align.*cls_and_kwargs"):
        distilling(tmp_path, student, optimizers=(optimizer(student.parameters()), None))
    distilling(tmp_path, student, loss="kd", loss_kwargs=None, optimizers=(optimizer(student.parameters()), None))


# Streams


def rows(count: int, first: int = 0) -> Dataset:
    found = [labelled_image(first + index, 4, 32, 48) for index in range(count)]
    columns = Dataset.from_dict({name: [row[name] for row in found] for name in ("image", "label", "name")})
    return columns.cast_column("image", Image()).cast_column("label", Image())


def streamed(count: int = 6) -> StreamedSamples:
    transform = RandomScaleCropFlip(AfDcdImageProcessor(), (32, 48), scales=(0.75, 1.0, 1.25))
    return StreamedSamples(rows(count).to_iterable_dataset(2).shuffle(0, buffer_size=4), transform, num_labels=4)


def test_a_run_resumed_on_a_stream_ends_with_the_weights_of_the_uninterrupted_one(tmp_path):
    parts = {"eval_dataset": rows(3, 100).to_iterable_dataset(), "max_steps": 4, "save_strategy": "steps"}
    parts |= {"save_steps": 2, "loss": "kd", "loss_kwargs": None}  # the stream of 6 restarts within 4 steps of 4
    whole = distilling(tmp_path, train_dataset=streamed(), **parts)
    whole.train()
    resumed = distilling(tmp_path, segmenter(5), train_dataset=streamed(), **parts)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 4 and same(weights(resumed.student), weights(whole.student))
    stored = evaluate_segmenter(whole.student, rows(3, 100), processor=AfDcdImageProcessor(), progress=False)
    assert whole.evaluate()["eval_mean_iou"] == stored["mean_iou"] and stored["num_images"] == 3


class LastStep(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= 5


def test_with_a_time_budget_a_stream_goes_on_after_max_steps_and_a_resumed_run_joins_it(tmp_path):
    seen = []
    options = {"max_steps": 2, "max_seconds": 1e6, "lr_scheduler_type": "constant", "callbacks": [LastStep()]}
    options |= {"save_strategy": "steps", "save_steps": 3}
    collator = {"data_collator": lambda batch: seen.extend(batch) or collate_samples(batch)}
    whole = supervised(tmp_path, train_dataset=streamed(), **collator, **options)
    whole.train()
    expected = zip(range(20), streamed(), strict=False)  # 5 steps of 4, in passes of 6
    assert all(torch.equal(seen[place]["pixel_values"], one["pixel_values"]) for place, one in expected)
    resumed = supervised(tmp_path, segmenter(5), train_dataset=streamed(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 5 and same(weights(resumed.student), weights(whole.student))


def test_a_stream_needs_max_steps_and_rows(tmp_path):
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        supervised(tmp_path, train_dataset=streamed(), max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="nothing to evaluate: the dataset is empty"):
        evaluate_segmenter(segmenter(), iter([]), processor=AfDcdImageProcessor(), progress=False)


def test_the_command_line_trains_and_scores_on_a_stream_of_parquet_files(tmp_path, caplog):
    for split, found in (("train", rows(6)), ("validation", rows(3, 100))):
        found.to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    data = ["--dataset", str(tmp_path / "data"), "--streaming"]
    command = ["train", *data, "--model", str(tiny.saved(tmp_path / "model", segmenter())), "--class_names", *"abcd"]
    command += ["--max_steps", "2", "--total_batch_size", "2", "--crop_size", "32", "48", "--use_cpu"]
    assert main([*command, "--output_dir", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["num_images"] == 3 and (tmp_path / "run" / "README.md").is_file()
    assert "A checkpoint takes" in caplog.text  # disk space is checked
    for form in (data, data[:2]):  # streamed and stored
        scored = ["evaluate", "--model", str(tmp_path / "run"), *form, "--output", str(tmp_path / "r.json")]
        assert main([*scored, "--overwrite", "--device", "cpu"]) == 0
        assert json.loads((tmp_path / "r.json").read_text())["mean_iou"] == results["mean_iou"]


def test_options_impossible_with_a_stream_are_refused_before_loading():
    for words, message in (
        ("--num_train_epochs 1", "streaming needs max_steps"),
        ("--max_steps -1 --num_train_epochs 1", "streaming needs max_steps"),
        ("--cutmix_probability 0.5", "which rules out cutmix_probability: drop either that or streaming"),
        ("--unlabelled_dataset scenes", "rules out unlabelled_dataset"),
        ("--class_weights balanced --eval_strategy epoch", "rules out class_weights balanced, eval_strategy epoch"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arguments({"output_dir": "out"}, ["--streaming", "--loss", "cwd", *words.split()], distils=True)
