"""One training in a process of its own: its memory is its own, and what it prints goes to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.2
_TAIL_BYTES = 4000
# Time that a stopped training has for finishing its step and saving before it is killed.
_GRACE_SECONDS = 120.0


class ComparisonStopped(KeyboardInterrupt):
    """A signal stopped the comparison; the training that ran has saved a checkpoint, if it could.

    Attributes:
        exit_status: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def afdcd_command(words: Sequence[str], processes: int = 1) -> list[str]:
    """`afdcd WORDS` in this Python; in several processes through torchrun."""
    module = ["-m", "afdcd_hf.cli", *words]
    if processes == 1:
        return [sys.executable, *module]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *module]


def run_logged(
    command: Sequence[str], log: Path, watch: Callable[[str], None] = lambda line: None, keep_open: Sequence[int] = ()
) -> int:
    """Runs a command, with all it prints in a file.

    Args:
        command: Program and arguments.
        log: File that what it prints is added to.
        keep_open: File descriptors that the command inherits.
        watch: Called some times a second with the last line printed so far.

    Returns:
        The exit status.

    Raises:
        ComparisonStopped: SIGINT or SIGTERM came; the command was told to stop, and has ended.
    """
    with log.open("ab") as output, _terminations_raise():
        # A session of its own: Ctrl-C would reach it directly too, and a second signal ends a training at once.
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
        try:
            while child.poll() is None:
                time.sleep(_POLL_SECONDS)
                watch(last_line(log))
            return child.returncode
        except KeyboardInterrupt as stop:
            status = getattr(stop, "exit_status", 130)
            raise ComparisonStopped("stopped; finished trainings are kept", status) from None
        finally:
            _end(child)


def last_line(log: Path) -> str:
    """The last line with anything on it; progress bars rewrite theirs after a carriage return."""
    return next(reversed(_tail(log)), "")


def last_words(log: Path, lines: int = 5) -> str:
    """The last lines of a log, to say what went wrong."""
    return "\n".join(_tail(log)[-lines:])


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]


def _end(child: subprocess.Popen) -> None:
    """Tell a training that still runs to save and stop, and its whole group to end where it does not."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextmanager
def _terminations_raise() -> Iterator[None]:
    """SIGTERM raises in the main thread, as SIGINT does."""

    def stop(number: int, frame) -> None:
        raise ComparisonStopped("stopped", 128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
