"""CamVid in the SegNet layout: eleven classes of street scenes at 360x480 pixels."""

from __future__ import annotations

from .layout import Layout
from .pairing import LabelKind
from .row import RGB, Benchmark

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


_SPLIT_SIZES = {"train": 367, "val": 101, "test": 233}

_LAYOUT = Layout(
    images={split: (split,) for split in _SPLIT_SIZES},
    labels={split: (f"{split}annot",) for split in _SPLIT_SIZES},
    kinds=(LabelKind(ending="", label_map={11: 255}),),
    homes=("", "CamVid", "camvid"),
)

CAMVID = Benchmark(
    name="camvid",
    classes=tuple(_COLOURS),
    palette=tuple(_COLOURS.values()),
    split_sizes=_SPLIT_SIZES,
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
    find_files=_LAYOUT.find_files,
    label_map=_LAYOUT.kinds[0].label_map,
)
