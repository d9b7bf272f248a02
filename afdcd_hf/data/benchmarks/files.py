"""Which image file belongs to which label file: what the layouts of several benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .row import Benchmark, SplitFiles

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png",)


def existing_folders(
    benchmark: Benchmark, root: Path, split: str, folders_of: Callable[[str], tuple[str, ...]]
) -> tuple[Path, ...]:
    """The split's folders under `root`, or an error that says which are missing and which splits are complete."""

    def missing(name: str) -> list[str]:
        return [folder for folder in folders_of(name) if not (root / folder).is_dir()]

    if missing(split):
        complete = [name for name in benchmark.split_sizes if not missing(name)]
        raise FileNotFoundError(
            f"{root} has no folder {' and no '.join(missing(split))}, needed for {benchmark.name}'s split {split}. "
            f"Expected: {benchmark.layout}. Splits found there: {', '.join(complete) or 'none'}."
        )
    return tuple(root / folder for folder in folders_of(split))


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by stem, in order; hidden ones (such as macOS's `._x.png`) are no data."""
    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    paths = sorted(path for path in visible if path.suffix.lower() in suffixes)
    if not paths:
        raise FileNotFoundError(f"{folder} holds no file ending in {', '.join(suffixes)} (in either case).")
    by_stem: dict[str, Path] = {}
    for path in paths:
        if path.stem in by_stem:
            raise ValueError(f"{folder} has both {by_stem[path.stem].name} and {path.name}; remove one of them.")
        by_stem[path.stem] = path
    return by_stem


def pairs_by_stem(
    images: dict[str, Path],
    labels: dict[str, Path],
    image_dir: Path,
    label_dir: Path,
    label_map: Mapping[int, int],
) -> SplitFiles:
    problems = [
        f"{len(lonely)} in {folder} without {counterpart} ({_first(lonely)})"
        for folder, counterpart, lonely in (
            (image_dir, "label", [images[stem].name for stem in images if stem not in labels]),
            (label_dir, "image", [labels[stem].name for stem in labels if stem not in images]),
        )
        if lonely
    ]
    if problems:
        raise FileNotFoundError(f"Images and labels must share their file stems: {'; '.join(problems)}.")
    return SplitFiles(tuple(images.values()), tuple(labels[stem] for stem in images), label_map)


def _first(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
