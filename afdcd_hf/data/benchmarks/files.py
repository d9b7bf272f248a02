"""What lies in which folder: every folder is listed once, and no file is looked at one by one (COCO has 118,287)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from .row import Benchmark

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png",)


def home_of(root: Path, homes: Iterable[str], folders: Iterable[str]) -> Path:
    """The data set's own root: the first of `homes` under `root` that holds one of `folders`, else `root`."""
    folders = tuple(folders)
    return next((root / home for home in homes if first_folder(root / home, folders)), root)


def first_folder(root: Path, paths: Iterable[str]) -> Path | None:
    """The first of `paths` under `root` that is a folder, or None."""
    return next((root / path for path in paths if (root / path).is_dir()), None)


def existing_folders(
    benchmark: Benchmark, root: Path, split: str, folders_of: Callable[[str], tuple[tuple[str, ...], ...]]
) -> tuple[Path, ...]:
    """The split's folders under `root`, or an error that says which are missing and which splits are complete.

    Args:
        folders_of: Split → for each folder needed, the paths at which it may lie; the first that is there is taken.

    Raises:
        FileNotFoundError: If none of a folder's paths is there.
    """

    def found(name: str) -> list[Path | None]:
        return [first_folder(root, paths) for paths in folders_of(name)]

    folders = found(split)
    if None in folders:
        wanted = zip(folders, folders_of(split), strict=True)
        missing = " and no ".join(" or ".join(paths) for folder, paths in wanted if folder is None)
        complete = [name for name in benchmark.split_sizes if None not in found(name)]
        raise lacking(benchmark, root, split, f"folder {missing}", complete)
    return tuple(folders)


def lacking(benchmark: Benchmark, root: Path, split: str, what: str, complete: Iterable[str]) -> FileNotFoundError:
    """The error for a folder or a list that is not there.

    Args:
        what: What is missing.
        complete: The splits that are there.
    """
    return FileNotFoundError(
        f"{root} has no {what}, needed for {benchmark.name}'s split {split}. Expected: {benchmark.layout}. "
        f"Splits found there: {first(complete, 9)}."
    )


def visible_files(folder: Path, suffixes: tuple[str, ...], nested: bool = False) -> list[Path]:
    """Files ending in `suffixes` in either case, in order; hidden ones (such as macOS's `._x.png`) are no data.

    Args:
        nested: Look one level deeper: the files lie in folders in `folder`.
    """
    if nested:
        with os.scandir(folder) as entries:
            inner = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        return [path for name in inner for path in visible_files(folder / name, suffixes)]
    return [
        Path(folder, name)
        for name in sorted(os.listdir(folder))
        if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
    ]


def by_key(paths: Iterable[Path], key_of: Callable[[str], str | None], folder: Path) -> dict[str, Path]:
    """Files by what images and labels have in common.

    Args:
        key_of: File stem → key; None is no data.
        folder: Where the files lie, for the message.

    Raises:
        ValueError: If two files have one key.
    """
    keyed: dict[str, Path] = {}
    for path in paths:
        key = key_of(path.stem)
        if key is None:
            continue
        if key in keyed:
            raise ValueError(f"{folder} has both {keyed[key].name} and {path.name}; remove one of them.")
        keyed[key] = path
    return keyed


def nothing_in(folder: Path, endings: Iterable[str]) -> FileNotFoundError:
    """The error for a folder without data."""
    return FileNotFoundError(f"{folder} holds no file ending in {', '.join(endings)} (in either case).")


def first(names: Iterable[str], limit: int = 3) -> str:
    """The first few names, for a message; "none" if there is none."""
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") if names else "none"
