"""Leaving the other processes at the end: groups are gone, and gloo's threads with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from afdcd_hf.cli.process_group import leave_process_group

LEAVE_TWO_GROUPS = """
from pathlib import Path
import torch
from torch import distributed
from afdcd_hf.cli.process_group import leave_process_group

def threads_of_gloo():
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())

class Holder:  # as a trainer: it refers to itself, so that only the garbage collector frees it
    def __init__(self):
        self.group, self.myself = distributed.new_group(backend="gloo"), self

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
holder = Holder()
distributed.all_reduce(torch.ones(8), group=holder.group)
before = threads_of_gloo()
del holder
leave_process_group()
print(before > 0, distributed.is_initialized(), threads_of_gloo())
leave_process_group()  # a second time: nothing to do
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads from /proc")
def test_no_group_and_no_thread_of_one_stays_behind():
    done = subprocess.run([sys.executable, "-c", LEAVE_TWO_GROUPS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "False", "0"]


def test_a_process_without_others_has_nothing_to_leave(monkeypatch):
    leave_process_group()
    monkeypatch.delitem(sys.modules, "torch.distributed")
    leave_process_group()  # `afdcd recipes` imports no torch
    assert "torch.distributed" not in sys.modules
