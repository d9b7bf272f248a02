"""Predictions of a whole dataset as class-id PNGs, named and numbered as a benchmark's test server wants them."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from ..atomic_io import check_can_write, written_whole
from ..data.benchmarks import Benchmark
from .images import png_name, save_png

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip knows


class PredictionWriter:
    """Writes a PNG of class ids for each image; fits `evaluate_segmenter(on_prediction=...)`.

    Files have 8 bits, or 16 where an id does not fit. Several processes can write to one folder.

    Args:
        folder: Where the PNGs go, in the sub-folders of the images' names.
        label_ids: Train id → value in the PNG; ids that are not listed stay.
        file_name: Name of an image → name of its PNG; by default the same, ending in `.png`.
        archive: The zip that will be made of the folder, if one will: `prepare` looks whether it may be written.
        overwrite: Write into a folder that holds files and replace those of the same name. Others stay, and
            `zip_predictions` would take them along.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        label_ids: Mapping[int, int] | None = None,
        file_name: Callable[[str], str] | None = None,
        archive: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.label_ids = dict(label_ids or {})
        self.file_name = file_name or png_name
        self.archive = None if archive is None else Path(archive)
        self.overwrite = overwrite
        self._written: dict[str, str] = {}

    def prepare(self) -> None:
        """Make the folder; to be called before anything is computed, by one process, for which the others wait.

        Raises:
            FileExistsError: If the folder holds files or is none, or the archive exists.
            OSError: If nothing can be written there.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise FileExistsError(f"{self.folder} is a file; predictions need a folder.")
        full = self.folder if self.folder.is_dir() and any(self.folder.iterdir()) else None
        existing = full or (self.archive if self.archive and self.archive.exists() else None)
        if existing and not self.overwrite:
            state = "is not empty" if existing is full else "exists"
            raise FileExistsError(f"{existing} {state}: give another folder for predictions, or --overwrite.")
        check_can_write(self.folder / "a.png")

    def __call__(self, name: str, label_map: np.ndarray) -> None:
        """Write one image's prediction.

        Args:
            name: Name of the image, a relative path.
            label_map: `(H, W)` train ids, any integer dtype.

        Raises:
            ValueError: If the file would lie outside the folder, two images want the same file, or a value does not
                fit 16 bits.
            FileExistsError: If the file exists, unless `overwrite` is set.
        """
        file = PurePosixPath(self.file_name(name))
        if file.is_absolute() or ".." in file.parts:
            raise ValueError(
                f"The prediction for {name!r} would lie outside {self.folder}: {file}. Names are relative."
            )
        first = self._written.setdefault(str(file), name)
        if first != name:
            raise ValueError(f"The images {first!r} and {name!r} have the same file for their predictions: {file}.")
        path = self.folder / file
        if path.exists() and not self.overwrite:
            raise FileExistsError(f"{path} exists: give another folder for predictions, or --overwrite.")
        save_png(with_label_ids(label_map, self.label_ids), path)


def with_label_ids(label_map: np.ndarray, label_ids: Mapping[int, int]) -> np.ndarray:
    """A map of train ids in a server's numbers, `(H, W)` uint8, or uint16 where one is above 255."""
    lookup = np.arange(max([int(label_map.max()), *label_ids]) + 1)
    lookup[list(label_ids)] = list(label_ids.values())
    values = lookup[label_map]
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"Class ids from {values.min()} to {values.max()} do not fit a PNG: 0 to 65535 do.")
    return values.astype(np.uint8 if values.max() < 256 else np.uint16)


def submission_writer(
    folder: str | Path, benchmark: Benchmark | None = None, *, overwrite: bool = False
) -> PredictionWriter:
    """A writer of what the benchmark's test server wants; of train ids where there is no benchmark or no server."""
    wanted = benchmark.submission if benchmark else None
    if wanted is None:
        return PredictionWriter(folder, overwrite=overwrite)
    return PredictionWriter(
        folder,
        label_ids=wanted.label_ids,
        file_name=wanted.file_name,
        archive=_archive_of(Path(folder).expanduser()),
        overwrite=overwrite,
    )


def zip_predictions(folder: str | Path, *, overwrite: bool = False) -> Path:
    """Pack the PNGs of a folder into `<folder>.zip`, as a test server wants them: paths below the folder, in order.

    The same PNGs give the same zip to the byte. They are stored as they are, being compressed already.

    Returns:
        The zip's path.

    Raises:
        FileExistsError: If the zip exists, unless `overwrite` is set.
        FileNotFoundError: If there are no PNGs.
    """
    folder = Path(folder).expanduser()
    path = _archive_of(folder)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: move it away, or overwrite=True.")
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no PNG to pack.")
    with written_whole(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            entry = zipfile.ZipInfo(file, _EPOCH)
            entry.external_attr, entry.create_system = 0o644 << 16, 3  # the same wherever it is packed
            with open(folder / file, "rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target)
    return path


def _archive_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.zip")
