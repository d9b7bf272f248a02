"""Predictions of a whole dataset as class-id PNGs, named and numbered as a benchmark's test server wants them."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import numpy as np

from ..atomic_io import check_can_write, written_whole
from ..data.benchmarks import Benchmark
from .images import png_name, save_png


class PredictionWriter:
    """Writes a PNG of class ids for each image; fits `evaluate_segmenter(on_prediction=...)`.

    Files have 8 bits, or 16 where an id does not fit. Several processes can write to one folder.

    Args:
        folder: Where the PNGs go, in the sub-folders of the images' names.
        benchmark: Whose test server's file names and class ids to write; without one, or where it has no server, the
            images' names and train ids.
        overwrite: Write into a folder that holds files and replace those of the same name. Others stay, and `pack`
            would take them along.

    Attributes:
        archive: The zip for the test server, `<folder>.zip`; None where there is none.
    """

    def __init__(self, folder: str | Path, benchmark: Benchmark | None = None, *, overwrite: bool = False) -> None:
        self.folder = Path(folder).expanduser()
        self.overwrite = overwrite
        self._written: set[PurePosixPath] = set()
        self._wanted = benchmark.submission if benchmark else None
        self.archive = self.folder.with_name(f"{self.folder.name}.zip") if self._wanted else None

    def prepare(self) -> None:
        """Make the folder, before anything is computed, in one process, for which the others wait.

        Raises:
            OSError: If the folder holds files, is none or cannot be written, or the archive exists.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file; predictions need a folder.")
        if not self.overwrite and self.folder.is_dir() and any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder} is not empty: give another folder for predictions, or --overwrite.")
        if not self.overwrite and self.archive and self.archive.exists():
            raise FileExistsError(f"{self.archive} exists: give another folder for predictions, or --overwrite.")
        check_can_write(self.folder / "a.png")

    def __call__(self, name: str, label_map: np.ndarray) -> None:
        """Write the prediction of the image of that name: `(H, W)` train ids, any integer dtype.

        Raises:
            ValueError: If the file would lie outside the folder, two images have the same file, or a value does not
                fit 16 bits.
            FileExistsError: If the file exists, unless `overwrite` is set.
        """
        file = PurePosixPath(self._wanted.file_name(name) if self._wanted else png_name(name))
        if file.is_absolute() or ".." in file.parts:
            raise ValueError(f"The prediction for {name!r} would lie outside {self.folder}: {file}.")
        if file in self._written:
            raise ValueError(f"The image {name!r} and another one have the same file for their predictions: {file}.")
        self._written.add(file)
        path = self.folder / file
        if path.exists() and not self.overwrite:
            raise FileExistsError(f"{path} exists: give another folder for predictions, or --overwrite.")
        label_ids = self._wanted.label_ids if self._wanted else {}
        lookup = np.arange(max([int(label_map.max()), *label_ids]) + 1)
        lookup[list(label_ids)] = list(label_ids.values())
        values = lookup[label_map]
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"Class ids from {values.min()} to {values.max()} do not fit a PNG: 0 to 65535 do.")
        save_png(values.astype(np.uint8 if values.max() < 256 else np.uint16), path)

    def pack(self) -> Path | None:
        """Make the archive, if the benchmark has a test server: the folder's PNGs, in order. Returns its path."""
        if self.archive is None:
            return None
        with written_whole(self.archive) as part, zipfile.ZipFile(part, "w") as archive:  # PNGs are compressed already
            for file in sorted(self.folder.rglob("*.png")):
                archive.write(file, file.relative_to(self.folder))
        return self.archive
