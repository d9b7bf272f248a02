"""A signal stops a training with everything saved."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from tiny import distilling, logged, loss_options, same, segmenter, supervised, weights, with_scores
from transformers import TrainerCallback

from afdcd_hf.cli import main
from afdcd_hf.training.checkpoints import fault_of
from afdcd_hf.training.interruption import Interruption, TrainingInterrupted


class SignalAt(TrainerCallback):
    """Sends signals to its own process in the middle of one step."""

    def __init__(self, step: int, *numbers: int):
        self.step = step
        self.numbers = numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class Ends(TrainerCallback):
    """Counts them."""

    count = 0

    def on_train_end(self, args, state, control, **kwargs):
        self.count += 1


OPTIONS = {"max_steps": 4, "logging_steps": 3, "loss_kwargs": loss_options(mask="random")}
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    trainer = distilling(tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_from_which_the_run_ends_as_if_nothing_had_happened(
    whole, tmp_path, number, status
):
    ends = Ends()
    stopped = distilling(tmp_path / "run", **OPTIONS, callbacks=[SignalAt(1, number), ends])
    before = signal.getsignal(number)
    message = "stopped by SIG.* after step 1; .* saved in .*checkpoint-1"
    with pytest.raises(TrainingInterrupted, match=message) as raised:
        stopped.train()
    assert raised.value.exit_status == status
    assert signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-1"] and ends.count == 1
    assert fault_of(tmp_path / "run" / "checkpoint-1") is None
    resumed = distilling(tmp_path / "run", segmenter(5), **OPTIONS)
    resumed.train(resume_from_checkpoint="last")
    assert same(weights(resumed.model), weights(whole.model))
    for term in ("loss", "loss_task", "loss_feature", "grad_norm"):  # the line at step 3 spans the stop
        assert logged(resumed, term) == logged(whole, term)


def test_nothing_that_belongs_to_the_end_happens_and_no_checkpoint_is_removed(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"save_total_limit": 1, "load_best_model_at_end": True, "max_steps": 4}
    trainer = with_scores(
        supervised(tmp_path, **options, callbacks=[SignalAt(3, signal.SIGTERM, signal.SIGTERM)]), 0.9, 0.5, 0.1
    )
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]
    assert not logged(trainer, "train_runtime")


def test_where_an_evaluation_is_due_the_checkpoint_is_saved_before_it_too(tmp_path):
    trainer = supervised(tmp_path, eval_strategy="steps", eval_steps=1, callbacks=[SignalAt(1, signal.SIGTERM)])

    def evaluate(**_):
        assert fault_of(tmp_path / "checkpoint-1") is None
        raise MemoryError("this evaluation does not get to its end")

    trainer.evaluate = evaluate
    with pytest.raises(MemoryError):
        trainer.train()
    assert (tmp_path / "checkpoint-1").is_dir()


def test_a_signal_amid_an_evaluation_saves_at_once_and_the_evaluation_is_finished(whole, tmp_path):
    trainer, seen = distilling(tmp_path / "run", **OPTIONS), []

    def signal_once(*_):
        if trainer.student.training:
            return
        if not seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(fault_of(tmp_path / "run" / "checkpoint-2") is None)

    handle = trainer.student.head.register_forward_pre_hook(signal_once)
    with pytest.raises(TrainingInterrupted, match="after step 2"):
        trainer.train()
    handle.remove()
    assert seen == [False, True, True]  # of three images
    resumed = distilling(tmp_path / "run", **OPTIONS)
    resumed.train("last")
    assert logged(resumed, "eval_mean_iou") == logged(whole, "eval_mean_iou")
    assert same(weights(resumed.model), weights(whole.model))


@pytest.fixture
def ctrl_c_works():
    """Also where the tests are a shell's background job, which is started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_stops_at_once_without_saving(tmp_path, ctrl_c_works):
    trainer = supervised(tmp_path, callbacks=[SignalAt(1, signal.SIGINT, signal.SIGINT)])
    with pytest.raises(KeyboardInterrupt) as raised:
        trainer.train()
    assert not isinstance(raised.value, TrainingInterrupted) and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_training_can_run_in_another_thread_where_no_signals_are_caught(tmp_path):
    trainer = supervised(tmp_path)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 2


def test_torchruns_copy_of_a_ctrl_c_is_not_taken_for_a_second_one(tmp_path, monkeypatch):
    args = supervised(tmp_path).args
    monkeypatch.setattr(type(args), "world_size", 2)
    interruption = Interruption(args, save=lambda: None)
    with interruption.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        interruption._asked_at -= 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_command_ends_with_the_signals_status_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*_):
        raise TrainingInterrupted(signal.SIGTERM, 7, "runs/x/checkpoint-7")

    monkeypatch.setattr("afdcd_hf.training.runs.train", interrupted)
    assert main(["train", "--config", "quickstart"]) == 143
    message = capsys.readouterr().err
    assert "afdcd train: stopped by SIGTERM after step 7; everything is saved in runs/x/checkpoint-7" in message
    assert "--resume_from_checkpoint last continues" in message
