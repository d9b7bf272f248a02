"""Losses on logits: KD, DIST, and BPKD, which treats borders and areas separately."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..citations import bibtex
from ..features import Activations
from ..ops.checks import check_flag, check_ignore_index, check_positive, check_whole, optional
from ..ops.precision import in_float32
from .base import DistillationLoss, kl_divergences, option


@in_float32
def kd_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute L of `KDLoss` for two `(B, K, h, w)`."""
    return temperature**2 * kl_divergences(student_logits, teacher_logits, temperature, dim=1).mean()


class KDLoss(DistillationLoss):
    """The teacher's class distributions at each pixel as soft labels (Hinton et al., 2015).

        L = T² / (B·h·w) · Σ_pixels KL(softmax(teacher / T) ‖ softmax(student / T))

    Compares the models' own low-resolution logits, not the upsampled ones, as the released Af-DCD code does. Every
    pixel counts, ignored labels included. With `standardize=True` both are standardised over the classes at each pixel
    first: LSKD (Sun et al., CVPR 2024, arXiv 2403.01427), whose weight for segmentation has not been published.

    Relations: AfDcdLoss compares feature maps; the paper adds both.

    Args:
        temperature: T; None means 1, or with `standardize` LSKD's base temperature 2.
        standardize: compare standardised logits.
    """

    name = "kd"
    logits_terms = {"kd": "weight"}
    citation = bibtex("hinton2015distilling")

    weight: float = option(default=1.0)
    temperature: float | None = option(default=None, check=optional(check_positive))
    standardize: bool = option(default=False, check=check_flag)

    def build(self) -> None:
        if self.temperature is None:
            self.temperature = self._options["temperature"] = 2.0 if self.standardize else 1.0

    @property
    def citations(self) -> list[str]:
        return [self.citation, bibtex("sun2024logit")] if self.standardize else [self.citation]

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(student, teacher)
        if self.standardize:
            if logits[0].shape[1] < 2:
                raise ValueError("kd.standardize divides by the spread over classes and needs 2 classes; there is 1.")
            logits = standardized(logits[0]), standardized(logits[1])
        return {"kd": kd_divergence(*logits, self.temperature)}


def standardized(logits: Tensor) -> Tensor:
    """Subtract the mean over classes and divide by their standard deviation (with K - 1), at each pixel."""
    # LSKD's authors add this epsilon to a pixel's standard deviation
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def pearson_distance(student: Tensor, teacher: Tensor, dim: int) -> Tensor:
    """Average `1 - ρ` over all vectors along `dim` of two `(N, K)`; ρ is Pearson's correlation coefficient.

    Constant vectors have no correlation: they count as 1 and get no gradient.
    """
    student, teacher = _deviations(student, dim), _deviations(teacher, dim)
    norms = student.norm(dim=dim) * teacher.norm(dim=dim)
    # the epsilon fades out classes to which neither model gives any probability
    return 1 - ((student * teacher).sum(dim) / (norms + 1e-8)).mean()


def _deviations(vectors: Tensor, dim: int) -> Tensor:
    deviations = vectors - vectors.mean(dim, keepdim=True)
    # what is left of a constant vector after float32 has rounded its mean
    constant = deviations.norm(dim=dim, keepdim=True) <= 1e-6 * vectors.norm(dim=dim, keepdim=True)
    return deviations.masked_fill(constant, 0.0)


@in_float32
def relation_terms(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute L_inter and L_intra of `DISTLoss` for two `(B, K, h, w)`."""
    student, teacher = (
        F.softmax(logits / temperature, dim=1).movedim(1, -1).flatten(0, 2)  # (B·h·w, K)
        for logits in (student_logits, teacher_logits)
    )
    inter, intra = pearson_distance(student, teacher, dim=1), pearson_distance(student, teacher, dim=0)
    return temperature**2 * inter, temperature**2 * intra


class DISTLoss(DistillationLoss):
    """Relations between and within classes (Huang et al., NeurIPS 2022).

    With Y = softmax(logits / T) as a matrix of B·h·w pixels by K classes, and ρ Pearson's correlation:

        L_inter = T² · mean over pixels  of 1 - ρ(Ys[i, :], Yt[i, :])
        L_intra = T² · mean over classes of 1 - ρ(Ys[:, k], Yt[:, k])

    Compares the models' own low-resolution logits. Every pixel counts, ignored labels included. On several processes,
    each one computes L_intra over the pixels of its own images. The defaults are those published for Cityscapes.

    Relations: KDLoss matches probabilities; this matches them up to scale and shift.
    """

    name = "dist"
    logits_terms = {"dist_inter": "inter_weight", "dist_intra": "intra_weight"}
    citation = bibtex("huang2022knowledge")

    inter_weight: float = option(default=1.0)
    intra_weight: float = option(default=1.0)
    temperature: float = option(default=1.0, check=check_positive)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(student, teacher)
        if logits[0].shape[1] < 2:
            raise ValueError("the loss 'dist' correlates class probabilities and needs 2 classes; there is 1.")
        return dict(zip(self.logits_terms, relation_terms(*logits, self.temperature), strict=True))


def split_by_borders(members: Tensor, size: Sequence[int], edge_width: int) -> tuple[Tensor, Tensor]:
    """Split labelled positions into those within `edge_width` of another class and the rest, each `(B, h·w)` bool.

    `members` are `(B, K, h·w)` bool. Positions without a class are in neither part, and make no border.
    """
    near = F.max_pool2d(members.unflatten(2, size).float(), 2 * edge_width + 1, stride=1, padding=edge_width)
    several = near.sum(1).flatten(1) > 1  # (B, h·w), classes within reach
    labelled = members.any(1)
    return labelled & several, labelled & ~several


@in_float32
def edge_divergence(student_logits: Tensor, teacher_logits: Tensor, edge: Tensor, temperature: float) -> Tensor:
    """Compute L_edge of `BPKDLoss` over the positions of `edge` `(B, h·w)` bool; 0 if there are none."""
    divergences = kl_divergences(student_logits.flatten(2), teacher_logits.flatten(2), temperature, dim=1)  # (B, h·w)
    return temperature**2 * divergences.masked_fill(~edge, 0.0).sum() / edge.sum().clamp(min=1)


@in_float32
def body_divergence(student_logits: Tensor, teacher_logits: Tensor, body: Tensor, temperature: float) -> Tensor:
    """Compute L_body of `BPKDLoss` over the positions of `body` `(B, h·w)` bool; images without any do not count."""
    # masked before the softmax: no weight there, and differences of logarithms stay finite
    student, teacher = (
        (each.flatten(2) / temperature).masked_fill(~body.unsqueeze(1), -1e30)
        for each in (student_logits, teacher_logits)
    )
    divergences = kl_divergences(student, teacher, temperature=1.0, dim=2)  # (B, K)
    counted = body.any(1).sum().clamp(min=1) * divergences.shape[1]
    return temperature**2 * divergences.sum() / counted


class BPKDLoss(DistillationLoss):
    """Boundary privileged distillation, after Liu et al., WACV 2024 (arXiv 2306.08075).

    The labels, resized to the logits' size (nearest), split the positions into an edge, the band within `edge_width`
    of another class, and the body, all other labelled positions.

        L_edge = T² · mean over the edge of KL(softmax(teacher / T) ‖ softmax(student / T)), over the classes
        L_body = T² · mean over images and classes of the same KL over the positions of the body

    The idea is the paper's. We could not check its band width, weights, temperatures, or whether each class has its own
    band: the defaults are ours, from KD (edge) and CWD on logits (body), and results are not those of the paper.

    Relations: without borders, L_body is CWDLoss on logits; if every position is an edge, L_edge is KDLoss.

    Args:
        edge_width: positions of the logits' grid on either side of a border; 1 is 8 pixels at output stride 8.
        ignore_index: label that belongs to neither part; None if there is none.
    """

    name = "bpkd"
    logits_terms = {"bpkd_edge": "edge_weight", "bpkd_body": "body_weight"}
    citation = bibtex("liu2024bpkd")

    edge_weight: float = option(default=1.0)
    body_weight: float = option(default=3.0)
    edge_temperature: float = option(default=1.0, check=check_positive)
    body_temperature: float = option(default=4.0, check=check_positive)
    edge_width: int = option(default=1, check=check_whole)
    ignore_index: int | None = option(default=255, check=check_ignore_index)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        logits = self.logits(student, teacher)
        size = logits[0].shape[-2:]
        with torch.no_grad():
            edge, body = split_by_borders(self.members(student, labels, size), size, self.edge_width)
        return {
            "bpkd_edge": edge_divergence(*logits, edge, temperature=self.edge_temperature),
            "bpkd_body": body_divergence(*logits, body, temperature=self.body_temperature),
        }
