"""Trainings with CIRKD: two processes as one on the whole batch, and the memory of a resumed run."""

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
    run_two_processes,
    same,
    samples,
    segmenter,
    weights,
    without_batch_effects,
)

from afdcd_hf.cli.process_group import leave_process_group
from afdcd_hf.losses.random_source import RandomSource

CIRKD = {"num_classes": 4, "pixel_queue": 7, "region_queue": 5, "pixels_per_image": 2, "pixel_draws": 16}
CIRKD |= {"region_draws": 8, "pixel_weight": 1.0, "region_weight": 1.0, "minibatch_weight": 5.0}
OPTIONS = {"loss": "cirkd", "loss_kwargs": {"cirkd": CIRKD}, "total_batch_size": 4}
TERMS = ("loss", "loss_cirkd_minibatch", "loss_cirkd_pixel", "loss_cirkd_region")


class Ascending(RandomSource):
    """Numbers that do not hang on how the images are shared out: those of each image ascend."""

    def uniform(self, like: torch.Tensor) -> torch.Tensor:
        return torch.arange(like.numel()).reshape(like.shape) / like.numel()


def distil(folder: Path, **options) -> tuple[dict, dict]:
    """Train without batch effects and chance; the weights of student and loss, and what the log says."""
    student = without_batch_effects(segmenter())
    trainer = distilling(folder, student, train_dataset=samples(12, scales=[1.0]), max_steps=3, **OPTIONS, **options)
    without_batch_effects(trainer.loss_module)  # its head has a batch norm
    trainer.loss_module._source = Ascending(torch.Generator())
    trainer.train()
    return weights(trainer.model), {name: logged(trainer, name) for name in TERMS}


@pytest.mark.slow
def test_two_processes_train_and_remember_as_one_does_on_the_whole_batch(tmp_path):
    expected, log = distil(tmp_path / "one")
    run_two_processes(__file__, tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert same(first, second)  # the memory too, which DDP does not send around
    assert largest_difference(first, expected) < 1e-5
    assert expected["loss.pixels.appended"].sum() > 4 * 7  # queues went round
    before = weights(without_batch_effects(segmenter()))
    assert largest_difference({name: first[f"student.{name}"] for name in before}, before) > 0.01
    log_of_two = json.loads((tmp_path / "log.json").read_text())
    for name in TERMS:
        assert log_of_two[name] == pytest.approx(log[name], rel=1e-4)


def test_head_and_memory_are_in_the_checkpoint_and_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    options = {**OPTIONS, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = distilling(tmp_path, **options)
    whole.train()
    saved = load_file(tmp_path / "checkpoint-2" / "distillation.safetensors")
    assert saved["pixels.vectors"].abs().sum() > 0 and saved["regions.appended"].sum() > 0
    resumed = distilling(tmp_path / "resumed", segmenter(5), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(weights(resumed.model), weights(whole.model))
    moved = (
        weights(whole.loss_module)["head.0.weight"]
        - weights(distilling(tmp_path / "new", **options).loss_module)["head.0.weight"]
    )
    assert moved.abs().max() > 0


if __name__ == "__main__":  # one of the two processes
    from accelerate import PartialState

    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[1]), PartialState(cpu=True).process_index
    trained, log = distil(folder / "two")
    save_file(trained, folder / f"{rank}.safetensors")
    if rank == 0:
        (folder / "log.json").write_text(json.dumps(log))
    leave_process_group()
