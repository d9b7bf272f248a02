"""Image files in, PNGs out: a user's images, and predictions named and numbered as a test server expects."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ..atomic_io import atomic_write, check_can_write, refuse_existing
from ..data.benchmarks import Benchmark
from ..data.benchmarks.finding import IMAGE_SUFFIXES
from ..data.decoding import open_image
from ..models.image_modes_afdcd import as_rgb


def find_images(inputs: Sequence[str | Path], skip: Sequence[Path] = ()) -> dict[str, Path]:
    """Find the images in files and folders, once each, by the name of the PNG that belongs to each.

    Folders are searched recursively, in the order of paths, except for hidden files and folders, and those of `skip`. A
    file that is given directly is used whatever its name.
    """
    found: dict[str, Path] = {}
    skipped = {path.resolve() for path in skip}
    for path in (Path(given).expanduser() for given in inputs):
        if not path.exists():
            raise FileNotFoundError(f"There is no image or folder {path}.")
        images = {path.name: path}
        if path.is_dir():
            below = [one for one in sorted(path.rglob("*")) if one.suffix.lower() in IMAGE_SUFFIXES and one.is_file()]
            shown = {
                one.relative_to(path).as_posix(): one for one in below if skipped.isdisjoint(one.resolve().parents)
            }
            images = {name: one for name, one in shown.items() if "/." not in f"/{name}"}
        if not images:
            raise FileNotFoundError(f"{path} holds no image: no file below it ends in {', '.join(IMAGE_SUFFIXES)}.")
        for name, image in images.items():
            first = found.setdefault(png_name(name), image)
            if first.resolve() != image.resolve():
                raise ValueError(f"{first} and {image} would both be written to {png_name(name)}: rename one of them.")
    if not found:
        raise ValueError("There is nothing to segment: give images, or folders that hold images.")
    return found


def png_name(name: str) -> str:
    """Name the PNG that belongs to an image: `a/b.jpg` → `a/b.png`, but `frame.0001` → `frame.0001.png`."""
    known = PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES  # another suffix may be all that tells two names apart
    return f"{name.rpartition('.')[0] if known else name}.png"


def open_rgb(path: Path) -> Image.Image:
    """Read an image as viewers show it, upright, as 8-bit RGB; an OSError names a file that cannot be read."""
    try:
        return as_rgb(open_image(path, str(path)))
    except ValueError as error:
        raise OSError(f"{path}: {error}") from error


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write `(H, W)` uint8 or uint16, or `(H, W, 3)` uint8 RGB, as a PNG, atomically; creates its folder."""
    with atomic_write(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")


class PredictionWriter:
    """A writer of one PNG of class ids per image, for `evaluate_segmenter(on_prediction=...)`.

    Files have 8 bits, or 16 if an id does not fit, and the names and class ids that the benchmark's test server
    expects. Without a server, they have the images' names, including subfolders, and train ids. Several processes can
    write to one folder. With `overwrite`, it may hold files, which are kept unless they have the same name.
    """

    def __init__(self, folder: str | Path, benchmark: Benchmark | None = None, *, overwrite: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self.overwrite = overwrite
        self.written: set[PurePosixPath] = set()  # by this process, below the folder
        self._wanted = benchmark.submission if benchmark else None
        self.archive = self.folder.with_name(f"{self.folder.name}.zip") if self._wanted else None  # for the server

    def prepare(self) -> None:
        """Check first, in one process: OSError if the folder holds files or cannot be written."""
        existing = [*self.folder.glob("*"), *([self.archive] if self.archive else [])]
        refuse_existing(existing, self.overwrite, "folder for predictions")
        check_can_write(self.folder / "a.png")

    def __call__(self, name: str, label_map: np.ndarray) -> None:
        """Write the prediction for the image of that name: `(H, W)` train ids, any integer dtype, 0..65535."""
        file = PurePosixPath(self._wanted.file_name(name) if self._wanted else png_name(name))
        path = self.folder / file
        if file.is_absolute() or ".." in file.parts:
            raise ValueError(f"The prediction for {name!r} would lie outside {self.folder}: {file}.")
        if file in self.written:
            raise ValueError(f"The predictions for {name!r} and another image would go to the same file: {file}.")
        refuse_existing([path], self.overwrite, "folder for predictions")
        self.written.add(file)
        label_ids = self._wanted.label_ids if self._wanted else {}
        lookup = np.arange(max([int(label_map.max()), *label_ids]) + 1)
        lookup[list(label_ids)] = list(label_ids.values())
        values = lookup[label_map]
        save_png(values.astype(np.uint8 if values.max() < 256 else np.uint16), path)

    def pack(self, written: Iterable[PurePosixPath]) -> Path | None:
        """Zip what all processes have `written` and return the archive's path, if the benchmark has a test server."""
        if self.archive is None:
            return None
        with atomic_write(self.archive) as part, zipfile.ZipFile(part, "w") as archive:  # PNGs are compressed already
            for file in sorted(written):
                archive.write(self.folder / file, file)
        return self.archive
