"""A user's image files: which there are, what is in them, and PNGs written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ..atomic_io import written_whole
from ..data.decoding import open_image
from ..models.image_modes_afdcd import as_rgb

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def find_images(inputs: Sequence[str | Path], skip: Sequence[Path] = ()) -> dict[str, Path]:
    """The images among files and folders.

    Folders are searched with their sub-folders, in the order of the paths, without hidden ones and those of `skip`. A
    file that is named itself is taken whatever its name.

    Returns:
        Name of the PNG that belongs to an image, below its folder (of a file: of its name) → the image, once each.

    Raises:
        FileNotFoundError: If an input does not exist, or a folder holds no image.
        ValueError: If there is no input, or two images would get the same PNG.
    """
    if not inputs:
        raise ValueError("There is nothing to segment: name images, or folders that hold images.")
    found: dict[str, Path] = {}
    for path in (Path(given).expanduser() for given in inputs):
        if not path.exists():
            raise FileNotFoundError(f"There is no image or folder {path}.")
        for image in _in_folder(path, skip) if path.is_dir() else [path]:
            name = png_name(image.relative_to(path) if path.is_dir() else path.name)
            first = found.setdefault(name, image)
            if first.resolve() != image.resolve():
                raise ValueError(
                    f"{first} and {image} would both be written to {name}: rename one of them, or segment them into "
                    "different folders."
                )
    return found


def _in_folder(folder: Path, skip: Sequence[Path]) -> list[Path]:
    skipped = {path.resolve() for path in skip}
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and skipped.isdisjoint(path.resolve().parents)
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no image: no file below it ends in {', '.join(_SUFFIXES)} (in either case)."
        )
    return found


def png_name(name: str | PurePath) -> str:
    """The name of the PNG that belongs to an image: `a/b.jpg` → `a/b.png`, but `frame.0001` → `frame.0001.png`."""
    name = PurePath(name)
    known = name.suffix.lower() in _SUFFIXES  # another suffix may be all that tells two names apart
    return (name.with_suffix(".png") if known else name.with_name(f"{name.name}.png")).as_posix()


def open_rgb(path: Path) -> Image.Image:
    """Read an image as viewers show it, upright, as RGB with 8 bits; an OSError names a file that cannot be read so."""
    try:
        return as_rgb(open_image(path, str(path)))
    except ValueError as error:
        raise OSError(f"{path}: {error}") from error


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write `(H, W)` uint8 or uint16, or `(H, W, 3)` uint8 RGB, as a PNG, whole or not at all; makes its folder."""
    with written_whole(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")
