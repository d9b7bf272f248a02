"""Training on two processes equals training on one with the whole batch; a single torchrun covers all cases."""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_callbacks import steps_last
from test_stopping import Samples, SignalAt
from tiny import distilling, largest_difference, same, samples, segmenter, weights, without_batch_effects

from afdcd_hf import AfDcdForSemanticSegmentation
from afdcd_hf.cli import leave_process_group
from afdcd_hf.losses import cirkd, mgd
from afdcd_hf.training.distributed import gather_full_tensors
from afdcd_hf.training.stopping import NonFiniteLossError, TrainingInterrupted

pytestmark = pytest.mark.slow

# Ten samples make two batches of four per epoch, so the third step lies in the second epoch: shuffling and augmentation
# have to agree between ranks there too. At scale 1, all samples have equally many unlabelled pixels, so the mean of the
# two ranks' losses is the loss of the whole batch.
OPTIONS = {"max_steps": 3, "total_batch_size": 4, "learning_rate": 0.1, "eval_strategy": "steps", "eval_steps": 3}
OPTIONS |= {"save_strategy": "steps", "save_steps": 2, "loss_kwargs": tiny.loss_options(mask="center")}
AT_TIMES = {"distill_every": 2}  # steps 1 and 3
CIRKD = {"num_classes": 4, "pixel_queue": 7, "region_queue": 5, "pixels_per_image": 2, "pixel_draws": 16}
CIRKD |= {"region_draws": 8, "pixel_weight": 1.0, "region_weight": 1.0, "minibatch_weight": 5.0}
REMEMBERING = {"loss": "cirkd", "loss_kwargs": {"cirkd": CIRKD}, "save_strategy": "no", "eval_strategy": "no"}
RANDOM = {"loss_kwargs": tiny.loss_options(mask="random"), "logging_steps": 2, "save_strategy": "no", "eval_steps": 4}
TERMS = ("loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast")
CIRKD_TERMS = ("loss", "loss_cirkd_minibatch", "loss_cirkd_pixel", "loss_cirkd_region")


def ascending(like: torch.Tensor) -> torch.Tensor:
    """Ascending numbers per image, independent of how images are split over processes."""
    return torch.arange(like.numel()).reshape(like.shape) / like.numel()


def alike() -> torch.nn.Module:
    """A student without batch effects, so that images do not influence each other."""
    return without_batch_effects(segmenter())


def distil(folder: Path, student: torch.nn.Module, resume: str | None = None, **options) -> tuple[dict, dict]:
    """Train; return the weights of student and loss, and the log."""
    dataset = options.pop("train_dataset", None) or samples(10, scales=[1.0])
    trainer = distilling(folder, student, train_dataset=dataset, **{**OPTIONS, **options})
    if options.get("loss") == "cirkd":
        without_batch_effects(trainer.loss_module)  # its head has a batch norm
    with patch.object(cirkd, "uniform", ascending):
        trainer.train(resume_from_checkpoint=resume)
    log = {name: tiny.logged(trainer, name) for name in (*TERMS, *CIRKD_TERMS, "eval_mean_iou", "grad_norm")}
    log |= {"per_device": trainer.args.per_device_train_batch_size, "sharded": trainer.is_fsdp_enabled}
    return {name: each.cpu().contiguous() for name, each in gather_full_tensors(weights(trainer.model)).items()}, log


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """Folder with weights and log of each rank of two processes; runs with FSDP2 are named "sharded..."."""
    folder = tmp_path_factory.mktemp("two")
    tiny.run_processes(__file__, folder, timeout=290)
    return folder


def left(folder: Path, run: str, rank: int = 0) -> tuple[dict, dict]:
    return load_file(folder / f"{run}-{rank}.safetensors"), json.loads((folder / f"{run}-{rank}.json").read_text())


@pytest.mark.parametrize(("run", "per_device", "options"), [
    ("frozen", 2, {}), ("accumulated", 1, {}), ("at-times", 2, AT_TIMES), ("cirkd", 2, REMEMBERING),
    ("sharded", 2, {}),
])  # fmt: skip
def test_two_processes_train_student_and_loss_weights_like_one(two, tmp_path, run, per_device, options):
    before = weights(alike())
    expected, log = distil(tmp_path, alike(), **options)
    seen, log_of_two = left(two, run)
    assert log["per_device"] == 4 and log_of_two["per_device"] == per_device
    limit = 1e-5 if run == "cirkd" else 1e-6  # float32 sums in a different order
    assert largest_difference(seen, expected) < limit
    moved = {name.removeprefix("student."): seen[name] for name in seen if name.startswith("student.")}
    assert largest_difference(moved, before) > 0.01  # they did train
    taught = 2 if run == "at-times" else 0 if run == "cirkd" else 3
    assert len(log["loss"]) == 3 and len(log["loss_kd"]) == taught
    for name in (*TERMS, *CIRKD_TERMS):
        assert log_of_two[name] == pytest.approx(log[name], rel=1e-4)
    assert log_of_two["eval_mean_iou"] == pytest.approx(log["eval_mean_iou"], abs=1e-3)  # a pixel may flip
    if run == "cirkd":
        assert expected["loss.pixels.appended"].sum() > 4 * 7  # the queues wrapped around


@pytest.mark.parametrize("run", ["frozen", "accumulated", "usual", "resumed", "at-times", "cirkd", "stopped"])
def test_weights_and_scores_are_equal_on_both_ranks(two, run):
    (first, log), (second, others) = (left(two, run, rank) for rank in (0, 1))
    assert same(first, second)  # including batch norm statistics, aligned by an evaluation, and CIRKD's queues
    assert log == others


@pytest.mark.parametrize(("run", "whole"), [("resumed", "usual"), ("stopped", "random")])
def test_a_run_resumed_on_two_processes_matches_the_uninterrupted_one(two, run, whole):
    (trained, log), (expected, log_of_whole) = left(two, run), left(two, whole)
    assert same(trained, expected) and log == log_of_whole


def test_a_sharded_student_and_its_loss_weights_are_saved_unsharded_and_resume_bit_for_bit(two):
    seen, checkpoint = left(two, "sharded")[0], two / "sharded" / "checkpoint-3"
    student = AfDcdForSemanticSegmentation.from_pretrained(checkpoint)
    assert student.config.architectures == [type(student).__name__]
    for part, saved in (("student.", weights(student)), ("loss.", load_file(checkpoint / "distillation.safetensors"))):
        assert same(saved, {name.removeprefix(part): seen[name] for name in seen if name.startswith(part)})
    assert left(two, "sharded")[1]["sharded"] and same(seen, left(two, "sharded-resumed")[0])


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_synchronised_batch_norm_train_like_one(tmp_path):
    for count in (1, 2):
        tiny.run_processes(__file__, tmp_path / str(count), "gpus", processes=count, gpus=True)
    assert largest_difference(*(left(tmp_path / str(count), "usual")[0] for count in (1, 2))) < 1e-3


def test_a_signal_to_one_process_and_a_nan_in_one_stop_both(two):
    assert [(two / f"stopped-{rank}").read_text() for rank in (0, 1)] == [str(two / "stopped" / "checkpoint-3")] * 2
    message, other = ((two / f"nan-{rank}.txt").read_text() for rank in (0, 1))
    assert message == other and message.startswith("process 1: step 4: the loss is not finite")
    assert "resume from" in message and "checkpoint-2" in message and "bands_6" in message


def test_ranks_draw_different_masks_and_dropout_but_share_one_sample_order(two):
    first, second = (json.loads((two / f"draws-{rank}.json").read_text()) for rank in (0, 1))
    assert first["dropped"] and first["dropped"] != second["dropped"]
    masks = first["masks"] + second["masks"]  # two steps of one batch each
    assert len(masks) == 4 and all(one != other for one, other in combinations(masks, 2))
    assert sorted(first["asked"] + second["asked"]) == list(range(8))  # one epoch


def test_all_processes_follow_the_clock_of_rank_0(two):
    first, second = (json.loads((two / f"clock-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and first["steps"] == 4 and first["teacher"] == 2


def _draw(folder: Path) -> dict:
    dataset = Samples()
    trainer = distilling(folder, train_dataset=dataset, total_batch_size=4)
    dropout, dropped = next(m for m in trainer.student.modules() if isinstance(m, torch.nn.Dropout)), []
    dropout.register_forward_hook(lambda module, inputs, output: dropped.append((output == 0).sum().item()))
    dataset.asked = []  # one was read as a check
    uniform, masks = mgd.uniform, []
    with patch.object(mgd, "uniform", lambda like: masks.append(drawn := uniform(like)) or drawn):
        trainer.train()
    return {"asked": dataset.asked, "dropped": dropped, "masks": [mask.tolist() for mask in masks]}


def _follow_the_clock(folder: Path, rank: int) -> dict:
    teacher = segmenter(1, channels=48)
    options = {"total_batch_size": 4, "max_steps": 9, "max_seconds": 8.0, "distill_until": 0.5}
    trainer = steps_last(distilling(folder, teacher=teacher, **options), 0.3 if rank else 2.0)
    calls = tiny.passes_of(teacher)
    trainer.train()
    seen = {"steps": trainer.state.global_step, "teacher": len(calls), "rates": tiny.logged(trainer, "learning_rate")}
    return {**seen, "weights": sum(p.double().sum().item() for p in trainer.model.parameters())}


def _shard() -> None:
    """Set up FSDP2 as `accelerate launch` does; accelerate 1.15 shards only if it assumes GPUs."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plugin = {"VERSION": "2", "STATE_DICT_TYPE": "FULL_STATE_DICT", "AUTO_WRAP_POLICY": "NO_WRAP"}
    plugin |= {"RESHARD_AFTER_FORWARD": "true", "CPU_RAM_EFFICIENT_LOADING": "false"}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", **{f"FSDP_{name}": value for name, value in plugin.items()}}
    initialise = PartialState.__init__

    def initialise_as_gpu(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        if self.__dict__.get("distributed_type") == DistributedType.MULTI_CPU:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = initialise_as_gpu
    AcceleratorState._reset_state(reset_partial_state=True)


def _on_this_rank(folder: Path, kind: str = "") -> None:
    from accelerate import PartialState

    rank = PartialState(cpu=kind != "gpus").process_index

    def run(name: str, student: torch.nn.Module, resume: str | None = None, **options):
        trained, log = distil(folder / name, student, resume, **options)
        save_file(trained, folder / f"{name}-{rank}.safetensors")
        (folder / f"{name}-{rank}.json").write_text(json.dumps(log))

    if kind == "gpus":
        run("usual", segmenter(), train_dataset=samples(8, scales=[1.0]), use_cpu=False, learning_rate=0.05)
        return
    run("frozen", alike())
    run("accumulated", alike(), gradient_accumulation_steps=2)
    run("usual", segmenter())
    run("resumed", segmenter(5), str(folder / "usual" / "checkpoint-2"))
    run("cirkd", alike(), **REMEMBERING)
    (folder / f"draws-{rank}.json").write_text(json.dumps(_draw(folder / "draws")))
    run("random", segmenter(), max_steps=5, **RANDOM)
    try:
        callbacks = [SignalAt(3, signal.SIGTERM)] if rank == 1 else []
        distil(folder / "stopped", segmenter(), max_steps=5, callbacks=callbacks, **RANDOM)
    except TrainingInterrupted as interrupted:
        (folder / f"stopped-{rank}").write_text(interrupted.checkpoint)
    run("stopped", segmenter(5), "last", max_steps=5, **RANDOM)
    in_order = {"train_sampling_strategy": "sequential", "max_steps": 4, "train_dataset": Samples("bands_6", epoch=1)}
    try:
        distil(folder / "nan", segmenter(), **in_order)
    except NonFiniteLossError as error:
        (folder / f"nan-{rank}.txt").write_text(str(error))
    run("at-times", alike(), **AT_TIMES)
    (folder / f"clock-{rank}.json").write_text(json.dumps(_follow_the_clock(folder / "clock", rank)))
    _shard()
    run("sharded", alike())
    run("sharded-resumed", alike(), str(folder / "sharded" / "checkpoint-2"))


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    _on_this_rank(Path(sys.argv[1]), *sys.argv[2:])
    leave_process_group()
