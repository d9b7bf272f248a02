"""The facts of a model card, checked for type and range, and their file, `card_facts.json`.

Scores are fractions 0-1, times seconds, memory MiB, sizes pixels; None means unknown.
"""

# No `from __future__ import annotations`: the checks need the fields' types as objects.
import dataclasses
import json
import math
import numbers
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from ..atomic_io import atomic_write
from ..messages import HUB_ID, without_tokens
from ..structured_files import read_json

FACTS_NAME, RECIPE_NAME = "card_facts.json", "recipe.yaml"  # of a run
_FORMAT = 1
_LICENSES = "https://huggingface.co/docs/hub/repositories-licenses"
# Types with a condition on the value, and the condition in words.
Fraction = Annotated[float, lambda value: 0 <= value <= 1, "a fraction from 0 to 1 (76.4 % is 0.764)"]
HubId = Annotated[str, HUB_ID.fullmatch, "an id on the Hub, USER/NAME"]
LicenseId = Annotated[
    str,
    re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*").fullmatch,
    f'one of {_LICENSES} such as apache-2.0, or "other" with license_name and license_link',
]
WebAddress = Annotated[str, re.compile(r"https?://\S+").fullmatch, "a web address, https://..."]
InFolder = Annotated[
    str, lambda path: not Path(path).is_absolute() and ".." not in Path(path).parts, "a path in the card's folder"
]
_NUMBERS: dict[Any, Any] = {bool: bool, int: numbers.Integral, float: numbers.Real}
# Accepted types of a free-form value -> the type as which it is stored.
_FREE_FORM_TYPES = (
    (Mapping, Mapping[str, Any]), ((list, tuple), list[Any]), (str, str), (bool, bool), (int, int),
    (float, float | None), (type(None), int | None),
)  # fmt: skip


class Facts:
    """Base of the dataclasses below: a ValueError names a field whose value does not match its annotation.

    The JSON form of a value is accepted: an object for facts, a list for a tuple. Keys become strings (YAML reads
    the class name `no` as a boolean), NaN becomes None, and access tokens inside strings are masked.
    """

    def __post_init__(self) -> None:
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, one.name, _checked(getattr(self, one.name), one.type, one.name))


def _checked(value: Any, kind: Any, where: str) -> Any:
    """Check the value against the annotation `kind` and return it in that type; `where` names it in errors."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        return None if missing else _checked(value, inner[0], where)
    if origin is Annotated:
        plain, fits, expected = inner
        value = _checked(value, plain, where)
        if not fits(value):
            raise ValueError(f"{where} is {value!r}; expected {expected}.")
        return value
    if origin in (list, tuple) and isinstance(value, (list, tuple)) and (origin is list or len(value) == len(inner)):
        return origin(_checked(item, inner[0], f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping) and len({str(key) for key in value}) == len(value):
        return {without_tokens(str(key)): _checked(item, inner[1], f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else facts_from_json(value, kind, where)  # type: ignore[arg-type]
    if kind is Any:
        for accepted, kept in _FREE_FORM_TYPES:
            if isinstance(value, accepted):
                return _checked(value, kept, where)
    if kind is str and isinstance(value, str):
        return without_tokens(value)
    if kind in _NUMBERS and isinstance(value, _NUMBERS[kind]) and isinstance(value, bool) == (kind is bool):
        if math.isfinite(value):
            return kind(value)
    raise ValueError(f"{where} is {_shown(value)}; expected {getattr(origin or kind, '__name__', 'plain values')}.")


def facts_from_json(value: Any, kind: type, where: str) -> Any:
    """Build facts of the class `kind` from their JSON object; errors begin with `where`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {_shown(value)}; expected the fields of {kind.__name__}.")
    known = [one.name for one in dataclasses.fields(kind)]  # type: ignore[arg-type]
    if unknown := [name for name in value if name not in known]:
        raise ValueError(f"{where} has {unknown}, unknown to this version; known: {', '.join(known)}.")
    try:
        return kind(**value)
    except (ValueError, TypeError) as error:  # TypeError: a required field is missing
        raise ValueError(f"{where}: {error}") from error


def _shown(value: Any) -> str:
    text = without_tokens(repr(value))
    return f"{text[:60]}{'...' if len(text) > 60 else ''} ({type(value).__name__})"


@dataclass(frozen=True)
class DatasetFacts(Facts):
    """The dataset on which the model was scored and trained."""

    name: str  # such as "cityscapes"
    pretty_name: str | None = None  # the usual spelling
    split: str | None = None  # the evaluated one
    license: str | None = None  # licence or terms of use of the data
    num_images: int | None = None  # in that split
    fingerprint: str | None = None  # of that split, see `afdcd_hf.data.statistics`
    train_split: str | None = None
    train_images: int | None = None
    train_fingerprint: str | None = None
    is_public: bool = True  # False: `name` is a local folder, which means nothing to others
    hub_id: HubId | None = None  # its repository on the Hub, for `.eval_results`


@dataclass(frozen=True)
class MeasuredResults(Facts):
    """Our own measurement; names as in `results.json`."""

    mean_iou: Fraction  # over the classes that are counted
    mean_accuracy: Fraction | None = None
    overall_accuracy: Fraction | None = None
    per_category_iou: Mapping[str, Fraction | None] = field(default_factory=dict)  # None: the class does not occur
    num_images: int | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)  # scales, flip, window and so on
    date: str | None = None
    machine: str | None = None
    command: str | None = None

    @property
    def covers_split(self) -> bool:
        """Whether the whole split was evaluated, not just part of it."""
        return not any(self.protocol.get(name) for name in ("max_samples", "list_file"))


@dataclass(frozen=True)
class ReportedResults(Facts):
    """A score published by others, kept apart from ours."""

    mean_iou: Fraction
    source: str  # such as "Fan et al. 2023, Table 2"


@dataclass(frozen=True)
class ComparisonRow(Facts):
    """One model in the comparison, measured by us."""

    model: str
    num_parameters: int | None = None
    macs: int | None = None
    mean_iou: Fraction | None = None


@dataclass(frozen=True)
class CostRow(Facts):
    """Multiply-accumulates of one image."""

    height: int
    width: int
    macs: int


@dataclass(frozen=True)
class LatencyRow(Facts):
    """One measurement of `afdcd profile`; times are of a whole batch."""

    height: int
    width: int
    batch_size: int
    device: str
    setting: str  # precision and other options: "fp32, channels last"
    median_seconds: float
    p95_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_mb: float | None = None
    versions: str | None = None
    date: str | None = None
    load_average: float | None = None  # of the minute before


@dataclass(frozen=True)
class Picture(Facts):
    """An image on the card; `path` is relative to the card's folder."""

    path: InFolder
    caption: str


@dataclass(frozen=True)
class TrainingFacts(Facts):
    """How the model was trained."""

    recipe: str | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)  # those shown on the card, in order
    seed: int | None = None
    iterations: int | None = None
    seconds: float | None = None  # wall clock
    seconds_in_steps: float | None = None  # without evaluations and saving
    images_per_second: float | None = None  # in these steps, over all devices
    time_split: Mapping[str, float] = field(default_factory=dict)  # part of a step -> seconds per step
    peak_memory_mb: float | None = None  # highest on any device
    peak_memory_of: str = "process"  # or "GPU"
    hardware: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of libraries


@dataclass(frozen=True)
class CardFacts(Facts):
    """Everything that a card says about one model."""

    model_name: str  # the card's title
    architecture: str  # such as "DeepLabV3 on resnet18, output stride 8"
    repo_id: str | None = None  # None: the examples name a folder
    num_parameters: int | None = None
    macs: int | None = None  # of one image
    macs_size: tuple[int, int] | None = None  # (height, width) for `macs`, here and in `comparison`
    costs: list[CostRow] = field(default_factory=list)  # MACs at other sizes
    latency: list[LatencyRow] = field(default_factory=list)
    dataset: DatasetFacts | None = None
    measured: MeasuredResults | None = None  # None is shown as "not measured"
    reported: ReportedResults | None = None  # of the same model
    comparison: list[ComparisonRow] = field(default_factory=list)  # such as teacher, student alone, distilled
    training: TrainingFacts = field(default_factory=TrainingFacts)
    teacher: str | None = None  # Hub id, or folder name without its path; None: not distilled
    teacher_architecture: str | None = None
    base_model: HubId | None = None  # Hub id of the initial weights
    started_from: str | None = None  # description of the initial weights, if they have no Hub id
    tags: list[str] = field(default_factory=list)  # in addition to the package's own
    license: LicenseId | None = None  # of the weights, as the Hub's identifier
    license_name: str | None = None  # required with `license_link` if `license` is "other"
    license_link: WebAddress | None = None
    notes: list[str] = field(default_factory=list)  # Markdown, one paragraph each
    pictures: list[Picture] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)  # BibTeX, in addition to Af-DCD's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.macs_size is None and (self.macs is not None or any(row.macs is not None for row in self.comparison)):
            raise ValueError("MACs were given without macs_size; pass the (height, width) they were counted at.")
        if self.measured is not None and self.dataset is None:
            raise ValueError("Measured results were given without dataset; pass the dataset they were measured on.")
        named = bool(self.license_name), bool(self.license_link)
        if named != (self.license == "other", self.license == "other"):
            raise ValueError(
                f'license="other", and only it, needs license_name and license_link; got {self.license!r}.'
            )


def write_facts(folder: str | Path, facts: CardFacts) -> Path:
    """Write the facts to `card_facts.json` atomically and return its path."""
    path = Path(folder) / FACTS_NAME
    with atomic_write(path) as part:
        part.write_bytes(facts_json(facts))
    return path


def facts_json(facts: CardFacts) -> bytes:
    """Serialise the facts as the content of `card_facts.json`."""
    content = {"format": _FORMAT, **dataclasses.asdict(facts)}
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def read_facts(folder: str | Path) -> CardFacts:
    """Read the facts from a model's folder or from the file itself; a ValueError says what is wrong with it."""
    path = Path(folder)
    path = path / FACTS_NAME if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; a training writes {FACTS_NAME} beside its results.")
    content: dict[str, Any] = read_json(path, "the facts of a model card")
    if content.pop("format", None) != _FORMAT:
        raise ValueError(f"{path} has no facts of format {_FORMAT}; another version or program wrote it.")
    return facts_from_json(content, CardFacts, str(path))
