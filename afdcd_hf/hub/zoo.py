"""The table of checkpoints that this project publishes: where each comes from, and what is known of it.

Every row is a conversion of a released file (`afdcd convert`). A model that we train anew starts from other weights
and is another model: it gets a repository of its own, never the name of a row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..data.benchmarks import get_benchmark
from ..suggestions import close_names

PAPER = "2312.04168"
_PROJECT = "OSVAI/Af-DCD on GitHub"
_TABLES = f"arXiv {PAPER}, results tables (single scale, whole image, no flip)"


@dataclass(frozen=True)
class CheckpointRow:
    """What is known of one published model. Scores are fractions 0-1; None stands for what is not known."""

    repo_id: str  # repository on the Hub; the key in `CHECKPOINTS`
    network: str  # a key of `released_networks.RELEASED_NETWORKS`
    dataset: str  # benchmark it was trained for, a key of `data.BENCHMARKS`
    reported: float  # mIoU that its authors print
    source_file: str  # which file of `source_project`
    reported_in: str = _TABLES
    split: str = "val"  # that the scores belong to
    recipe: str | None = None  # of this package, for the same training; teachers have none
    teacher: str | None = None  # key of the teacher's row; None for teachers
    reported_alone: float | None = None  # mIoU that they print for the same student without distillation
    measured: float | None = None  # by us, from the converted folder under `afdcd evaluate`
    source_doubts: str | None = None  # why the link may not give that file
    remarks: str | None = None  # such as files that are easily mistaken for this one
    source_project: str = _PROJECT
    weights_licence: str = (
        "not established: the terms of the released files were not checked here; ask their authors before "
        "redistributing"
    )
    paper: str = PAPER

    @property
    def data_licence(self) -> str:
        """Terms of the images it was trained on; whoever uses the weights should know them."""
        return get_benchmark(self.dataset).licence

    @property
    def role(self) -> str:
        """What it is in the published pairs: "teacher" or "student"."""
        return "student" if self.teacher else "teacher"


def _teacher(dataset: str, reported: float, **others: Any) -> CheckpointRow:
    source = f"the DeepLabV3-ResNet101 teacher for {dataset}; which link gives it was not checked here"
    others = {"reported_in": f"{_TABLES}, column of the teacher", **others}
    name = f"afdcd/deeplabv3-r101-{_slug(dataset)}"
    return CheckpointRow(name, "deeplabv3_resnet101", dataset, reported, source, **others)


def _student(network: str, dataset: str, reported: float, alone: float, **others: Any) -> CheckpointRow:
    head, backbone = network.split("_")
    short = {"resnet18": "r18", "mobilenetv2": "mbv2"}[backbone]
    return CheckpointRow(
        f"afdcd/{head}-{short}-{_slug(dataset)}",
        network,
        dataset,
        reported,
        f"the distilled {network} for {dataset}, linked in the README",
        recipe=f"{dataset.removesuffix('_182')}_{head}_{short}",
        teacher=f"afdcd/deeplabv3-r101-{_slug(dataset)}",
        reported_alone=alone,
        **others,
    )


def _slug(dataset: str) -> str:
    return dataset.removesuffix("_182").replace("_", "-")  # one dataset under two label sets


def _shared_link(start: str, other: str) -> str:
    return (
        f"the README gives one Drive id ({start}...) for this file and for {other}, so that one of the two is missing. "
        "The models differ in their tensors: converting tells which one the file holds"
    )


_RETRAINED = (
    "the CIRKD project offers a retrained teacher of the same kind with another score ({} as it reports): that is "
    "another model"
)
_LEGACY_CLASSES = "; over 182 classes, of which the 11 that are never annotated count as 0"
_VOC_MISPRINTS = (
    f"the README of {_PROJECT} misprints some rows for Pascal VOC (78.07 for the teacher, 73.12 for the student): the "
    "scores here are the paper's"
)
_MBV2_README = f"README of {_PROJECT}; the paper (arXiv {PAPER}) prints 76.38"
_UNKNOWN_OPTIONS = "the released script for it stops on unknown options, so how it was trained is not known"
_TWO_OF_CITYSCAPES = [_shared_link("1D1pREhq", f"DeepLabV3-{one} on Cityscapes") for one in ("ResNet18", "MobileNetV2")]
_TWO_OF_PSPNET = [_shared_link("1PcU9SSA", f"PSPNet-ResNet18 on {one}") for one in ("CamVid", "Pascal VOC")]
_COCO_TEACHER = {
    "remarks": _RETRAINED.format("38.48"),
    "reported_in": f"{_TABLES}, column of the teacher{_LEGACY_CLASSES}",
}
_CAMVID_TEACHER = {"remarks": "the CIRKD project, which retrained the other teachers, offers none for CamVid"}

_ROWS = (
    _student("deeplabv3_mobilenetv2", "cityscapes", 0.7643, 0.7312,
             reported_in=_MBV2_README, source_doubts=_TWO_OF_CITYSCAPES[0]),
    _student("deeplabv3_resnet18", "cityscapes", 0.7703, 0.7421,
             source_doubts=_TWO_OF_CITYSCAPES[1], remarks=_UNKNOWN_OPTIONS),
    _student("deeplabv3_resnet18", "ade20k", 0.3621, 0.3391),
    _student("deeplabv3_resnet18", "coco_stuff_182", 0.3402, 0.3260, reported_in=f"{_TABLES}{_LEGACY_CLASSES}"),
    _student("deeplabv3_resnet18", "voc", 0.7625, 0.7321, remarks=_VOC_MISPRINTS),
    _student("pspnet_resnet18", "voc", 0.7614, 0.7333, source_doubts=_TWO_OF_PSPNET[0], remarks=_VOC_MISPRINTS),
    _student("deeplabv3_resnet18", "camvid", 0.6927, 0.6692, split="test"),
    _student("pspnet_resnet18", "camvid", 0.6948, 0.6673, split="test", source_doubts=_TWO_OF_PSPNET[1]),
    _teacher("cityscapes", 0.7807, remarks=_RETRAINED.format("78.30 on test")),
    _teacher("ade20k", 0.4270, remarks=_RETRAINED.format("43.83")),
    _teacher("coco_stuff_182", 0.3871, **_COCO_TEACHER),
    _teacher("voc", 0.7767, remarks=f"{_RETRAINED.format('77.80')}; {_VOC_MISPRINTS}"),
    _teacher("camvid", 0.6984, split="test", **_CAMVID_TEACHER),
)  # fmt: skip
CHECKPOINTS: dict[str, CheckpointRow] = {row.repo_id: row for row in _ROWS}


def get_checkpoint(repo_id: str) -> CheckpointRow:
    """The row of a published checkpoint.

    Raises:
        ValueError: there is none of that name; the known ones are listed.
    """
    if repo_id not in CHECKPOINTS:
        known = f"Known: {', '.join(CHECKPOINTS)}."
        raise ValueError(f"No published checkpoint {repo_id!r}.{close_names(repo_id, CHECKPOINTS)} {known}")
    return CHECKPOINTS[repo_id]
