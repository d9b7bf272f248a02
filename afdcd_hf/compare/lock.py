"""One comparison a folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = ".lock"


@contextmanager
def held_alone(folder: Path) -> Iterator[int]:
    """Holds a folder as long as this process, or one that inherits the file descriptor given, is alive.

    A training that was left behind by a killed comparison holds it, too: two must never write to the same run.

    Yields:
        The file descriptor, for the trainings to inherit.

    Raises:
        FileExistsError: Somebody else holds it.
    """
    import fcntl

    with (folder / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FileExistsError(
                f"A comparison, or a training that one has left behind, is still at work in {folder}. Wait for it, "
                "stop it, or give another --output."
            ) from None
        yield file.fileno()
