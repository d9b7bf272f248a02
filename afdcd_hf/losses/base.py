"""Base classes of distillation losses, their helpers for logits, labels and feature maps, and sums of losses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import dataclass_transform  # in typing from Python 3.11; torch needs it too

from ..features import Activations
from ..ops.checks import check_weight, check_whole
from ..ops.precision import at_least_float32


class Option(NamedTuple):
    default: Any
    check: Callable[[str, Any], None] | None
    kw_only: bool


def option(
    *, default: Any = inspect.Parameter.empty, check: Callable[[str, Any], None] | None = None, kw_only: bool = True
) -> Any:
    """Declare an option in the body of a loss: `temperature: float = option(default=1.0, check=check_positive)`.

    An option without a default is required. `check` is called with name and value and raises ValueError; weights need
    none. `kw_only=False` also allows the option by position.
    """
    return Option(default, check, kw_only)


@dataclass_transform(kw_only_default=True, field_specifiers=(option,))  # editors and mypy see the constructor
class DistillationLoss(nn.Module):
    """Base class of losses that compare a student's and a teacher's outputs for the same images.

    A loss owns its options and any weights that train with the student, but never a model. It returns named scalars
    that are already weighted; the trainer adds them up and logs them.

    A subclass declares its options with `option`, which makes them keyword arguments of its constructor, and defines
    `compute` and, if it has layers, `build`. Alternatively, it has a constructor with options by keyword (a `MapLoss`
    takes the two channel counts first, by position) and passes all of them to `super().__init__`. Either way, options
    are checked and become attributes.

    All our losses follow these rules. The teacher gets no gradient, and its map or logits are resized bilinearly
    (align_corners=False) to the student's. A term of weight 0 is not computed, and layers that it alone needs are not
    built, because DistributedDataParallel fails on unused weights. Layers run under the caller's autocast, everything
    else in float32, or in float64 for float64 inputs. Weights are at least 0, temperatures above 0. ValueError for bad
    options and channels in the constructor, and for maps, logits or labels that do not fit in `forward`.

    Attributes:
        name: the loss's name in recipes; by default the class's name.
        map_terms: term on feature maps -> the option that is its weight.
        logits_terms: the same for terms on logits, which are computed once even with several pairs of maps.
        checks: option -> function of its name and value that raises ValueError; weights need no entry.
        needs_feature_map: whether the class reads feature maps, or an instance does with its options.
        citation: BibTeX entry of the paper.
    """

    name: ClassVar[str]
    map_terms: ClassVar[Mapping[str, str]] = {}
    logits_terms: ClassVar[Mapping[str, str]] = {}
    checks: ClassVar[Mapping[str, Callable[[str, Any], None]]] = {}
    needs_feature_map: bool = False
    citation: ClassVar[str] = ""

    _declared: ClassVar[Mapping[str, Option]] = {}

    if TYPE_CHECKING:  # layers, and options of constructors

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = vars(cls).get("name", cls.__name__)
        declared = {name: each for name, each in vars(cls).items() if isinstance(each, Option)}
        for name in declared:  # a layer may have the name of an option, which would hide it
            delattr(cls, name)
        cls._declared = {**cls._declared, **declared}
        cls.checks = {**cls.checks, **{name: each.check for name, each in declared.items() if each.check}}
        cls.__signature__ = None  # type: ignore[attr-defined]
        if cls.__init__ is DistillationLoss.__init__:
            kinds = {True: inspect.Parameter.KEYWORD_ONLY, False: inspect.Parameter.POSITIONAL_OR_KEYWORD}
            cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
                [inspect.Parameter(name, kinds[o.kw_only], default=o.default) for name, o in cls._declared.items()]
            )

    def __init__(self, *channels: int | None, **options: Any) -> None:
        super().__init__()
        positional = [name for name, each in self._declared.items() if not each.kw_only]  # a map loss's channels
        if (signature := getattr(self, "__signature__", None)) is not None:
            bound = signature.bind(*channels, **options)  # TypeError, as from any function
            bound.apply_defaults()
            options = bound.arguments
        else:  # passed on by a subclass's constructor
            options = dict(zip(positional, channels, strict=False)) | options
        self.check_options(options)
        self.needs_feature_map = self.reads_map(options)
        self._options = dict(options)
        for name, value in options.items():
            setattr(self, name, value)
        for name in positional if self.needs_feature_map else ():
            check_whole(name, options[name])
        self.build()

    def build(self) -> None:
        """Create the layers that the options, already set as attributes, call for."""

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise ValueError for a bad option; takes all keyword-only options, without channel counts."""
        weights = dict.fromkeys((*cls.map_terms.values(), *cls.logits_terms.values()), check_weight)
        for name, check in {**weights, **cls.checks}.items():
            check(name, options[name])

    @classmethod
    def reads_map(cls, options: Mapping[str, Any]) -> bool:
        """Return whether a loss with these options, and defaults for the others, reads feature maps."""
        weights = cls.map_terms.values()
        return cls.needs_feature_map and (not weights or any(options.get(option) != 0 for option in weights))

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether `forward` may read the teacher's logits; if no loss does, the teacher stops at its maps.

        By default, only a loss whose terms are all on maps does not: if it reads logits too, set this to True.
        """
        return not self.map_terms or bool(self.switched_on(self.logits_terms))

    @property
    def citations(self) -> list[str]:
        """BibTeX entries of the papers behind the loss."""
        return [self.citation] if self.citation else []

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: logits `(B, K, h, w)` and, if needed, the map `(B, Cs, h', w')`; gradients flow into these.
            teacher: the same for the teacher, which never receives a gradient.
            labels: `(B, H, W)` int64, for losses that read them.

        Returns:
            One scalar per term; terms of weight 0 are left out.
        """
        declared = {**self.map_terms, **self.logits_terms}
        weights = self.switched_on(declared)
        terms = {} if declared and not weights else self.compute(student, teacher, labels)
        if not declared or not set(weights) <= set(terms) <= set(declared):
            raise ValueError(
                f"the loss {self.name!r} declares the terms {_listed(declared)} in map_terms and logits_terms, and its "
                f"compute returns {_listed(terms)}: declare each term with the option that is its weight, as in "
                'map_terms = {"cosine": "weight"}, and return at least those whose weight is above 0.'
            )
        return {name: weight * terms[name] for name, weight in weights.items()}

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        """Compute the unweighted terms, at least those of a weight above 0; arguments as in `forward`."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute.")

    def switched_on(self, terms: Mapping[str, str]) -> dict[str, float]:
        """Return the weight of each term whose weight is above 0."""
        weights = {term: getattr(self, option) for term, option in terms.items()}
        return {term: weight for term, weight in weights.items() if weight > 0}

    def logits(self, student: Activations, teacher: Activations) -> tuple[Tensor, Tensor]:
        """Return both logits, at least float32, the teacher's detached and resized; ValueError if they do not fit."""
        ours, theirs = student.logits, teacher.logits
        if ours is None or theirs is None or ours.ndim != 4 or theirs.ndim != 4 or len(ours) != len(theirs):
            undeclared = "" if self.reads_teacher_logits else " Set reads_teacher_logits = True in the loss's class."
            raise ValueError(
                f"student logits {_shape(ours)} and teacher logits {_shape(theirs)} must both be (B, K, h, w) "
                f"with the same batch size.{undeclared}"
            )
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"the student has {ours.shape[1]} classes and the teacher {theirs.shape[1]}; the loss {self.name!r} "
                f"needs the same: use a teacher trained on this data, or leave {self.name!r} out of the loss."
            )
        return _comparable(ours, theirs)

    def members(self, student: Activations, labels: Tensor | None, size: Sequence[int]) -> Tensor:
        """Call `class_members` with the student's classes and `self.ignore_index`; ValueError for unfit labels."""
        logits = student.logits
        if labels is None or logits is None or labels.ndim != 3 or len(labels) != len(logits):
            raise ValueError(
                f"the loss {self.name!r} reads labels (B, H, W) beside the student's logits (B, K, h, w); it got "
                f"labels {_shape(labels)} and logits {_shape(logits)}."
            )
        return class_members(labels, logits.shape[1], size, self.ignore_index)

    def get_config_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments, ready for JSON."""
        return dict(self._options)


class MapLoss(DistillationLoss):
    """Base class of losses on one map of each model, by default the backbone's last.

    Most published weights of such losses are for the *head's* last map, which in our models is `head.features`. The
    channels of student and teacher, Cs and Ct, come first, by position: `FitNetLoss(512, 2048)`; None if no term on
    maps has a weight.
    """

    needs_feature_map = True

    student_channels: int = option(kw_only=False)
    teacher_channels: int = option(kw_only=False)

    def new_align(self) -> nn.Module:
        """Return a 1×1 convolution with bias from Cs to Ct channels, or the identity if they are equal."""
        if self.student_channels == self.teacher_channels:
            return nn.Identity()
        return nn.Conv2d(self.student_channels, self.teacher_channels, kernel_size=1)

    def maps(self, student: Activations, teacher: Activations) -> tuple[Tensor, Tensor]:
        """Return both maps, at least float32, the teacher's detached and resized; ValueError if they do not fit."""
        ours = self._checked("student", student.feature_map, self.student_channels)
        theirs = self._checked("teacher", teacher.feature_map, self.teacher_channels)
        if len(ours) != len(theirs):
            raise ValueError(f"the student's map has batch size {len(ours)} and the teacher's {len(theirs)}.")
        return _comparable(ours, theirs)

    def _checked(self, role: str, feature_map: Tensor | None, channels: int) -> Tensor:
        if feature_map is None:
            raise ValueError(
                f"the loss {self.name!r} compares feature maps and got none from the {role}; "
                f"name the layer to capture with {role}_layer."
            )
        if feature_map.ndim != 4 or feature_map.shape[1] != channels:
            raise ValueError(f"the {role}'s map has shape {_shape(feature_map)}; expected (B, {channels}, h, w).")
        return feature_map


class LossSum(DistillationLoss):
    """Several losses on the same activations, with their terms merged.

    Args:
        losses: name -> loss, whose weights are saved as `losses.<name>.*`.
    """

    def __init__(self, losses: Mapping[str, DistillationLoss]) -> None:
        super().__init__()
        self.losses: Any = nn.ModuleDict(losses)
        self.needs_feature_map = any(loss.needs_feature_map for loss in losses.values())

    @property
    def reads_teacher_logits(self) -> bool:
        return any(loss.reads_teacher_logits for loss in self.losses.values())

    @property
    def citations(self) -> list[str]:
        return list(dict.fromkeys(text for loss in self.losses.values() for text in loss.citations))

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the terms of all losses; ValueError if two of them have the same name."""
        merged: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            terms = loss(student, teacher, labels)
            if clash := sorted(merged.keys() & terms.keys()):
                raise ValueError(f"the loss {name!r} returns the term {clash[0]!r}, which another loss returns, too.")
            merged.update(terms)
        return merged

    def get_config_dict(self) -> dict[str, Any]:
        """Return the arguments of each loss under its name."""
        return {name: loss.get_config_dict() for name, loss in self.losses.items()}


class LossPerPair(LossSum):
    """One loss for each pair of student and teacher maps.

    Term names end in the number of the pair: `feature_1`, `contrast_1`, `feature_2`, ...

    Args:
        losses: one per pair, in the order of the layers; their weights are saved as `losses.<index>.*`.
    """

    def __init__(self, losses: Sequence[DistillationLoss]) -> None:
        super().__init__({str(index): loss for index, loss in enumerate(losses)})

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the terms of all pairs; ValueError if the numbers of maps and losses differ."""
        pairs = zip(self.losses.values(), student.of_each_layer(), teacher.of_each_layer(), strict=True)
        return {
            f"{name}_{number}": term
            for number, (loss, *pair) in enumerate(pairs, start=1)
            for name, term in loss(*pair, labels).items()
        }

    def get_config_dict(self) -> dict[str, Any]:
        """Return the arguments of each loss, in the order of the pairs."""
        return {"pairs": list(super().get_config_dict().values())}


def uniform(like: Tensor) -> Tensor:
    """Draw float32 numbers in [0, 1), of the shape and on the device of `like`, from torch's global generator."""
    return torch.rand(like.shape, device=like.device)


def _comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    return student, teacher


def _listed(terms: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, terms)) or "none"


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def class_members(labels: Tensor, num_classes: int, size: Sequence[int], ignore_index: int | None = 255) -> Tensor:
    """Return which positions of a map of `size` (h, w) belong to which class, `(B, K, h·w)` bool, at most one each.

    Labels `(B, H, W)` int64 are resized by nearest neighbour. Those outside 0 ... K - 1 belong to no class, nor does
    `ignore_index`, unless it is None.
    """
    # interpolate takes no integers, and float32 holds those below 2²⁴ exactly
    nearest = F.interpolate(labels.unsqueeze(1).float(), size, mode="nearest").flatten(start_dim=2)  # (B, 1, N)
    classes = torch.arange(num_classes, device=labels.device).view(1, -1, 1)
    members = nearest == classes  # (B, K, N)
    return members if ignore_index is None else members & (classes != ignore_index)


def kl_divergences(student: Tensor, teacher: Tensor, temperature: float, dim: int) -> Tensor:
    """Compute `KL(softmax(teacher / τ) ‖ softmax(student / τ))` along `dim`, which is removed."""
    student, teacher = (F.log_softmax(each / temperature, dim) for each in (student, teacher))
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim)


def unit_vectors(vectors: Tensor, dim: int) -> Tensor:
    """Divide float32 or float64 `vectors` by their L2 norm along `dim`.

    Zero vectors, which occur after a ReLU, stay zero and pass the gradient on unchanged.
    """
    # the usual epsilon, added to the norm, would multiply their gradient by its inverse, e.g. 10⁸
    norms = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / norms.masked_fill(norms == 0, 1.0)
