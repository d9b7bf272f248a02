"""The table of checkpoints that this project publishes: where each comes from, and what is known of it.

Every row is a conversion of a released file (`afdcd convert`). A network that we train anew starts from other weights
and is another network: it gets a repository of its own, never the name of a row here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from ..data.benchmarks import get_benchmark

PAPER = "2312.04168"
_PROJECT = "OSVAI/Af-DCD on GitHub"
_TABLES = f"arXiv {PAPER}, results tables (single scale, whole image, no flip)"


@dataclass(frozen=True)
class CheckpointRow:
    """What is known of one published network. Scores are fractions 0-1; None stands for what is not known.

    Attributes:
        repo_id: Repository on the Hub; the key in `CHECKPOINTS`.
        network: Its layout, a key of `released_networks.RELEASED_NETWORKS`.
        dataset: Benchmark it was trained for, a key of `data.BENCHMARKS`.
        split: Split that the scores belong to.
        recipe: Recipe of this package for the same training; None for teachers, which have none.
        teacher: Key of the teacher's row; None for teachers.
        source_project: Project that released the weights.
        source_file: Which of its files.
        source_doubts: Why that link may not give that file; None where nothing speaks against it.
        remarks: What else a reader has to know, such as files that are easily mistaken for this one.
        reported: mIoU that its authors print.
        reported_in: Where they print it.
        reported_alone: mIoU that they print for the same student without distillation.
        measured: mIoU that we measured from the converted folder under `afdcd evaluate`; None until somebody did.
        weights_licence: Terms of the weights, as far as known.
        paper: arXiv id of the paper that reports the network.
    """

    repo_id: str
    network: str
    dataset: str
    split: str
    recipe: str | None
    teacher: str | None
    source_project: str
    source_file: str
    source_doubts: str | None
    remarks: str | None
    reported: float
    reported_in: str
    reported_alone: float | None
    measured: float | None
    weights_licence: str
    paper: str

    @property
    def data_licence(self) -> str:
        """Terms of the images it was trained on; whoever uses the weights should know them."""
        return get_benchmark(self.dataset).licence

    @property
    def role(self) -> str:
        """What it is in the published pairs: "teacher" or "student"."""
        return "student" if self.teacher else "teacher"


_WEIGHTS_LICENCE = (
    "not established: the terms of the released files were not checked here; ask their authors before redistributing"
)


def _teacher(dataset: str, reported: float, **others) -> CheckpointRow:
    defaults = {
        "split": "val",
        "source_file": f"the DeepLabV3-ResNet101 teacher for {dataset}; which link gives it was not checked here",
        "source_doubts": None,
        "reported_in": f"{_TABLES}, column of the teacher",
    }
    fixed = {"recipe": None, "teacher": None, "reported_alone": None}
    return _row(
        f"deeplabv3-r101-{_slug(dataset)}", "deeplabv3_resnet101", dataset, reported, **defaults | others | fixed
    )


def _student(network: str, dataset: str, reported: float, reported_alone: float, **others) -> CheckpointRow:
    head, backbone = network.split("_")
    short = {"resnet18": "r18", "mobilenetv2": "mbv2"}[backbone]
    defaults = {
        "split": "val",
        "recipe": f"{_base(dataset)}_{head}_{short}",
        "teacher": f"afdcd/deeplabv3-r101-{_slug(dataset)}",
        "source_file": f"the distilled {network} for {dataset}, linked in the README",
        "source_doubts": None,
        "reported_in": _TABLES,
    }
    rest = defaults | others | {"reported_alone": reported_alone}
    return _row(f"{head}-{short}-{_slug(dataset)}", network, dataset, reported, **rest)


def _row(name: str, network: str, dataset: str, reported: float, **others) -> CheckpointRow:
    defaults = {
        "source_project": _PROJECT,
        "remarks": None,
        "measured": None,
        "weights_licence": _WEIGHTS_LICENCE,
        "paper": PAPER,
    }
    return CheckpointRow(
        repo_id=f"afdcd/{name}", network=network, dataset=dataset, reported=reported, **defaults | others
    )


def _base(dataset: str) -> str:
    return dataset.removesuffix("_182")  # one data set under two label sets


def _slug(dataset: str) -> str:
    return _base(dataset).replace("_", "-")


def _shared_link(start: str, other: str) -> str:
    return (
        f"the README gives one Drive id ({start}...) for this file and for {other}, so that one of the two is missing. "
        "The networks differ in their tensors: converting tells which one the file holds"
    )


_RETRAINED = (
    "the CIRKD project offers a retrained teacher of the same kind with another score ({score} as it reports): that is "
    "another network"
)
_NO_RETRAINED = "the CIRKD project, which retrained the other teachers, offers none for CamVid"
_LEGACY_CLASSES = "; over 182 classes, of which the 11 that are never annotated count as 0"
_VOC_MISPRINTS = (
    f"the README of {_PROJECT} misprints some rows for Pascal VOC (78.07 for the teacher, 73.12 for the student): the "
    "scores here are the paper's"
)

CHECKPOINTS: dict[str, CheckpointRow] = {
    row.repo_id: row
    for row in (
        _student(
            "deeplabv3_mobilenetv2",
            "cityscapes",
            0.7643,
            0.7312,
            reported_in=f"README of {_PROJECT}; the paper (arXiv {PAPER}) prints 76.38",
            source_doubts=_shared_link("1D1pREhq", "DeepLabV3-ResNet18 on Cityscapes"),
        ),
        _student(
            "deeplabv3_resnet18",
            "cityscapes",
            0.7703,
            0.7421,
            source_doubts=_shared_link("1D1pREhq", "DeepLabV3-MobileNetV2 on Cityscapes"),
            remarks="the released script for it stops on unknown options, so how it was trained is not known",
        ),
        _student("deeplabv3_resnet18", "ade20k", 0.3621, 0.3391),
        _student("deeplabv3_resnet18", "coco_stuff_182", 0.3402, 0.3260, reported_in=f"{_TABLES}{_LEGACY_CLASSES}"),
        _student("deeplabv3_resnet18", "voc", 0.7625, 0.7321, remarks=_VOC_MISPRINTS),
        _student(
            "pspnet_resnet18",
            "voc",
            0.7614,
            0.7333,
            source_doubts=_shared_link("1PcU9SSA", "PSPNet-ResNet18 on CamVid"),
            remarks=_VOC_MISPRINTS,
        ),
        _student("deeplabv3_resnet18", "camvid", 0.6927, 0.6692, split="test"),
        _student(
            "pspnet_resnet18",
            "camvid",
            0.6948,
            0.6673,
            split="test",
            source_doubts=_shared_link("1PcU9SSA", "PSPNet-ResNet18 on Pascal VOC"),
        ),
        _teacher("cityscapes", 0.7807, remarks=_RETRAINED.format(score="78.30 on test")),
        _teacher("ade20k", 0.4270, remarks=_RETRAINED.format(score="43.83")),
        _teacher(
            "coco_stuff_182",
            0.3871,
            remarks=_RETRAINED.format(score="38.48"),
            reported_in=f"{_TABLES}, column of the teacher{_LEGACY_CLASSES}",
        ),
        _teacher("voc", 0.7767, remarks=f"{_RETRAINED.format(score='77.80')}; {_VOC_MISPRINTS}"),
        _teacher("camvid", 0.6984, split="test", remarks=_NO_RETRAINED),
    )
}


def get_checkpoint(repo_id: str) -> CheckpointRow:
    """The row of a published checkpoint.

    Raises:
        ValueError: If there is none of that name; the known ones are listed.
    """
    if repo_id not in CHECKPOINTS:
        close = difflib.get_close_matches(repo_id, CHECKPOINTS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"No published checkpoint {repo_id!r}.{hint} Known: {', '.join(CHECKPOINTS)}.")
    return CHECKPOINTS[repo_id]
