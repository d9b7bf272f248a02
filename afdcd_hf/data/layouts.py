"""How the benchmarks' folders are laid out: which image file belongs to which label file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .benchmarks import Benchmark

logger = logging.getLogger(__name__)

Pairs = list[tuple[Path, Path]]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LABEL_SUFFIXES = (".png",)


def file_columns(benchmark: Benchmark, split: str, data_dir: str | Path | None) -> dict[str, list[str]]:
    """The split's image and label files and their names (paths under `data_dir`), in the order of the file names.

    Raises:
        ValueError: If `data_dir` is missing, or two files share a stem.
        FileNotFoundError: If folders or files are missing, or an image or a label has no counterpart.
    """
    if data_dir is None:
        raise ValueError(f"{benchmark.name} is read from files: give data_dir, a folder with {benchmark.layout}.")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir {root} is no folder; {benchmark.name} needs one with {benchmark.layout}.")
    pairs = _LAYOUTS[benchmark.name](benchmark, root, split)
    published = benchmark.split_sizes[split]
    if len(pairs) != published:
        logger.warning("%s %s has %d images, published are %d: %s", benchmark.name, split, len(pairs), published, root)
    return {
        "image": [str(image) for image, _ in pairs],
        "label": [str(label) for _, label in pairs],
        "name": [image.relative_to(root).as_posix() for image, _ in pairs],
    }


def _camvid_pairs(benchmark: Benchmark, root: Path, split: str) -> Pairs:
    image_dir, label_dir = _existing_folders(benchmark, root, split, lambda name: (name, f"{name}annot"))
    return _pairs_by_stem(_files(image_dir, IMAGE_SUFFIXES), _files(label_dir, LABEL_SUFFIXES), image_dir, label_dir)


_LAYOUTS: dict[str, Callable[[Benchmark, Path, str], Pairs]] = {"camvid": _camvid_pairs}


def _existing_folders(
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


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
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


def _pairs_by_stem(images: dict[str, Path], labels: dict[str, Path], image_dir: Path, label_dir: Path) -> Pairs:
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
    return [(image, labels[stem]) for stem, image in images.items()]


def _first(names: Iterable[str], limit: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
