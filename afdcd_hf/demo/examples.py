"""Pictures to try a page with."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..data.scenes import generate_scene
from .uploads import read_upload

_SEEDS, _SIZE = (7, 21, 35), (256, 512)


def example_pictures(given: Sequence[str | Path]) -> list[Path]:
    """The given pictures, looked at once; three generated street scenes where there are none.

    Raises:
        FileNotFoundError: If one does not exist.
        ValueError: If one is no picture.
    """
    paths = [Path(path).expanduser().resolve() for path in given]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no example picture {path}.")
        read_upload(path)
    return paths or draw_scenes(Path(tempfile.mkdtemp(prefix="afdcd-demo-")))


def draw_scenes(folder: Path) -> list[Path]:
    """Write three generated street scenes of 512 × 256 pixels to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"generated-street-{number}.png" for number in range(1, len(_SEEDS) + 1)]
    for path, seed in zip(paths, _SEEDS, strict=True):
        Image.fromarray(generate_scene(seed, _SIZE)[0]).save(path)
    return paths
