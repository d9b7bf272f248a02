"""The facts of a model card, and their checks. Scores are fractions 0-1; None stands for what is not known."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LICENSE_ID = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")


@dataclass(frozen=True)
class DatasetFacts:
    """The data set the numbers belong to.

    Attributes:
        name: Short name, such as "cityscapes".
        pretty_name: Name as people write it; None shows `name`.
        split: Split that was evaluated.
        license: Licence or terms of use of the data.
        num_images: Images in that split.
        fingerprint: Of that split's files, as `afdcd_hf.data.fingerprint` makes it.
        train_split: Split that it was trained on.
        train_images, train_fingerprint: Likewise of that split.
        is_public: Whether `name` is an identifier that others know, and not somebody's folder.
    """

    name: str
    pretty_name: str | None = None
    split: str | None = None
    license: str | None = None
    num_images: int | None = None
    fingerprint: str | None = None
    train_split: str | None = None
    train_images: int | None = None
    train_fingerprint: str | None = None
    is_public: bool = True

    @property
    def title(self) -> str:
        return self.pretty_name or self.name


@dataclass(frozen=True)
class MeasuredResults:
    """What we measured ourselves; the names are those of `results.json`. Scores are fractions 0-1.

    Attributes:
        mean_iou: Mean IoU over the classes that count.
        mean_accuracy: Mean over classes of the share of its pixels that were found.
        overall_accuracy: Share of all pixels that were right.
        per_category_iou: Class name to IoU; None or NaN for a class that occurs in neither truth nor prediction.
        num_images: Images that were evaluated.
        protocol: How it was measured: scales, flip, window and so on.
        date, machine, command: When, where and with which command.

    Raises:
        ValueError: If a score lies outside 0-1.
    """

    mean_iou: float
    mean_accuracy: float | None = None
    overall_accuracy: float | None = None
    per_category_iou: Mapping[str, float | None] = field(default_factory=dict)
    num_images: int | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None
    machine: str | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        _check_fraction("mean_iou", self.mean_iou)
        for name in ("mean_accuracy", "overall_accuracy"):
            _check_fraction(name, getattr(self, name))
        for name, iou in self.per_category_iou.items():
            if not is_missing(iou):
                _check_fraction(f"per_category_iou[{name!r}]", iou)


@dataclass(frozen=True)
class ReportedResults:
    """A number somebody else published, kept apart from ours.

    Attributes:
        mean_iou: Fraction 0-1.
        source: Where it stands, for example "Fan et al. 2023, Table 2".
    """

    mean_iou: float
    source: str

    def __post_init__(self) -> None:
        _check_fraction("reported mean_iou", self.mean_iou)


class ComparisonRow(NamedTuple):
    """One network of the comparison, measured by us; `mean_iou` is a fraction 0-1."""

    model: str
    num_parameters: int | None = None
    macs: int | None = None
    mean_iou: float | None = None


class CostRow(NamedTuple):
    """Multiply-accumulates of one image of `height` x `width` pixels."""

    height: int
    width: int
    macs: int


class LatencyRow(NamedTuple):
    """One measurement of `afdcd profile`.

    `device` names the machine, `setting` the precision and what else was asked for, such as "fp32, channels last";
    times are seconds of a whole batch, memory is in MiB; `load_average` counts programs that wanted a core.
    """

    height: int
    width: int
    batch_size: int
    device: str
    setting: str
    median_seconds: float
    p95_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    versions: str | None = None
    date: str | None = None
    load_average: float | None = None


class Picture(NamedTuple):
    """A picture of the card; `path` is relative to the card's folder."""

    path: str
    caption: str


@dataclass(frozen=True)
class TrainingFacts:
    """How the network was trained; everything may be unknown.

    Attributes:
        recipe: Name of the recipe.
        hyperparameters: The settings worth a reader's time, in order of appearance.
        seed, iterations: As trained.
        seconds: Wall-clock time of the training.
        seconds_in_steps: Of its steps alone, without evaluations and saving.
        images_per_second: Images trained on per second of these, on all devices together.
        time_split: Part of a step to its seconds per step.
        peak_memory_mb: Highest on any device, in MiB.
        peak_memory_of: What took it: "GPU" or "process".
        energy_joules: What a counter in the hardware measured during `seconds`, "GPU" and "processor" apart; what has
            no counter that can be read is not in it. Never an estimate.
        hardware: Where it ran.
        versions: Library to version.
    """

    recipe: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    iterations: int | None = None
    seconds: float | None = None
    seconds_in_steps: float | None = None
    images_per_second: float | None = None
    time_split: Mapping[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    peak_memory_of: str = "process"
    energy_joules: Mapping[str, float] = field(default_factory=dict)
    hardware: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CardFacts:
    """Everything a card says about one network.

    Attributes:
        model_name: Name of the network, the card's title.
        architecture: For example "DeepLabV3 on resnet18, output stride 8".
        repo_id: Its repository on the Hub; None lets the examples name a folder.
        num_parameters: As `afdcd_hf.cost.count_parameters` counts.
        macs: Multiply-accumulates of one image, as `afdcd_hf.cost.count_macs` counts.
        macs_size: `(height, width)` that `macs` belongs to, here and in `comparison`.
        costs: MACs at other sizes.
        latency: What was measured of its speed.
        dataset: The data set it was trained for and measured on.
        measured: Our own results; None reads "not measured".
        reported: A published number for the same network.
        comparison: Rows to hold it against, such as teacher, student alone and distilled.
        training: How it was trained.
        teacher: Name of the teacher it was distilled from: a Hub id, or the name of its folder without the path.
        teacher_architecture: As `architecture`.
        base_model: Hub id of the weights it started from, for example "timm/resnet18.a1_in1k".
        started_from: Weights that it started from, in words, where `base_model` cannot say it.
        tags: Tags beside the package's own.
        license: Hub identifier of the weights' licence; None leaves the metadata key out.
        license_name, license_link: Name and address of the licence, where `license` is "other".
        notes: Further things that a reader has to know, a paragraph each.
        pictures: Pictures in the card's folder.
        citations: BibTeX entries beside the one of Af-DCD, which is always in.

    Raises:
        ValueError: If MACs come without their input size, measured results without a data set, a score of the
            comparison lies outside 0-1, a picture's path is absolute or leaves the folder, or the licence "other" has
            no name or no link, or another one has; or base_model is no Hub id.
    """

    model_name: str
    architecture: str
    repo_id: str | None = None
    num_parameters: int | None = None
    macs: int | None = None
    macs_size: tuple[int, int] | None = None
    costs: list[CostRow] = field(default_factory=list)
    latency: list[LatencyRow] = field(default_factory=list)
    dataset: DatasetFacts | None = None
    measured: MeasuredResults | None = None
    reported: ReportedResults | None = None
    comparison: list[ComparisonRow] = field(default_factory=list)
    training: TrainingFacts = field(default_factory=TrainingFacts)
    teacher: str | None = None
    teacher_architecture: str | None = None
    base_model: str | None = None
    started_from: str | None = None
    tags: list[str] = field(default_factory=list)
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, row in _ROWS.items():  # plain tuples are welcome
            object.__setattr__(self, name, [row(*given) for given in getattr(self, name)])
        if self.macs_size is None and (self.macs is not None or any(row.macs is not None for row in self.comparison)):
            raise ValueError("MACs were given without macs_size; pass the (height, width) they were counted at.")
        if self.measured is not None and self.dataset is None:
            raise ValueError("Measured results were given without dataset; say what they were measured on.")
        for row in self.comparison:
            _check_fraction(f"mean_iou of {row.model!r} in the comparison", row.mean_iou)
        for picture in self.pictures:
            _check_inside(picture.path)
        if self.base_model is not None and not HUB_ID.fullmatch(self.base_model):
            raise ValueError(f"base_model={self.base_model!r} is no id on the Hub such as timm/resnet18.a1_in1k.")
        _check_license(self.license, self.license_name, self.license_link)


_ROWS = {"costs": CostRow, "latency": LatencyRow, "comparison": ComparisonRow, "pictures": Picture}


def _check_inside(path: str) -> None:
    if Path(path).is_absolute():
        raise ValueError(f"The picture {path} has an absolute path; pass it relative to the card's folder.")
    if ".." in Path(path).parts:
        raise ValueError(f"The picture {path} is not in the card's folder; copy it there.")


def _check_license(license: str | None, name: str | None, link: str | None) -> None:
    if license is not None and not _LICENSE_ID.fullmatch(license):
        raise ValueError(
            f"license={license!r} is no identifier of the Hub such as apache-2.0 or cc-by-4.0 (see "
            'https://huggingface.co/docs/hub/repositories-licenses); for other terms pass "other" with license_name '
            "and license_link."
        )
    if license == "other" and not (name and link):
        raise ValueError('The licence "other" needs license_name and license_link, or nobody knows which one it is.')
    if license != "other" and (name or link):
        raise ValueError(f'license_name and license_link belong to the licence "other", not to {license!r}.')


def _check_fraction(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; pass a fraction from 0 to 1 (76.4 % is 0.764).")


def is_missing(value: float | None) -> bool:
    """Whether a score is unknown: None or NaN."""
    return value is None or math.isnan(value)
