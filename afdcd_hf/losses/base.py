"""The contract of a distillation loss, and what all of them share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_weight
from ..ops.precision import at_least_float32
from .random_source import RandomSource


class DistillationLoss(nn.Module):
    """Compares what a student and a teacher computed for the same images.

    A loss owns its options and the weights that train beside the student, never a model. It returns named scalars that
    are already weighted; whoever trains adds them up and logs them.

    A subclass takes its options by keyword (a `MapLoss` the two channel counts first, by position), hands them to
    `super().__init__`, which checks them and keeps each as an attribute of its name, and defines `compute`.

    What holds for all of ours: the teacher gets no gradient; its map or logits are resized bilinearly
    (align_corners=False) to the student's; a term of weight 0 is not computed, and what it alone needs is not built
    (DistributedDataParallel stops at weights that take no part); layers run in the caller's autocast, everything else
    in float32, or in float64 where that is what comes in.

    Bad options, channels, maps, logits or labels raise ValueError: options and channels in the constructor, the others
    in `forward`.

    Attributes:
        name: what a recipe calls the loss; by default the class's name.
        map_terms: name of each term on feature maps, with the option that weighs it.
        logits_terms: likewise for the terms on logits; with several pairs of maps these are there once.
        checks: option name -> function of its name and value that raises ValueError; weights need no entry.
        needs_feature_map: whether `compute` reads feature maps where none of `map_terms` says so.
        citation: BibTeX of the paper.
    """

    name: ClassVar[str]
    map_terms: ClassVar[Mapping[str, str]] = {}
    logits_terms: ClassVar[Mapping[str, str]] = {}
    checks: ClassVar[Mapping[str, Callable[[str, Any], None]]] = {}
    needs_feature_map: bool = False
    citation: ClassVar[str] = ""

    _source: RandomSource | None = None

    if TYPE_CHECKING:  # options and layers, of which the constructors make attributes

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__dict__.get("name", cls.__name__)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.check_options(options)
        self._options = options
        self.needs_feature_map = self.reads_map(options)
        for name, value in options.items():
            setattr(self, name, value)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise ValueError for a bad option; takes all keyword-only ones, and needs no channel counts."""
        for option in (*cls.map_terms.values(), *cls.logits_terms.values()):
            check_weight(option, options[option])
        for option, check in cls.checks.items():
            check(option, options[option])

    @classmethod
    def reads_map(cls, options: Mapping[str, Any]) -> bool:
        """Whether a loss with these options (defaults for the others) reads feature maps."""
        return cls.needs_feature_map and (
            not cls.map_terms or any(options.get(option) != 0 for option in cls.map_terms.values())
        )

    @property
    def reads_teacher_logits(self) -> bool:
        """Whether `forward` may read the teacher's logits; where no loss does, the teacher runs no further than its
        maps."""
        return not self.map_terms or bool(self.switched_on(self.logits_terms))

    @property
    def generator(self) -> torch.Generator | None:
        """Where the loss draws random numbers from, on the device of the maps; None for torch's global generator.

        Setting it sets it for the losses inside too. It is no part of the state dict or the configuration.
        """
        return None if self._source is None else self._source.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        source = None if generator is None else RandomSource(generator)
        for module in self.modules():
            if isinstance(module, DistillationLoss):
                module._source = source

    @property
    def citations(self) -> list[str]:
        """BibTeX of every paper that the loss comes from."""
        return [self.citation] if self.citation else []

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the weighted terms.

        Args:
            student: logits `(B, K, h, w)` and, where needed, the map `(B, Cs, h', w')`; gradients flow into these.
            teacher: the same of the teacher; never receives a gradient.
            labels: `(B, H, W)` int64, for losses that read them.

        Returns:
            One scalar per term; terms of weight 0 are left out.
        """
        weights = self.switched_on({**self.map_terms, **self.logits_terms})
        terms = self.compute(student, teacher, labels) if weights else {}
        return {name: weight * terms[name] for name, weight in weights.items()}

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        """The terms before weighting, at least those of a weight above 0; arguments as for `forward`."""
        raise NotImplementedError(f"{type(self).__name__} does not define compute.")

    def switched_on(self, terms: Mapping[str, str]) -> dict[str, float]:
        """The weight of each term whose weight is above 0."""
        weights = {term: getattr(self, option) for term, option in terms.items()}
        return {term: weight for term, weight in weights.items() if weight > 0}

    def logits(self, student: Activations, teacher: Activations) -> tuple[Tensor, Tensor]:
        """Both models' logits in float32 or float64, `(B, K, h, w)` each: the student's size, the teacher's detached.

        Raises:
            ValueError: logits of different batch sizes or numbers of classes.
        """
        ours, theirs = student.logits, teacher.logits
        if ours is None or theirs is None or ours.ndim != 4 or theirs.ndim != 4 or len(ours) != len(theirs):
            shapes = [None if each is None else tuple(each.shape) for each in (ours, theirs)]
            raise ValueError(
                f"student logits {shapes[0]} and teacher logits {shapes[1]} must both be (B, K, h, w) of one batch."
            )
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(
                f"the student has {ours.shape[1]} classes and the teacher {theirs.shape[1]}; the loss {self.name!r} "
                f"needs the same classes in both: use a teacher trained on this data, or leave {self.name!r} out of "
                "the loss."
            )
        return comparable(ours, theirs)

    def get_config_dict(self) -> dict[str, Any]:
        """The constructor's arguments, ready for JSON."""
        return dict(self._options)


def comparable(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps `(B, C, h, w)` in float32 or float64; the teacher's without gradient, at the student's size."""
    student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
    if teacher.shape[-2:] != student.shape[-2:]:
        teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    return student, teacher


def option_defaults(loss: type[DistillationLoss]) -> dict[str, Any]:
    """The keyword-only arguments of a loss with their defaults; `inspect.Parameter.empty` where there is none."""
    parameters = inspect.signature(loss).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A constructor's arguments, from its `locals()` before it sets a variable, for `super().__init__`."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}
