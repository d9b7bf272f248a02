"""Two processes that share the batch train what one process with the whole batch trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import (
    distilling,
    largest_difference,
    logged,
    loss_options,
    pictures,
    run_two_processes,
    same,
    samples,
    segmenter,
    weights,
    without_batch_effects,
)

from afdcd_hf.cli.process_group import leave_process_group

# Ten samples make two batches of four an epoch, so that the third step lies in the second one: shuffling and
# augmentation have to agree over ranks there too. With scale 1 every sample has as many unlabelled pixels, and the
# mean of the two ranks' mean losses is the mean over the whole batch.
OPTIONS = {
    "max_steps": 3,
    "total_batch_size": 4,
    "learning_rate": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "save_strategy": "steps",
}
OPTIONS |= {"save_steps": 2, "loss_kwargs": loss_options(mask="center")}
AT_TIMES = {"distill_every": 2}  # the first and the third step


def distil(folder: Path, student: torch.nn.Module, resume: str | None = None, **options) -> tuple[dict, dict]:
    """Train; the weights of student and loss, and what the log says."""
    options = {**OPTIONS, **options}
    trainer = distilling(folder, student, train_dataset=samples(10, scales=[1.0]), eval_dataset=pictures(3), **options)
    trainer.train(resume_from_checkpoint=resume)
    names = ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast", "eval_mean_iou")
    log = {name: logged(trainer, name) for name in names}
    return weights(trainer.model), {**log, "per_device": trainer.args.per_device_train_batch_size}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two processes left: weights and log of each rank."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "output.txt").write_text(run_two_processes(__file__, folder))
    return folder


def log_of(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("run, per_device", [("frozen", 2), ("accumulated", 1)])
def test_two_processes_train_student_and_loss_weights_as_one_does(two, tmp_path, run, per_device):
    student = without_batch_effects(segmenter())
    before = weights(student)
    expected, log = distil(tmp_path, student)
    seen, log_of_two = load_file(two / f"{run}-0.safetensors"), log_of(two, f"{run}-0")
    assert log["per_device"] == 4 and log_of_two["per_device"] == per_device
    assert largest_difference(seen, expected) < 1e-6  # measured: 1.2e-7, from float32 sums in another order
    moved = {name.removeprefix("student."): seen[name] for name in seen if name.startswith("student.")}
    assert largest_difference(moved, before) > 0.05  # measured: 0.14; so they did train
    assert sum(name.startswith("loss.") for name in seen) == 6
    for name in ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"):
        assert log_of_two[name] == pytest.approx(log[name], rel=1e-5)
    assert log_of_two["eval_mean_iou"] == pytest.approx(log["eval_mean_iou"], abs=1e-3)  # a pixel may tip over


@pytest.mark.slow
def test_two_processes_agree_with_one_where_only_some_steps_have_the_teacher(two, tmp_path):
    expected, log = distil(tmp_path, without_batch_effects(segmenter()), **AT_TIMES)
    seen, log_of_two = load_file(two / "at-times-0.safetensors"), log_of(two, "at-times-0")
    assert largest_difference(seen, expected) < 1e-6
    assert len(log["loss"]) == 3 and len(log["loss_kd"]) == 2
    assert log_of_two["loss_kd"] == pytest.approx(log["loss_kd"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["frozen", "accumulated", "usual", "resumed", "at-times"])
def test_weights_and_scores_are_equal_on_both_ranks(two, run):
    first, second = (load_file(two / f"{run}-{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)  # batch norm's statistics too: an evaluation made them equal
    assert log_of(two, f"{run}-0") == log_of(two, f"{run}-1")


@pytest.mark.slow
def test_a_training_resumed_on_two_processes_ends_as_the_uninterrupted_one(two):
    usual, resumed = (load_file(two / f"{run}-0.safetensors") for run in ("usual", "resumed"))
    assert same(usual, resumed)


@pytest.mark.slow
def test_only_one_checkpoint_is_written_and_it_holds_what_the_ranks_agreed_on(two):
    checkpoint = two / "usual" / "checkpoint-3"
    student = load_file(checkpoint / "model.safetensors")
    seen = load_file(two / "usual-1.safetensors")
    assert same(student, {name.removeprefix("student."): seen[name] for name in seen if name.startswith("student.")})
    assert (checkpoint / "distillation.safetensors").is_file()


@pytest.mark.slow
def test_ddp_has_nothing_to_complain_about(two):
    # but in the run in which it has to look: its first step has no idle weights, and DDP says so
    with_every_weight, at_times = (two / "output.txt").read_text().split("[at-times]", maxsplit=1)
    assert "unused parameters" not in with_every_weight
    assert "your model has flow control" in at_times


def _distil_on_this_rank(folder: Path) -> None:
    from accelerate import PartialState

    rank = PartialState(cpu=True).process_index
    for run, student, resume, options in (
        ("frozen", without_batch_effects(segmenter()), None, {}),
        ("accumulated", without_batch_effects(segmenter()), None, {"gradient_accumulation_steps": 2}),
        ("usual", segmenter(), None, {}),
        ("resumed", segmenter(5), str(folder / "usual" / "checkpoint-2"), {}),
        ("at-times", without_batch_effects(segmenter()), None, AT_TIMES),
    ):
        print(f"[{run}]", flush=True)
        trained, log = distil(folder / run, student, resume, **options)
        save_file(trained, folder / f"{run}-{rank}.safetensors")
        (folder / f"{run}-{rank}.json").write_text(json.dumps(log))


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    _distil_on_this_rank(Path(sys.argv[1]))
    leave_process_group()
