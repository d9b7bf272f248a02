"""Atomic writes: a file or folder appears complete or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which becomes `path` at the end, or is removed if anything goes wrong.

    Even a killed process leaves no partial file at `path`. Missing folders are created. If writing fails, for example
    on a full disk, the OSError names `path`.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        _raise_named(error, path, part)
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `folder` (missing or empty so far) at the end, or is removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        yield part
        part.chmod(0o755)  # mkdtemp makes private folders
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_existing(paths: Iterable[Path], overwrite: bool, place: str) -> None:
    """Raise FileExistsError for the first existing path, unless `overwrite`; `place` is what to change: "--output"."""
    existing = [] if overwrite else [path for path in paths if path.exists()]
    if existing:
        raise FileExistsError(f"{existing[0]} exists; give another {place}, or --overwrite.")


def check_can_write(path: Path) -> None:
    """Raise an OSError that names `path` if no file can be written there; missing folders are created."""
    if path.parent.is_file():
        raise FileExistsError(f"{path.parent} is a file; give a folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent) as probe:
            probe.write(b"probe")
    except OSError as error:
        _raise_named(error, path, error.filename)
        raise


def _raise_named(error: OSError, path: Path, part: Path | str | None) -> None:
    """Raise the error with the requested path if it names none, or only a temporary one."""
    if error.errno is not None and error.filename in (None, str(part)):
        raise OSError(error.errno, f"{os.strerror(error.errno)}; it cannot be written", str(path)) from error
