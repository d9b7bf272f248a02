"""A run that fails or gets a signal stops, says why, and can be resumed as if nothing had happened."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, loss_options, same, samples, segmenter, supervised, weights, with_scores
from torch.utils.data import Dataset
from transformers import TrainerCallback

from afdcd_hf.cli import main
from afdcd_hf.training.checkpoints import find_fault
from afdcd_hf.training.stopping import Interruption, NonFiniteGradientError, NonFiniteLossError, TrainingInterrupted

RUN = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}


class Samples(Dataset):
    """Eight samples; from `epoch` on, the one named `spoilt` is NaN or, with `error`, unreadable.

    `asked` lists the indices read so far: each once per epoch, without workers.
    """

    def __init__(self, spoilt: str = "", epoch: int = 0, error: Exception | None = None, first_epoch: int = 0):
        self.samples, self.spoilt, self.spoilt_epoch, self.error = samples(), spoilt, epoch, error
        self.asked, self.first_epoch = [], first_epoch

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        epoch = self.first_epoch + self.asked.count(index)
        self.asked.append(index)
        self.samples.set_epoch(epoch)
        sample = self.samples[index]
        if sample["name"] == self.spoilt and epoch >= self.spoilt_epoch:
            if self.error is not None:
                raise self.error
            sample["pixel_values"] = sample["pixel_values"] * math.nan
        return sample


def in_order(trainer_of, folder: Path, dataset: Dataset, **options):
    """A trainer that reads its samples in order in every epoch: two batches of four."""
    return trainer_of(folder, train_dataset=dataset, train_sampling_strategy="sequential", **{**RUN, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    trainer = in_order(supervised, tmp_path_factory.mktemp("whole"), Samples())
    trainer.train()
    return trainer


@pytest.mark.parametrize("make", [supervised, distilling])
def test_a_nan_loss_stops_the_run_before_it_is_used_and_names_the_checkpoint_to_resume_from(tmp_path, make):
    broken = in_order(make, tmp_path, Samples("bands_5", epoch=1), save_steps=2)  # in the second batch, step 4
    distils = "kd nan.*reduction='mean'.*" if make is distilling else ""
    expected = rf"^step 4: the loss is not finite \(task nan.*{distils}"
    with pytest.raises(NonFiniteLossError, match=expected) as caught:
        broken.train()
    message = str(caught.value)
    assert "images bands_4, bands_5, bands_6, bands_7. To try: a lower learning_rate" in message
    assert message.endswith(f"resume from {tmp_path / 'checkpoint-2'}.") and broken.state.global_step == 3
    assert all(parameter.isfinite().all() for parameter in broken.model.parameters())
    with pytest.raises(NonFiniteLossError, match="step 3: .* No step had been finished since the start"):
        in_order(make, tmp_path, Samples("bands_1")).train("last")


def test_with_accumulation_the_error_names_the_broken_batch(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(NonFiniteLossError, match="step 2: .*images bands_4, bands_5\\..*No checkpoint had"):
        in_order(supervised, tmp_path, Samples("bands_5"), **options).train()


def test_non_finite_gradients_stop_the_run_before_the_optimizer_uses_them(tmp_path):
    student, passes = segmenter(), []

    def explode(module, args, output):
        passes.append(1)
        if len(passes) == 3:
            output.register_hook(lambda gradient: gradient * math.inf)  # the loss is unchanged

    student.head.classifier.register_forward_hook(explode)
    trainer = in_order(supervised, tmp_path, Samples(), model=student)
    with pytest.raises(NonFiniteGradientError, match=r"step 3: the gradients are not finite \(task \d.*norm (nan|inf)"):
        trainer.train()
    assert trainer.state.global_step == 2 and all(tensor.isfinite().all() for tensor in weights(student).values())


def test_infinite_gradients_are_left_to_a_gradient_scaler_and_without_check_finite_the_run_continues(tmp_path):
    trainer = supervised(tmp_path)
    trainer.create_optimizer_and_scheduler(2)
    trainer.accelerator.scaler, trainer.guard.norm = torch.amp.GradScaler("cpu"), torch.tensor(math.inf)
    now = trainer.args, trainer.state, trainer.control
    trainer.guard.watch({"task": torch.tensor(1.0)}, None)
    trainer.guard.on_pre_optimizer_step(*now)
    trainer.guard.watch({"task": torch.tensor(math.inf)}, None)
    with pytest.raises(NonFiniteLossError):
        trainer.guard.on_pre_optimizer_step(*now)
    in_order(supervised, tmp_path, Samples("bands_5"), check_finite=False, max_steps=2).train()


def test_an_unreadable_image_stops_the_run_and_once_replaced_it_resumes_exactly(whole, tmp_path):
    error = OSError("b.png: the image (/d/b.png) cannot be read")
    broken = in_order(supervised, tmp_path, Samples("bands_5", epoch=1, error=error), save_steps=100)
    with pytest.raises(type(error)) as caught:
        broken.train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")  # after one or two steps, as batches are prefetched
    assert str(caught.value).startswith(f"{error}. The state after step") and str(checkpoint) in str(caught.value)
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    resumed = in_order(supervised, tmp_path, Samples(first_epoch=step // 2))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(resumed.model), weights(whole.model))
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_an_error_in_a_data_worker_is_reduced_to_its_message(tmp_path):
    text = "b.png: the image (/d/b.png) cannot be read: 12 bytes are missing"
    torn = Samples("bands_7", epoch=0, error=OSError(text))
    trainer = in_order(supervised, tmp_path, torn, per_device_train_batch_size=2, dataloader_num_workers=1)
    with pytest.raises(OSError) as caught:
        trainer.train()
    assert str(caught.value).startswith(f"{text}. The state")
    assert "Traceback" not in str(caught.value) and (tmp_path / "checkpoint-2").is_dir()


def test_a_full_disk_or_several_processes_do_not_hide_why_the_run_stopped(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    torn = Samples("bands_5", epoch=1, error=OSError("b.png is damaged"))
    trainer = in_order(supervised, tmp_path / "full", torn, save_steps=100)
    monkeypatch.setattr(trainer, "_save_checkpoint", full)
    with pytest.raises(OSError, match="^b.png is damaged. The state .*could not be saved: .*No space left"):
        trainer.train()

    trainer = in_order(supervised, tmp_path / "two", torn, save_steps=2)
    torn.asked, save_last_step = [], trainer.guard._save_last_step

    def among_several(error):  # as if one of two processes had failed alone
        monkeypatch.setattr(type(trainer.args), "world_size", 2)
        return save_last_step(error)

    monkeypatch.setattr(trainer.guard, "_save_last_step", among_several)
    with pytest.raises(OSError, match=r"^b.png is damaged\. After fixing the cause, resume from .*checkpoint-2\.$"):
        trainer.train()
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["checkpoint-2"]


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(("place", "error"), [("step", FULL), ("evaluation", FULL), ("step", KeyError("names"))])
def test_the_finished_step_is_saved_on_an_error_such_as_no_memory(whole, tmp_path, monkeypatch, caplog, place, error):
    trainer = in_order(supervised, tmp_path, Samples(), eval_strategy="steps", eval_steps=3)
    calls, compute_loss = [], trainer.compute_loss

    def out_of_memory(*args, **options):
        calls.append(1)
        if place == "evaluation" or len(calls) == 4:
            raise error
        return compute_loss(*args, **options)

    monkeypatch.setattr(trainer, "compute_loss" if place == "step" else "evaluate", out_of_memory)
    with pytest.raises(type(error)) as raised:
        trainer.train()
    said = caplog.messages[-1] if isinstance(error, KeyError) else str(raised.value)
    assert re.search(r"(20\.00 GiB\.|'names'\.?) The state after step 3 is saved in .*checkpoint-3", said)
    folders = [Path(folder) / "checkpoint-3" for folder in (tmp_path, whole.args.output_dir)]
    assert same(*(load_file(folder / "model.safetensors") for folder in folders))
    assert torch.equal(*(torch.load(folder / "rng_state.pth", weights_only=False)["cpu"] for folder in folders))


# Signals


class SignalAt(TrainerCallback):
    """Sends signals to its own process in the middle of a step, and counts `on_train_end`."""

    ends = 0

    def __init__(self, step: int, *numbers: int):
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        for number in self.numbers if state.global_step == self.step - 1 else ():
            os.kill(os.getpid(), number)

    def on_train_end(self, args, state, control, **kwargs):
        self.ends += 1


OPTIONS = {"max_steps": 4, "logging_steps": 3, "loss_kwargs": loss_options(mask="random")}
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def distilled(tmp_path_factory):
    """The uninterrupted run."""
    trainer = distilling(tmp_path_factory.mktemp("whole"), **OPTIONS)
    trainer.train()
    return trainer


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_resumed_after_a_signal_matches_the_uninterrupted_one(distilled, tmp_path, number, status):
    callback, before = SignalAt(1, number), signal.getsignal(number)
    stopped = distilling(tmp_path / "run", **OPTIONS, callbacks=[callback])
    message = "stopped by SIG.* after step 1; .* saved in .*checkpoint-1"
    with pytest.raises(TrainingInterrupted, match=message) as raised:
        stopped.train()
    assert raised.value.exit_status == status and signal.getsignal(number) == before
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-1"] and callback.ends == 1
    assert find_fault(tmp_path / "run" / "checkpoint-1") is None
    resumed = distilling(tmp_path / "run", segmenter(5), **OPTIONS)
    resumed.train(resume_from_checkpoint="last")
    assert same(weights(resumed.model), weights(distilled.model))
    for term in ("loss", "loss_task", "loss_feature", "grad_norm"):  # the line at step 3 spans the stop
        assert logged(resumed, term) == logged(distilled, term)


def test_a_signal_skips_everything_done_at_the_end_and_removes_no_checkpoint(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {"save_total_limit": 1, "load_best_model_at_end": True, "max_steps": 4}
    twice = SignalAt(3, signal.SIGTERM, signal.SIGTERM)
    trainer = with_scores(supervised(tmp_path, **options, callbacks=[twice]), 0.9, 0.5, 0.1)
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]
    assert not logged(trainer, "train_runtime")


def test_a_signal_before_an_evaluation_saves_a_checkpoint_before_it(tmp_path):
    trainer = supervised(tmp_path, eval_strategy="steps", eval_steps=1, callbacks=[SignalAt(1, signal.SIGTERM)])
    seen = []
    trainer.evaluate = lambda **_: seen.append(find_fault(tmp_path / "checkpoint-1")) or {"eval_mean_iou": 0.5}
    with pytest.raises(TrainingInterrupted):
        trainer.train()
    assert seen == [None]


def test_a_signal_during_an_evaluation_saves_at_once_and_the_evaluation_finishes(distilled, tmp_path):
    trainer, seen = distilling(tmp_path / "run", **OPTIONS), []

    def signal_once(*_):
        if not trainer.student.training:
            if not seen:
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(find_fault(tmp_path / "run" / "checkpoint-2") is None)

    trainer.student.head.register_forward_pre_hook(signal_once)
    with pytest.raises(TrainingInterrupted, match="after step 2"):
        trainer.train()
    assert seen == [False, True, True]  # of three images
    resumed = distilling(tmp_path / "run", **OPTIONS)
    resumed.train("last")
    assert logged(resumed, "eval_mean_iou") == logged(distilled, "eval_mean_iou")
    assert same(weights(resumed.model), weights(distilled.model))


def test_a_second_ctrl_c_stops_at_once_without_saving(tmp_path):
    # needed if the tests run as a background job, which a shell starts with Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            supervised(tmp_path, callbacks=[SignalAt(1, signal.SIGINT, signal.SIGINT)]).train()
        assert not isinstance(raised.value, TrainingInterrupted) and not list(tmp_path.iterdir())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_training_works_in_another_thread_where_no_signals_are_handled(tmp_path):
    trainer = supervised(tmp_path, max_steps=1)
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.state.global_step == 1


def test_a_ctrl_c_forwarded_by_torchrun_does_not_count_as_a_second_one(tmp_path, monkeypatch):
    interruption = Interruption(supervised(tmp_path).args, save=lambda: None)
    monkeypatch.setattr(type(interruption._args), "world_size", 2)
    with interruption.listening():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        interruption._received_at -= 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_command_exits_with_the_signals_status_and_says_how_to_continue(monkeypatch, capsys):
    def interrupted(*_):
        raise TrainingInterrupted(signal.SIGTERM, 7, "runs/x/checkpoint-7")

    monkeypatch.setattr("afdcd_hf.training.runs.train", interrupted)
    assert main(["train", "--config", "quickstart"]) == 143
    said = "afdcd train: stopped by SIGTERM after step 7; everything is saved in runs/x/checkpoint-7; --resume_from_ch"
    assert said in capsys.readouterr().err
