"""The check of a GPU machine: a part that fails or takes too long is reported, and the others go on."""

from __future__ import annotations

import sys
import time

import gpu_check
import pytest
import torch

from afdcd_hf.ops.contrast_native import native_unavailable

NO_KERNEL = native_unavailable(torch.zeros(1), torch.zeros(1))
FACTS = {"date": "2026-11-29", "commit": "abc"}


@pytest.fixture
def check():
    return gpu_check.Check(torch.device("cpu"), rehearse=True)


def test_a_part_that_fails_is_a_line_of_the_report(check):
    check.run("broken", lambda _: torch.ones(2) @ torch.ones(3))
    check.run("whole", lambda _: {"speed": 3})
    page = gpu_check.page({**FACTS, "parts": check.parts})
    assert "1 of 2 parts passed." in page and "| speed | 3 |" in page
    assert "**Failed.** RuntimeError: " in page and "Traceback (most recent call last)" in page


def test_a_part_out_of_time_is_stopped(check, monkeypatch):
    monkeypatch.setattr(gpu_check, "SECONDS", 0)
    check.run("slow", lambda _: time.sleep(60))
    assert check.parts["slow"]["seconds"] < 20 and "no time left" in check.parts["slow"]["error"]


def test_a_command_that_fails_says_what_it_printed(check):
    assert check.command("-c", "print('fine')") == "fine\n"
    with pytest.raises(RuntimeError, match="ended with 3: .*told"):
        check.command("-c", "import sys; print('told', file=sys.stderr); sys.exit(3)")


@pytest.mark.skipif(NO_KERNEL is not None, reason=f"{NO_KERNEL}")
def test_the_kernels_are_held_against_the_reference(check, monkeypatch):
    assert len(gpu_check.kernels(check)) == 12
    right = gpu_check.omni_contrast
    wrong = lambda *maps, **options: right(*maps, **options) * (1 if options["backend"] == "reference" else 2)  # noqa: E731
    monkeypatch.setattr(gpu_check, "omni_contrast", wrong)
    with pytest.raises(AssertionError, match="differs from the reference by"):
        gpu_check.kernels(check)


def test_without_a_gpu_it_names_the_rehearsal(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "--rehearse runs the same on the CPU" in capsys.readouterr().err
