"""Steps without the teacher: which they are, what they train, and that they repeat and resume like all others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import distilling, logged, passes_of, same, same_batch_every_step, segmenter, weights
from torch.nn import functional as F
from transformers import TrainerCallback

from afdcd_hf.training.arguments import parse_arguments, training_part
from afdcd_hf.training.distributed import settle_unused_parameter_search


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
        ({}, [True] * 5),
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


def test_a_training_resumes_to_the_bit_between_two_steps_with_the_teacher(tmp_path):
    options = {"max_steps": 5, "distill_every": 2, "save_strategy": "steps", "save_steps": 3, "logging_steps": 2}
    whole = distilling(tmp_path / "whole", **options)
    whole.train()
    resumed = distilling(tmp_path / "resumed", segmenter(7), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(weights(resumed.model), weights(whole.model))
    assert logged(resumed, "loss") == logged(whole, "loss")
    line = next(entry for entry in whole.state.log_history if "loss" in entry)  # means over both steps, one without
    terms = [value for name, value in line.items() if name.startswith("loss_")]
    assert len(terms) == 4 and sum(terms) == pytest.approx(line["loss"], rel=1e-5)


def test_a_recipe_takes_both_and_the_students_baseline_leaves_them_out():
    recipe = {"loss": "kd", "distill_every": 2, "distill_until": 0.5, "use_cpu": True, "output_dir": "unused"}
    args = parse_arguments(recipe, ["--distill_every", "4"], distils=True)[-1]
    assert (args.distill_every, args.distill_until) == (4, 0.5)
    assert not {"distill_every", "distill_until"} & set(training_part(recipe))


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
