"""A lock that admits one writer at a time to an output folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
_HELD: dict[Path, int] = {}  # folder that this process holds -> descriptor of its open lock file


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[int | None]:
    """Lock a folder, created if missing, while the block runs; the same process may lock it again inside the block.

    Forked children (data workers) do not hold the lock. A command started with the yielded file descriptor in
    `pass_fds` does, even if it outlives this process. On systems without such locks, nothing is locked and None is
    yielded. A FileExistsError if another process holds the lock.
    """
    folder = Path(folder).resolve()
    if folder in _HELD:
        yield _HELD[folder]
        return
    was_there = folder.exists()
    descriptor = _locked_file(folder)
    if descriptor is None:
        yield None
        return
    _HELD[folder] = descriptor
    try:
        yield descriptor
    finally:
        _HELD.pop(folder, None)
        with suppress(OSError):  # the folder may be gone, or hold new files
            (folder / LOCK_NAME).unlink()
            if not was_there:
                folder.rmdir()
        os.close(descriptor)


def _locked_file(folder: Path) -> int | None:
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
            raise FileExistsError(f"{other}: wait for it, stop it, or give another --output_dir.") from None
        except OSError as error:
            os.close(descriptor)
            logger.warning("%s cannot be locked against a second process: %s.", folder, error)
            return None
        os.close(descriptor)  # the previous holder has just removed this file: lock the new one


def _let_go() -> None:
    """Release the locks in a forked child, which would otherwise hold them after its parent is gone."""
    for descriptor in _HELD.values():
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
