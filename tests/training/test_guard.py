"""A training that breaks stops at once, says where and why, and can be resumed as if nothing had happened."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import distilling, logged, same, samples, segmenter, supervised, weights
from torch.utils.data import Dataset

from afdcd_hf.data.samples import collate_samples
from afdcd_hf.training.guard import NonFiniteGradientError, NonFiniteLossError

RUN = {"max_steps": 4, "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 3}


class Samples(Dataset):
    """Eight samples of which one cannot be used from an epoch on: its picture is NaN, or reading it raises.

    By default all are in order. `asked` are the indices that were read: each once an epoch, without workers.
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
    """A trainer that takes its samples from first to last in every epoch: two batches of four."""
    return trainer_of(folder, train_dataset=dataset, train_sampling_strategy="sequential", **{**RUN, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    trainer = in_order(supervised, tmp_path_factory.mktemp("whole"), Samples())
    trainer.train()
    return trainer


def test_a_batch_has_the_names_of_its_images_where_all_have_one():
    rows = [samples()[index] for index in (2, 3)]
    assert collate_samples(rows)["names"] == ["bands_2", "bands_3"]
    del rows[1]["name"]
    assert collate_samples(rows).keys() == {"pixel_values", "labels"}


@pytest.mark.parametrize("make", [supervised, distilling])
def test_a_loss_that_is_nan_stops_the_run_before_it_is_used_and_names_what_to_resume_from(tmp_path, make):
    broken = in_order(make, tmp_path, Samples("bands_5", epoch=1), save_steps=2)  # in the second batch: step 4
    with pytest.raises(NonFiniteLossError) as caught:
        broken.train()
    message = str(caught.value)
    assert "\n" not in message and message.startswith("step 4: the loss is not finite (task nan")
    assert "images bands_4, bands_5, bands_6, bands_7." in message and "learning rate 0.0" in message
    assert "To try: a lower learning_rate" in message and message.endswith(f"resume from {tmp_path / 'checkpoint-2'}.")
    assert ("kd nan" in message and "reduction='mean'" in message) == (make is distilling)
    assert broken.state.global_step == 3
    assert all(parameter.isfinite().all() for parameter in broken.model.parameters())
    again = in_order(make, tmp_path, Samples("bands_1", epoch=0))
    with pytest.raises(NonFiniteLossError, match="step 3: .* No step had been finished since the start"):
        again.train("last")


def test_under_accumulation_the_batch_concerned_is_named(tmp_path):
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = in_order(supervised, tmp_path, Samples("bands_5", epoch=0), **options)
    with pytest.raises(NonFiniteLossError, match="step 2: .*images bands_4, bands_5\\..*No checkpoint had"):
        trainer.train()


def test_gradients_that_are_not_finite_stop_the_run_before_the_optimizer_uses_them(tmp_path):
    student, logits = segmenter(), []

    def explode(module, args, output):
        logits.append(output)
        if len(logits) == 3:
            output.register_hook(lambda gradient: gradient * math.inf)  # the loss stays as it is

    student.head.classifier.register_forward_hook(explode)
    trainer = in_order(supervised, tmp_path, Samples(), model=student)
    with pytest.raises(NonFiniteGradientError, match=r"step 3: the gradients are not finite \(task \d.*norm (nan|inf)"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert all(torch.isfinite(tensor).all() for tensor in weights(student).values())


def test_infinite_gradients_are_left_to_a_gradient_scaler(tmp_path):
    trainer = supervised(tmp_path)
    trainer.create_optimizer_and_scheduler(2)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    guard = trainer.guard
    guard.norm = torch.tensor(math.inf)
    guard.watch({"task": torch.tensor(1.0)}, None)
    guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)
    guard.watch({"task": torch.tensor(math.inf)}, None)
    with pytest.raises(NonFiniteLossError):
        guard.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control)


def test_without_the_check_the_run_goes_on(tmp_path):
    trainer = in_order(supervised, tmp_path, Samples("bands_5", epoch=0), check_finite=False, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.isfinite(tensor).all() for tensor in weights(trainer.student).values())


@pytest.mark.parametrize("error", [OSError("b.png: the image (/d/b.png) cannot be read"), ValueError("b.png: size")])
def test_an_unreadable_image_stops_the_run_and_once_replaced_it_resumes_exactly(whole, tmp_path, error):
    broken = in_order(supervised, tmp_path, Samples("bands_5", epoch=1, error=error), save_steps=100)
    with pytest.raises(type(error)) as caught:
        broken.train()
    (checkpoint,) = tmp_path.glob("checkpoint-*")  # one or two steps are done: batches are read ahead
    assert str(caught.value).startswith(f"{error}. The state after step") and str(checkpoint) in str(caught.value)
    step = int(checkpoint.name.removeprefix("checkpoint-"))
    resumed = in_order(supervised, tmp_path, Samples(first_epoch=step // 2))
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(resumed.model), weights(whole.model))
    assert logged(resumed, "loss") == logged(whole, "loss")


def test_of_an_error_in_a_data_worker_only_the_message_is_left(tmp_path):
    text = "b.png: the image (/d/b.png) cannot be read: 12 bytes are missing"
    torn = Samples("bands_7", epoch=0, error=OSError(text))
    trainer = in_order(supervised, tmp_path, torn, per_device_train_batch_size=2, dataloader_num_workers=1)
    with pytest.raises(OSError) as caught:
        trainer.train()
    assert str(caught.value).startswith(f"{text}. The state")
    assert "Traceback" not in str(caught.value) and (tmp_path / "checkpoint-2").is_dir()


def test_a_disk_that_is_full_does_not_hide_why_the_run_stopped(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    torn = Samples("bands_5", epoch=1, error=OSError("b.png is damaged"))
    trainer = in_order(supervised, tmp_path, torn, save_steps=100)
    monkeypatch.setattr(trainer, "_save_checkpoint", full)
    with pytest.raises(OSError, match="^b.png is damaged. The state .*could not be saved: .*No space left"):
        trainer.train()


def test_where_one_process_of_several_fails_alone_the_last_checkpoint_is_named(tmp_path, monkeypatch):
    torn = Samples("bands_5", epoch=1, error=OSError("b.png is damaged"))
    trainer = in_order(supervised, tmp_path, torn, save_steps=2)
    tell = trainer.guard._save_last_step

    def among_several(error):
        monkeypatch.setattr(type(trainer.args), "world_size", 2)
        return tell(error)

    monkeypatch.setattr(trainer.guard, "_save_last_step", among_several)
    with pytest.raises(OSError, match=r"^b.png is damaged\. After fixing the cause, resume from .*checkpoint-2\.$"):
        trainer.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize("place", ["step", "evaluation"])
def test_where_memory_runs_out_the_finished_step_is_saved(whole, tmp_path, monkeypatch, place):
    trainer = in_order(supervised, tmp_path, Samples(), eval_strategy="steps", eval_steps=3)
    calls, compute_loss = [], trainer.compute_loss

    def out_of_memory(*args, **options):
        calls.append(1)
        if place == "evaluation" or len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return compute_loss(*args, **options)

    monkeypatch.setattr(trainer, "compute_loss" if place == "step" else "evaluate", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match=r"20.00 GiB\. The state after step 3 is saved in .*checkpoint-3"):
        trainer.train()
    folders = [Path(folder) / "checkpoint-3" for folder in (tmp_path, whole.args.output_dir)]
    assert same(*(load_file(folder / "model.safetensors") for folder in folders))
    states = [torch.load(folder / "rng_state.pth", weights_only=False) for folder in folders]
    assert torch.equal(states[0]["cpu"], states[1]["cpu"])
