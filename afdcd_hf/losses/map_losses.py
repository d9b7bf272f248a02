"""Stand-alone losses on feature maps: FitNet, attention transfer, SKD, IFVD and CWD."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..citations import bibtex
from ..features import Activations
from ..ops.checks import check_flag, check_ignore_index, check_positive, check_whole
from ..ops.precision import in_float32
from .base import MapLoss, kl_divergences, option, unit_vectors
from .logit_losses import kd_divergence


@in_float32
def hint_error(student_map: Tensor, teacher_map: Tensor, normalize: bool = False) -> Tensor:
    """Compute the mean squared error of two `(B, C, h, w)`, as they are or standardised per image and channel."""
    maps = (normalized(each) for each in (student_map, teacher_map)) if normalize else (student_map, teacher_map)
    return F.mse_loss(*maps)


def normalized(feature_map: Tensor) -> Tensor:
    """Standardise each image and channel of `(B, C, h, w)` by its mean and standard deviation over h·w."""
    variance, mean = torch.var_mean(feature_map, dim=(2, 3), correction=0, keepdim=True)
    return (feature_map - mean) * torch.rsqrt(variance + 1e-5)  # keeps gradients of nearly constant channels finite


class FitNetLoss(MapLoss):
    """Plain mimicking of the teacher's map (Romero et al., ICLR 2015).

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        L = Σ (align(S) - T)² / (B·Ct·h·w)

    `align` is a 1×1 convolution with bias, or the identity if Cs = Ct. The paper takes ½ times the sum where this
    is a mean, and uses the term to initialise the student; here it acts from the first step to the last, as in the
    segmentation papers that compare with it, with weights of 1 to 10 on the head's last map. Every position counts.

    With `normalize=True` align(S) and T are standardised over h and w, per image and channel, before they are compared:
    NFD (Liu et al., 2022, arXiv 2207.05256), which ignores magnitudes. We do not know its weight.

    Relations: AfDcdLoss with `contrast_weight=0` hides positions first and lets 3×3 convolutions restore them; CWDLoss
    compares where a channel is active, not how strongly.

    Args:
        normalize: compare standardised maps.
    """

    name = "fitnet"
    map_terms = {"fitnet": "weight"}
    citation = bibtex("romero2015fitnets")

    weight: float = option(default=1.0)
    normalize: bool = option(default=False, check=check_flag)

    def build(self) -> None:
        if self.weight > 0:
            self.align = self.new_align()

    @property
    def citations(self) -> list[str]:
        return [self.citation, bibtex("liu2022normalized")] if self.normalize else [self.citation]

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        student_map, teacher_map = self.maps(student, teacher)
        return {"fitnet": hint_error(self.align(student_map), teacher_map, normalize=self.normalize)}


def attention(feature_map: Tensor) -> Tensor:
    """Average the squares over the channels of `(B, C, h, w)` to a unit vector `(B, h·w)` per image, or zeros."""
    return unit_vectors(feature_map.square().mean(dim=1).flatten(start_dim=1), dim=1)


@in_float32
def attention_error(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Compute L of `AttentionTransferLoss` for `(B, Cs, h, w)` and `(B, Ct, h, w)`."""
    return F.mse_loss(attention(student_map), attention(teacher_map))


class AttentionTransferLoss(MapLoss):
    """Activation-based attention transfer (Zagoruyko and Komodakis, ICLR 2017).

    With student map S `(B, Cs, h, w)` and teacher map T `(B, Ct, h, w)`:

        Q(F) = Σ_c F_c² / C, flattened to (B, h·w) and divided by its L2 norm, image by image
        L    = Σ (Q(S) - Q(T))² / (B·h·w)

    Channels may differ: the loss has no weights to train. As Q has length 1, L is at most 2 / (h·w), hence the large
    weight, which suits one size of map. Every position counts. The paper writes the norm of the difference; its
    authors' code and this take the mean of squares. The default weight is the published one, for the head's last map,
    together with KD.

    Relations: CWDLoss compares where each channel is active; this compares where all of them together are.
    """

    name = "at"
    map_terms = {"at": "weight"}
    citation = bibtex("zagoruyko2017attention")

    weight: float = option(default=10_000.0)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        return {"at": attention_error(*self.maps(student, teacher))}


def similarities(feature_map: Tensor) -> Tensor:
    """Compute cosines of all pairs of positions of an image, `(B, C, h, w)` to `(B, h·w, h·w)`; 0 for zero vectors."""
    units = unit_vectors(feature_map.flatten(start_dim=2), dim=1)  # (B, C, N)
    return units.transpose(1, 2) @ units  # (B, N, N)


@in_float32
def pairwise_error(student_map: Tensor, teacher_map: Tensor, pool_size: int = 2) -> Tensor:
    """Compute L_pairwise of `SKDLoss` for two maps `(B, C, h, w)`, including cells cut off at the right and bottom."""
    pooled = [F.max_pool2d(each, pool_size, ceil_mode=True) for each in (student_map, teacher_map)]
    return F.mse_loss(similarities(pooled[0]), similarities(pooled[1]))


class SKDLoss(MapLoss):
    """Structured knowledge distillation (Liu et al., CVPR 2019) without its adversarial part.

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and logits `(B, K, h', w')`:

        a_ij(F)     = cosine of the vectors at positions i and j of maxpool(F)
        L_pairwise  = Σ (a_ij(S) - a_ij(T))² / (B·N²), over pairs of the N = ⌈h / pool⌉·⌈w / pool⌉ positions
        L_pixelwise = Σ_pixels KL(softmax(teacher) ‖ softmax(student)) / (B·h'·w')

    The third, "holistic" part, a discriminator trained against the student, is left out, so results are not those of
    the full method.

    Channels may differ: the loss has no weights to train. Every position counts. Memory: two `(B, N, N)`
    matrices and their gradient, N = 2048 for a map of 64×128. The defaults come from later scripts comparing with it,
    for the head's last map; the authors' own weights are 1 and 10, pooled to 2×2 positions (half the map's sides).

    Relations: L_pixelwise is KDLoss at temperature 1. In a sum with it (`loss: kd+skd`) set `pixelwise_weight=0`, or
    logits are compared twice. IFVDLoss compares similarities of positions to the centres of their classes instead of
    to each other.

    Args:
        pool_size: side of the pooled cells of L_pairwise; 1 for no pooling.
    """

    name = "skd"
    map_terms = {"skd_pairwise": "pairwise_weight"}
    logits_terms = {"skd_pixelwise": "pixelwise_weight"}
    citation = bibtex("liu2019structured")

    pairwise_weight: float = option(default=10.0)
    pixelwise_weight: float = option(default=1.0)
    pool_size: int = option(default=2, check=check_whole)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        terms = {}
        if self.pairwise_weight > 0:
            terms["skd_pairwise"] = pairwise_error(*self.maps(student, teacher), pool_size=self.pool_size)
        if self.pixelwise_weight > 0:
            terms["skd_pixelwise"] = kd_divergence(*self.logits(student, teacher))
        return terms


def centre_similarity(feature_map: Tensor, members: Tensor) -> Tensor:
    """Compute the cosine `(B, h·w)` of each position and the mean of its class in the same image; 0 without a class."""
    vectors = feature_map.flatten(start_dim=2)  # (B, C, N)
    sums = members @ vectors.transpose(1, 2)  # (B, K, C), with the means' directions
    similarity = unit_vectors(sums, dim=2) @ unit_vectors(vectors, dim=1)  # (B, K, N)
    return (members * similarity).sum(dim=1)


@in_float32
def variation_error(student_map: Tensor, teacher_map: Tensor, members: Tensor) -> Tensor:
    """Compute L of `IFVDLoss`; `members` are `(B, K, h·w)` bool."""
    members = members.to(student_map.dtype)
    return F.mse_loss(centre_similarity(student_map, members), centre_similarity(teacher_map, members))


class IFVDLoss(MapLoss):
    """Intra-class feature variation distillation (Wang et al., ECCV 2020) without its adversarial part.

    With student map S `(B, Cs, h, w)`, teacher map T `(B, Ct, h, w)` and the labels resized to h×w (nearest):

        m_p(F) = cosine of the vector at position p and the mean over all positions of its class in its image
        L      = Σ_p (m_p(S) - m_p(T))² / (B·h·w)

    Positions without a class add 0 but count in the divisor, as in the authors' code. The gradient also flows through
    the student's centres. Channels may differ: the loss has no weights to train. The discriminator is left out, as in
    SKDLoss. The default weight comes from later scripts that compare with it, for the head's last map, together with
    KD; the authors' is 200, with 10 times KD.

    Relations: SKDLoss compares similarities of all pairs of positions and reads no labels; this compares one number
    per position.

    Args:
        ignore_index: label that belongs to no class; labels outside 0 ... K - 1 never do. None if there is none.
    """

    name = "ifvd"
    map_terms = {"ifvd": "weight"}
    citation = bibtex("wang2020intra")

    weight: float = option(default=20.0)
    ignore_index: int | None = option(default=255, check=check_ignore_index)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        maps = self.maps(student, teacher)
        return {"ifvd": variation_error(*maps, self.members(student, labels, maps[0].shape[-2:]))}


@in_float32
def channel_wise_divergence(student_map: Tensor, teacher_map: Tensor, temperature: float = 4.0) -> Tensor:
    """Compute L of `CWDLoss` for two `(B, C, h, w)`."""
    return temperature**2 * kl_divergences(student_map.flatten(2), teacher_map.flatten(2), temperature, dim=2).mean()


class CWDLoss(MapLoss):
    """Channel-wise divergence (Shu et al., ICCV 2021), on maps, on logits, or on both.

    For a pair of maps or logits S, T `(B, C, h, w)` and temperature τ:

        φ(F)_c = softmax over the h·w positions of F_c / τ
        L      = τ² / (B·C) · Σ_c KL(φ(T)_c ‖ φ(S)_c)

    On maps, S is align(S): a 1×1 convolution with bias, or the identity if the channels are equal. On logits, a channel
    is a class. Every position counts. The defaults are the published ones, for the head's last map, together with KD. C
    is Ct, as in the authors' code; CIRKD's divides by Cs, so that its 50 acts like 100 here for 128 → 256 channels.

    Relations: KDLoss normalises over classes at each pixel; this normalises over pixels in each channel.
    AttentionTransferLoss puts all channels into one map first.
    """

    name = "cwd"
    map_terms = {"cwd_map": "map_weight"}
    logits_terms = {"cwd_logits": "logits_weight"}
    citation = bibtex("shu2021channel")

    map_weight: float = option(default=50.0)
    logits_weight: float = option(default=3.0)
    map_temperature: float = option(default=4.0, check=check_positive)
    logits_temperature: float = option(default=4.0, check=check_positive)

    def build(self) -> None:
        if self.map_weight > 0:
            self.align = self.new_align()

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        terms = {}
        if self.map_weight > 0:
            student_map, teacher_map = self.maps(student, teacher)
            terms["cwd_map"] = channel_wise_divergence(self.align(student_map), teacher_map, self.map_temperature)
        if self.logits_weight > 0:
            logits = self.logits(student, teacher)
            terms["cwd_logits"] = channel_wise_divergence(*logits, self.logits_temperature)
        return terms
