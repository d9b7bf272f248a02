"""A run killed repeatedly with SIGKILL ends bit-for-bit with the weights and the log of an uninterrupted one.

Each run is a process, forked from a server that has imported everything once.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import distilling, loss_options, samples, segmenter, weights
from transformers import TrainerCallback

# An epoch has two steps of two batches; checkpoints, log lines and evaluations fall on different steps.
OPTIONS = {"max_steps": 8, "total_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 3, "save_steps": 2}
OPTIONS |= {"save_strategy": "steps", "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 4}
OPTIONS |= {"distill_every": 3}
LOG = ("loss", "grad_norm", "learning_rate", "loss_task", "loss_kd", "loss_feature", "loss_contrast", "eval_mean_iou")
MOMENTS = (
    "on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_evaluate",
)  # fmt: skip
SAVING = ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "_facts", "_save_checkpoint")


class KilledAt(TrainerCallback):
    """Sends SIGKILL at the first `moment` from step `step` on."""

    def __init__(self, step: int, moment: str):
        self.step = step
        setattr(self, moment, self._kill)

    def _kill(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make(folder: Path, seed: int = 0, killed: tuple[int, str] | None = None, **options):
    """A distillation; `killed` gives the number of steps and the moment at which it dies."""
    step, moment = killed or (0, "")
    options = {**OPTIONS, "loss_kwargs": loss_options(mask="random"), **options}
    options["callbacks"] = [KilledAt(step, moment)] if moment in MOMENTS else []
    options.setdefault("train_dataset", samples(10))
    trainer = distilling(folder, segmenter(seed), **options)
    if moment in SAVING:
        place = trainer.checkpoints if moment == "_facts" else trainer
        usual = getattr(place, moment)

        def deadly(*args, **kwargs):
            result = usual(*args, **kwargs)  # the files of this part are written
            if trainer.state.global_step >= step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(place, moment, deadly)
    return trainer


def outcome(trainer) -> dict:
    """A hash of all weights (student, align, projector, buffers) and optimizer states, and the log."""
    trained = hashlib.sha256()
    for name, tensor in sorted(weights(trainer.model).items()):
        trained.update(name.encode() + tensor.numpy().tobytes())
    for state in trainer.optimizer.state_dict()["state"].values():
        trained.update(state["momentum_buffer"].numpy().tobytes())
    lines = [{name: entry[name] for name in (*LOG, "step") if name in entry} for entry in trainer.state.log_history]
    best = [trainer.state.best_metric, trainer.state.best_global_step]
    return {"hash": trained.hexdigest(), "log": [line for line in lines if len(line) > 1], "best": best}


def train(folder: Path, killed: tuple[int, str] | None, options: dict) -> None:
    """Start a run or resume the last complete checkpoint, in a separate process; write the outcome to a file."""
    multiprocessing.set_start_method("fork", force=True)  # for data workers, as without the server
    resume = any(folder.glob("checkpoint-*/trainer_state.json"))  # the last file of a checkpoint
    trainer = make(folder, seed=5 if resume else 0, killed=killed, **options)
    trainer.train(resume_from_checkpoint="last" if resume else None)
    (folder / "outcome.json").write_text(json.dumps(outcome(trainer)))


@pytest.fixture(scope="module")
def processes():
    """A function that trains in a new process and returns its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny", "test_resume"])
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path])  # the server reads it when it starts

    def run(folder: Path, killed: tuple[int, str] | None = None, **options) -> int:
        process = context.Process(target=train, args=(folder, killed, options))
        process.start()
        process.join(timeout=100)
        if process.is_alive():
            process.kill()
            pytest.fail("the process hangs")
        return process.exitcode

    return run


def read(folder: Path) -> dict:
    return json.loads((folder / "outcome.json").read_text())


@pytest.mark.slow
def test_a_run_killed_at_random_moments_matches_the_uninterrupted_one(tmp_path, processes):
    assert processes(tmp_path / "whole") == 0
    draw, folder, deaths = random.Random(0), tmp_path / "run", 0
    while not (folder / "outcome.json").is_file():
        # Each time it dies some steps later, within a step, an evaluation or the writing of a checkpoint.
        step, moment = draw.randint(2 * deaths, 2 * deaths + 2), draw.choice(MOMENTS + SAVING)
        status = processes(folder, (step, moment))
        assert status in (0, -signal.SIGKILL), (step, moment)
        deaths += status != 0
        assert deaths < 20
    assert deaths >= 3
    assert read(folder) == read(tmp_path / "whole")
    assert {path.name for path in folder.iterdir() if path.is_dir()} <= {"checkpoint-6", "checkpoint-8", "checkpoint-4"}


def test_signals_meant_for_the_run_do_not_end_its_data_workers(tmp_path):
    trainer = make(tmp_path, dataloader_num_workers=1)
    batches = iter(trainer.get_train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    shell = f"kill -TERM {worker.pid}; kill -INT {worker.pid}; sleep 0.2"  # not sent by the worker's parent
    subprocess.run(["bash", "-c", shell], check=True)
    assert worker.is_alive() and len(list(batches)) == 3
    batches = iter(trainer.get_train_dataloader())
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()  # sent by its parent
    worker.join(timeout=10)
    assert not worker.is_alive()


@pytest.mark.slow
def test_resuming_with_persistent_data_workers_matches_too(tmp_path, processes):
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "no"}
    assert processes(tmp_path / "whole", **options) == 0
    assert processes(tmp_path / "run", (4, "on_substep_end"), **options) == -signal.SIGKILL  # in the second epoch
    assert processes(tmp_path / "run", **options) == 0
    assert read(tmp_path / "run") == read(tmp_path / "whole")
