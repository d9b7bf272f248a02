"""Cityscapes: nineteen classes of street scenes at 1024x2048 pixels."""

from __future__ import annotations

from pathlib import PurePosixPath

from .layout import Layout
from .pairing import LabelKind
from .row import RGB, Benchmark, Submission

_TRAINED: dict[int, tuple[str, RGB]] = {  # the 19 scored ones of the 34 label ids
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}
_LABEL_IDS = tuple(_TRAINED)
_SPLIT_SIZES = {"train": 2975, "val": 500, "test": 1525}

_LAYOUT = Layout(
    images={name: (f"leftImg8bit/{name}", f"leftImg8bit_trainvaltest/leftImg8bit/{name}") for name in _SPLIT_SIZES},
    labels={name: (f"gtFine/{name}", f"gtFine_trainvaltest/gtFine/{name}") for name in _SPLIT_SIZES},
    kinds=(
        LabelKind("_labelIds", {value: 255 for value in range(34)} | {v: i for i, v in enumerate(_LABEL_IDS)}),
        LabelKind("_labelTrainIds", {}),
    ),
    homes=("", "cityscapes", "Cityscapes"),
    image_ending="_leftImg8bit",
    label_infix="_gtFine",
    nested=True,
    labels_optional=("test",),  # what is published for it are dummies in which every pixel is ignored
)


def _result_name(name: str) -> str:
    """The server looks for `<city>_<sequence>_<frame>*.png`."""
    return f"{PurePosixPath(name).stem.removesuffix('_leftImg8bit')}_labelIds.png"


CITYSCAPES = Benchmark(
    name="cityscapes",
    classes=tuple(name for name, _ in _TRAINED.values()),
    palette=tuple(colour for _, colour in _TRAINED.values()),
    split_sizes=_SPLIT_SIZES,
    licence="Cityscapes' own terms, accepted on registration: non-commercial use such as research, no redistribution",
    homepage="https://www.cityscapes-dataset.com/",
    citation=(
        "M. Cordts, M. Omran, S. Ramos, T. Rehfeld, M. Enzweiler, R. Benenson, U. Franke, S. Roth, B. Schiele: "
        "The Cityscapes dataset for semantic urban scene understanding. CVPR 2016."
    ),
    layout=(
        "leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_labelIds.png (or, without "
        "those, *_gtFine_labelTrainIds.png), as unpacked from leftImg8bit_trainvaltest.zip and "
        "gtFine_trainvaltest.zip; the test split needs no gtFine"
    ),
    find_files=_LAYOUT.find_files,
    label_map=_LAYOUT.kinds[0].label_map,
    submission=Submission(label_ids=dict(enumerate(_LABEL_IDS)) | {255: 0}, file_name=_result_name),
)
