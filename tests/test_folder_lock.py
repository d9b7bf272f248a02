"""One writer at a time for an output folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from afdcd_hf.folder_lock import LOCK_NAME, held_alone

HOLD = "import sys, time; from afdcd_hf.folder_lock import held_alone\nwith held_alone(sys.argv[1]):\n"
PRINT_AND_WAIT = HOLD + "    print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", PRINT_AND_WAIT, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_that_another_process_holds_is_refused_until_that_one_is_gone(tmp_path, holder):
    with pytest.raises(FileExistsError, match=r"still writing to .*: wait for it.* give another --output\."):
        with held_alone(tmp_path, "--output"):
            pass
    holder.kill()
    holder.wait()
    with held_alone(tmp_path):
        assert (tmp_path / LOCK_NAME).is_file()
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_behind_but_what_was_written(tmp_path):
    with held_alone(tmp_path / "new" / "run"):
        pass
    assert not (tmp_path / "new" / "run").exists()
    with held_alone(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("mine")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


def test_the_process_that_holds_a_folder_may_hold_it_again(tmp_path):
    with held_alone(tmp_path) as first, held_alone(tmp_path) as second:
        assert first == second
    with held_alone(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("passed_on", [True, False])
def test_forked_children_let_go_and_started_commands_hold_on(tmp_path, passed_on):
    """The process that held the folder has died; a child of its own is still there."""
    start = "subprocess.Popen(['sleep', '2'], pass_fds=[lock])" if passed_on else "time.sleep(0.5 if os.fork() else 3)"
    code = "import os, subprocess, sys, time; from afdcd_hf.folder_lock import held_alone\n"
    code += f"with held_alone(sys.argv[1]) as lock:\n    {start}\n    os._exit(0)"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    if passed_on:
        with pytest.raises(FileExistsError), held_alone(tmp_path):
            pass
        time.sleep(2.5)
    with held_alone(tmp_path):
        pass
