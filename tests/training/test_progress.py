"""What a training shows: on a terminal one bar, in a log file plain lines; and what TensorBoard gets."""

from __future__ import annotations

import io
import logging
import re
import sys
from types import SimpleNamespace

import pytest
from tiny import distilling, pictures, supervised
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback

from afdcd_hf.cli.messages import BesideBars, Plain, tells_news
from afdcd_hf.training import progress
from afdcd_hf.training.progress import TrainingProgress, shows_bars

EVALUATING = {"eval_strategy": "steps", "eval_steps": 2}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """To be called in the test: pytest puts its own streams in place between a test's fixtures and its body."""

    def opened() -> Terminal:
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return opened


@pytest.mark.parametrize("disabled", [True, False], ids=["disable_tqdm", "log file"])
def test_without_a_terminal_every_log_line_is_one_plain_line(tmp_path, capsys, disabled):
    distilling(tmp_path, disable_tqdm=disabled, **EVALUATING).train()
    out, err = capsys.readouterr()
    number = r"[\d.e+-]+"
    terms = rf"loss {number} \(task {number}, kd {number}, feature {number}, contrast {number}\)"
    expected = [
        rf"step 1/2 \[00:0\d<00:\d\d\] {terms}, lr 0\.05, {number} images/s",
        rf"step 2/2 \[00:0\d<00:00\] {terms}, lr 0\.027, {number} images/s",
        rf"step 2/2: mIoU {number} %, pixel accuracy {number} % \({number} s\)",
        rf"2 steps in 00:0\d: {number} images/s in training steps, peak memory \d+ MiB; time: data \d+ %, teacher .*",
    ]
    lines = out.splitlines()
    assert len(lines) == 4 and all(map(re.fullmatch, expected, lines)), out
    assert "\r" not in out + err


def test_on_a_terminal_the_terms_stand_in_the_bar_and_scores_get_a_line(tmp_path, capsys, open_terminal):
    terminal = open_terminal()
    distilling(tmp_path, disable_tqdm=False, **EVALUATING).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split(":")[0] for line in lines] == ["step 2/2", "2 steps in 00"]
    last = [part for part in terminal.getvalue().split("\r") if "2/2 [" in part][-1]
    assert re.search(
        r"100%\|.*\| 2/2 \[00:0\d<00:00, loss .* \(task .*, kd .*, feature .*, contrast .*\), lr 0.027,", last
    )
    assert "{" not in terminal.getvalue()


def test_a_resumed_bar_goes_on_where_the_run_stopped(tmp_path, open_terminal):
    terminal = open_terminal()
    supervised(tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    trainer = supervised(tmp_path, max_steps=3, disable_tqdm=False)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    bars = re.findall(r"(\d)/3 \[", terminal.getvalue())
    assert bars[0] == "2" and bars[-1] == "3"


def test_other_processes_than_the_main_one_show_nothing(capsys, open_terminal):
    terminal = open_terminal()
    state = SimpleNamespace(is_world_process_zero=False, global_step=1, max_steps=2)
    for shown in (TrainingProgress(True), TrainingProgress(False)):
        shown.on_train_begin(None, state, None)
        shown.on_step_end(None, state, None)
        for logs in ({"loss": 1.0}, {"eval_mean_iou": 0.5}, {"train_runtime": 1.0}):
            shown.on_log(None, state, None, logs)
        shown.on_train_end(None, state, None)
    assert capsys.readouterr().out == "" and terminal.getvalue() == ""


def test_transformers_own_displays_are_replaced_once_and_those_asked_for_stay(tmp_path):
    printer = PrinterCallback()
    for options in ({"disable_tqdm": True}, {"disable_tqdm": False}):
        callbacks = supervised(tmp_path, callbacks=[printer], **options).callback_handler.callbacks
        assert [type(c) for c in callbacks if isinstance(c, (PrinterCallback, ProgressCallback))] == [
            PrinterCallback, TrainingProgress,
        ]  # fmt: skip


def test_bars_need_a_terminal_or_a_notebook(monkeypatch, open_terminal):
    open_terminal()
    wanted, unwanted = SimpleNamespace(disable_tqdm=False), SimpleNamespace(disable_tqdm=True)
    assert shows_bars(wanted) and not shows_bars(unwanted)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not shows_bars(wanted)
    monkeypatch.setattr(progress, "is_in_notebook", lambda: True)
    assert shows_bars(wanted) and not shows_bars(unwanted)


def test_scores_of_several_evaluation_sets_keep_their_names(tmp_path, capsys):
    supervised(tmp_path, eval_dataset={"day": pictures(1), "night": pictures(1)}).evaluate()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" mIoU")[0] for line in lines] == ["step 0/0: day", "step 0/0: night"]


def test_messages_are_written_above_the_bar_and_say_no_more_than_they_must():
    stream = Terminal()
    handler = BesideBars(stream)
    handler.setFormatter(Plain())
    bar = tqdm(total=2, file=stream, ncols=40)
    for name, level in (("afdcd_hf.training", logging.INFO), ("afdcd_hf", logging.WARNING), ("timm", logging.ERROR)):
        handler.handle(logging.LogRecord(name, level, "", 0, "message of %s", (name,), None))
    bar.close()
    lines = [line.split("\r")[-1] for line in stream.getvalue().splitlines() if "message" in line]
    assert lines == ["message of afdcd_hf.training", "warning: message of afdcd_hf", "timm error: message of timm"]


@pytest.mark.parametrize(
    ("keys", "shown"), [("bn2.bias, classifier.weight, conv_head.weight", False), ("fc.bias, layer3.5.bn1.bias", True)]
)
def test_a_backbones_missing_classifier_is_no_news_but_other_weights_are(keys, shown):
    text = f"Unexpected keys ({keys}) found while loading pretrained weights. This may be expected."
    assert tells_news(logging.LogRecord("timm", logging.WARNING, "", 0, text, (), None)) is shown
    assert tells_news(logging.LogRecord("timm", logging.WARNING, "", 0, "something else", (), None))


def test_tensorboard_gets_every_term_and_the_time_split(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = distilling(tmp_path / "run", max_steps=3, report_to="tensorboard", eval_strategy="steps", eval_steps=3)
    trainer.train()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    tags = events.Tags()["scalars"]
    terms = ["loss", "loss_task", "loss_kd", "loss_feature", "loss_contrast"]
    parts = [f"time_{part}" for part in ("data", "teacher", "student", "loss", "backward", "optimizer")]
    for name in (*terms, *parts, "learning_rate", "images_per_second", "peak_memory_mb"):
        points = events.Scalars(f"train/{name}")
        history = [(line["step"], line[name]) for line in trainer.state.log_history if name in line]
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([value for _, value in history], rel=1e-6)
    assert {"eval/mean_iou", "train/train_images_per_second", "train/train_seconds_in_steps"} <= set(tags)
