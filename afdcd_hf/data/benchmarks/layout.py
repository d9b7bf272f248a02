"""Benchmarks whose images and labels lie in folders of their own, one pair of folders a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .files import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    by_key,
    existing_folders,
    first_folder,
    home_of,
    nothing_in,
    visible_files,
)
from .lists import read_list
from .pairing import Found, LabelKind, all_pairs, kind_of, listed_pairs, picked_pairs
from .row import Benchmark, SplitFiles


@dataclass(frozen=True)
class Layout:
    """How the files of such a benchmark are arranged. `find_files` is what the benchmark's row wants.

    The key that pairs files is the image's stem without `image_ending`, and the label's without `label_infix` and the
    ending of its kind.

    Attributes:
        images: Split → folders in which its images may lie; the first that is there is taken.
        labels: The same of its labels.
        kinds: The kinds of label files; of those usable, the first of which there are files is taken.
        homes: Where the data set's own root may be under `data_dir`.
        image_ending: End of the stems of image files; files without it are no data.
        label_infix: What stands between key and kind in the stems of label files.
        nested: Whether the files lie one level deeper, in a folder a city.
        labels_optional: Splits that are (also) published without labels.
    """

    images: Mapping[str, tuple[str, ...]]
    labels: Mapping[str, tuple[str, ...]]
    kinds: tuple[LabelKind, ...]
    homes: tuple[str, ...] = ("",)
    image_ending: str = ""
    label_infix: str = ""
    nested: bool = False
    labels_optional: tuple[str, ...] = ()

    def find_files(self, benchmark: Benchmark, root: Path, split: str, list_file: Path | None) -> SplitFiles:
        """The files of a split, or those of a list.

        Raises:
            FileNotFoundError: If folders or files are missing, or a counterpart is.
            ValueError: If two files have one key, or a list is not usable.
        """
        home = home_of(root, self.homes, [path for paths in self.images.values() for path in paths])
        listed = None if list_file is None else read_list(list_file, root)
        if listed is not None and listed.names_labels:
            return listed_pairs(benchmark, listed, (home, root), self.kinds)
        found = self._scan(benchmark, home, split)
        if listed is None:
            return all_pairs(found)
        return picked_pairs(found, listed, lambda stem: stem.removesuffix(self.image_ending))

    def _scan(self, benchmark: Benchmark, home: Path, split: str) -> Found:
        image_dir = existing_folders(benchmark, home, split, self._folders_of)[0]
        images = by_key(visible_files(image_dir, IMAGE_SUFFIXES, self.nested), self._image_key, image_dir)
        if not images:
            raise nothing_in(image_dir, [f"{self.image_ending}{suffix}" for suffix in IMAGE_SUFFIXES])
        label_dir, optional = first_folder(home, self.labels[split]), split in self.labels_optional
        labels, label_map = ({}, {}) if label_dir is None else self._labels_in(label_dir)
        if not labels and not optional:
            raise nothing_in(label_dir, [f"{self.label_infix}{kind.ending}.png" for kind in self._usable()])
        return Found(images, labels, label_map, str(image_dir), str(label_dir), optional)

    def _folders_of(self, split: str) -> tuple[tuple[str, ...], ...]:
        wanted = (self.images[split], self.labels[split])
        return wanted[:1] if split in self.labels_optional else wanted

    def _image_key(self, stem: str) -> str | None:
        return stem.removesuffix(self.image_ending) if stem.endswith(self.image_ending) else None

    def _usable(self) -> list[LabelKind]:
        return [kind for kind in self.kinds if kind.label_map is not None]

    def _labels_in(self, folder: Path) -> tuple[dict[str, Path], Mapping[int, int]]:
        """The label files by key, and the map of their kind."""
        files = visible_files(folder, LABEL_SUFFIXES, self.nested)
        for kind in self._usable():
            ending = f"{self.label_infix}{kind.ending}"
            of_kind = (path for path in files if path.stem.endswith(ending) and kind_of(path.stem, self.kinds) is kind)
            labels = by_key(of_kind, lambda stem, ending=ending: stem.removesuffix(ending), folder)
            if labels:
                return labels, kind.label_map
        return {}, {}
