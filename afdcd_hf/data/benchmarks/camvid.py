"""CamVid in the SegNet layout: eleven classes of street scenes at 360x480 pixels."""

from __future__ import annotations

from pathlib import Path

from .files import IMAGE_SUFFIXES, LABEL_SUFFIXES, existing_folders, files_by_stem, pairs_by_stem
from .row import RGB, Benchmark, SplitFiles

_COLOURS: dict[str, RGB] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}


def _find_files(benchmark: Benchmark, root: Path, split: str, list_file: Path | None) -> SplitFiles:
    image_dir, label_dir = existing_folders(benchmark, root, split, lambda name: (name, f"{name}annot"))
    images, labels = files_by_stem(image_dir, IMAGE_SUFFIXES), files_by_stem(label_dir, LABEL_SUFFIXES)
    return pairs_by_stem(images, labels, image_dir, label_dir, label_map={11: 255})


CAMVID = Benchmark(
    name="camvid",
    classes=tuple(_COLOURS),
    palette=tuple(_COLOURS.values()),
    split_sizes={"train": 367, "val": 101, "test": 233},
    licence="not stated by its authors, who distribute it for research",
    homepage="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    citation=(
        "G. J. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video: a high-definition ground truth "
        "database. Pattern Recognition Letters 30(2), 2009."
    ),
    layout=(
        "train/ and trainannot/, val/ and valannot/, test/ and testannot/ as in the SegNet tutorial: PNG or JPEG "
        "images, and single-channel PNG labels 0..11 (11 = void) of the same file stem"
    ),
    find_files=_find_files,
)
