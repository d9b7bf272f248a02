"""Class weights from the training labels, in both trainers and in what a run writes."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tiny import distilling, samples, supervised

from afdcd_hf.training.arguments import parse_arguments

# the bands of `labelled_image`: as many columns of each class
EQUAL = [1.0, 1.0, 1.0, 1.0]


def unequal():
    """Class 3 becomes class 0: of the labelled pixels half, a quarter and a quarter are of classes 0, 1 and 2."""
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
    assert supervised(tmp_path, class_weights="balanced").args.class_weights == EQUAL


def test_what_cannot_be_balanced_is_refused_before_it_is_read(tmp_path):
    class Unreadable(list):
        def __getitem__(self, index):
            raise AssertionError("a label was read")

    found = samples()
    found.dataset = Unreadable(found.dataset)
    with pytest.raises(ValueError, match="class_weights have no effect on task_loss='dice'"):
        supervised(tmp_path, train_dataset=found, class_weights="balanced", task_loss="dice")
    with pytest.raises(ValueError, match="train_dataset is a list: give one number for each class"):
        supervised(tmp_path, train_dataset=[found] * 8, class_weights="balanced")
    with pytest.raises(ValueError, match="class_weights='equal' must be a list of finite numbers or 'balanced'"):
        parse_arguments({"class_weights": "equal"}, distils=False)
    words = ["--output_dir", str(tmp_path), "--class_weights"]
    for given, expected in ((["balanced"], "balanced"), (["1", "2.5"], [1, 2.5])):
        assert parse_arguments({}, [*words, *given], distils=False)[-1].class_weights == expected
