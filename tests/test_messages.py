"""Of an error in a data worker only its message is left."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader

from afdcd_hf import cli
from afdcd_hf.messages import plain_message

TRACEBACK = (
    "Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    '  File "a.py", line 1, in f\nOSError: truncated\n\nThe above exception was the direct cause of the following '
    'exception:\n\n  File "b.py", line 2, in g\nsome.module.OSError: b.png: damaged\n'
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(TRACEBACK), "b.png: damaged."),
        (ValueError("plain"), "plain."),
        (ValueError("two\n lines!"), "two lines!"),
        (RuntimeError(), "RuntimeError."),
    ],
)
def test_a_message_is_found_in_a_workers_traceback_whatever_came_before_it(error, message):
    assert plain_message(error) == message


def test_a_command_prints_the_message_alone():
    class Damaged(list):
        def __getitem__(self, index):
            raise ValueError("label.png: its checksum is wrong")

    with pytest.raises(ValueError) as raised:
        next(iter(DataLoader(Damaged([0]), num_workers=1)))
    assert "Traceback" in str(raised.value) and cli._in_words(raised.value) == "label.png: its checksum is wrong."
