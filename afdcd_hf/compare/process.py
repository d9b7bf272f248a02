"""One training in a process of its own: its memory is its own, and what it prints goes to a file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

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


def run_logged(command: Sequence[str], log: Path, keep_open: Sequence[int] = ()) -> int:
    """Run a command, append what it prints to a file, and return its exit status.

    Args:
        command: Program and arguments.
        log: The file.
        keep_open: File descriptors that the command inherits.

    Raises:
        ComparisonStopped: SIGINT or SIGTERM came; the command was told to stop, and has ended.
    """
    with log.open("ab") as output, _terminations_raise():
        # A session of its own: Ctrl-C would reach it directly too, and a second signal ends a training at once.
        child = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=keep_open
        )
        try:
            return child.wait()
        except KeyboardInterrupt as stop:
            status = getattr(stop, "exit_status", 130)
            raise ComparisonStopped("stopped; finished trainings are kept", status) from None
        finally:
            _end(child)


def last_lines(log: Path, lines: int = 5) -> str:
    """The last lines of a log, to say what went wrong; progress bars rewrite theirs after a carriage return."""
    text = log.read_bytes()[-4000:].decode("utf-8", errors="replace").replace("\r", "\n")
    return "\n".join([line.strip() for line in text.split("\n") if line.strip()][-lines:])


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

    def stop(number: int, frame: FrameType | None) -> None:
        raise ComparisonStopped("stopped", 128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
