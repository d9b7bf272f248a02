"""One writer at a time for an output folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_HELD: dict[Path, int] = {}  # folders that this process holds, and the open lock file of each


@contextmanager
def held_alone(folder: str | Path, option: str = "--output_dir") -> Iterator[int | None]:
    """Hold a folder, made if it is missing, while the block runs; the same process may hold it once more inside.

    Forked children (data workers) do not hold it; a command started with the yielded file descriptor in `pass_fds`
    does, also when it outlives this process. Where there are no such locks, nothing is held and None is yielded. A
    folder that another process holds is a FileExistsError, with the command-line option that named it.
    """
    folder = Path(folder).resolve()
    if folder in _HELD:
        yield _HELD[folder]
        return
    was_there = folder.exists()
    descriptor = _locked_file(folder, option)
    if descriptor is None:
        yield None
        return
    _HELD[folder] = descriptor
    try:
        yield descriptor
    finally:
        _HELD.pop(folder, None)
        with suppress(OSError):  # the folder may be gone, or hold what was written
            (folder / LOCK_NAME).unlink()
            if not was_there:
                folder.rmdir()
        os.close(descriptor)


def _locked_file(folder: Path, option: str) -> int | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            other = f"Another process is still writing to {folder}"
            raise FileExistsError(f"{other}: wait for it, stop it, or give another {option}.") from None
        except OSError as error:
            os.close(descriptor)
            logger.warning("%s cannot be locked against a second process: %s.", folder, error)
            return None
        os.close(descriptor)  # whoever held it has just removed this file: take the new one


def _let_go() -> None:
    """In a forked child, which would otherwise hold the folders when its parent is gone."""
    for descriptor in _HELD.values():
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
