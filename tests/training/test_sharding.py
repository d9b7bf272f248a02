"""FSDP2 on two CPU processes trains, evaluates, saves and resumes as one process does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

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

from afdcd_hf import AfDcdForSemanticSegmentation
from afdcd_hf.cli.process_group import leave_process_group
from afdcd_hf.training.distributed import check_sharding, whole_tensors

LOGGED = ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast", "eval_mean_iou")
OPTIONS = {"max_steps": 3, "total_batch_size": 4, "save_strategy": "steps", "save_steps": 2}
AT_TIMES = {"distill_every": 2}  # the loss's weights take no part in the second step
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 3, "loss_kwargs": loss_options(mask="center")}


def distil(folder: Path, resume: str | None = None, **options):
    """Three steps; with three pictures to evaluate, one process has more of them than the other."""
    student = without_batch_effects(segmenter())
    dataset = samples(10, scales=[1.0])
    trainer = distilling(folder, student, train_dataset=dataset, eval_dataset=pictures(3), **OPTIONS, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    run_two_processes(__file__, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("run", "options"), [("first", {}), ("at-times", AT_TIMES)])
def test_sharded_training_is_the_training_of_one_process(sharded, tmp_path, run, options):
    trainer = distil(tmp_path, **options)
    seen = load_file(sharded / f"{run}.safetensors")
    assert largest_difference(seen, weights(trainer.model)) < 1e-6  # measured: 1.2e-7
    log = json.loads((sharded / f"{run}.json").read_text())
    assert log["sharded"]
    for name in LOGGED:
        assert log[name] == pytest.approx(logged(trainer, name), rel=1e-5, abs=1e-3 if name.startswith("eval") else 0)


@pytest.mark.slow
def test_a_sharded_student_is_saved_whole_and_so_are_the_losses_weights(sharded):
    seen, checkpoint = load_file(sharded / "first.safetensors"), sharded / "first" / "checkpoint-3"
    student = AfDcdForSemanticSegmentation.from_pretrained(checkpoint)
    assert same(weights(student), _part(seen, "student.")) and student.config.architectures == [type(student).__name__]
    assert same(load_file(checkpoint / "distillation.safetensors"), _part(seen, "loss."))


@pytest.mark.slow
def test_a_sharded_training_resumes_to_the_bit(sharded):
    first, resumed = (load_file(sharded / f"{name}.safetensors") for name in ("first", "resumed"))
    assert same(first, resumed)


def test_settings_that_would_save_no_student_are_refused():
    check_sharding(SimpleNamespace(fsdp_version=2, state_dict_type="StateDictType.FULL_STATE_DICT"))
    with pytest.raises(ValueError, match="fsdp_state_dict_type: FULL_STATE_DICT"):
        check_sharding(SimpleNamespace(fsdp_version=2, state_dict_type="StateDictType.SHARDED_STATE_DICT"))
    with pytest.raises(ValueError, match="fsdp_version: 2"):
        check_sharding(SimpleNamespace(fsdp_version=1, state_dict_type="StateDictType.FULL_STATE_DICT"))


def _part(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _pretend_to_be_gpus() -> None:
    """accelerate 1.15 shards only where it believes to train on GPUs; torch does it over gloo as well."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    initialise = PartialState.__init__

    def initialise_as_gpu(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        if self.__dict__.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = initialise_as_gpu


def _distil_on_this_rank(folder: Path) -> None:
    middle = str(folder / "first" / "checkpoint-2")
    for name, resume, options in (("first", None, {}), ("resumed", middle, {}), ("at-times", None, AT_TIMES)):
        trainer = distil(folder / name, resume, **options)
        trained = whole_tensors(trainer.model.state_dict())  # every rank has to take part
        if trainer.is_world_process_zero():
            save_file({key: tensor.contiguous() for key, tensor in trained.items()}, folder / f"{name}.safetensors")
            log = {key: logged(trainer, key) for key in LOGGED} | {"sharded": trainer.is_fsdp_enabled}
            (folder / f"{name}.json").write_text(json.dumps(log))
        trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    plugin = {"VERSION": "2", "STATE_DICT_TYPE": "FULL_STATE_DICT", "AUTO_WRAP_POLICY": "NO_WRAP"}
    plugin |= {"RESHARD_AFTER_FORWARD": "true", "CPU_RAM_EFFICIENT_LOADING": "false"}  # as accelerate launch sets them
    os.environ |= {"ACCELERATE_USE_FSDP": "true", **{f"FSDP_{name}": value for name, value in plugin.items()}}
    _pretend_to_be_gpus()
    _distil_on_this_rank(Path(sys.argv[1]))
    leave_process_group()
