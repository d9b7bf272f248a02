"""CIRKD: how pixels relate to those of other images, of the batch and of a memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_positive, check_whole
from ..ops.precision import in_float32
from .base import given
from .gathering import gather_batch
from .label_maps import check_ignore_index, check_labels, class_members
from .map_loss import MapLoss, unit_vectors
from .queues import ClassQueues, pixels_of_classes, regions_of_classes
from .random_source import uniform

SIZES = ("pool_size", "pixel_queue", "region_queue", "pixels_per_image", "pixel_draws", "region_draws")


def row_divergences(student_relation: Tensor, teacher_relation: Tensor, temperature: float) -> Tensor:
    """`KL(softmax(teacher / τ) ‖ softmax(student / τ))` of each row of two `(..., M)` similarities: `(...)`."""
    student = F.log_softmax(student_relation / temperature, dim=-1)
    teacher = F.log_softmax(teacher_relation / temperature, dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


@in_float32
def cross_image_divergence(
    student: Tensor, teacher: Tensor, all_student: Tensor, all_teacher: Tensor, temperature: float
) -> Tensor:
    """Mean over pairs of images, and over the pixels of the first, of the divergence of their similarities.

    Args:
        student: `(B, A, Cs)` vectors of length 1 of A pixels of this process's images.
        teacher: `(B, A, Ct)`, the same.
        all_student: `(N, A, Cs)` of the images of all processes; N = B with one process.
        all_teacher: `(N, A, Ct)`.
        temperature: τ, above 0.

    Returns:
        A scalar, 0 where all cosines agree.
    """
    divergences = [
        # (A, N, A): a row holds the cosines of one pixel with all pixels of one image
        row_divergences(_cosines(own, all_student), _cosines(taught, all_teacher), temperature).mean()
        for own, taught in zip(student, teacher, strict=True)
    ]
    return torch.stack(divergences).mean()


@in_float32
def memory_divergence(student: Tensor, teacher: Tensor, memory: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Mean over the anchors of the divergence of their similarities to what was drawn from the memory.

    Args:
        student: `(B, A, C)` vectors of length 1.
        teacher: the same.
        memory: `(M, C)`.
        anchors: `(B, A)` bool.
        temperature: τ, above 0.

    Returns:
        A scalar, 0 without any anchor.
    """
    memory = memory.to(student.dtype)
    divergences = row_divergences(student @ memory.T, teacher @ memory.T, temperature)  # (B, A)
    return divergences.masked_fill(~anchors, 0.0).sum() / anchors.sum().clamp(min=1)


def _cosines(own: Tensor, others: Tensor) -> Tensor:
    return torch.einsum("ac,nbc->anb", own, others)


class CIRKDLoss(MapLoss):
    """Cross-image relations (Yang et al., CVPR 2022).

    All vectors have length 1; σ is a softmax with temperature τ; pixels are those of the map. Three terms, each the
    mean over pixels of KL(σ(teacher's similarities) ‖ σ(student's similarities)):

        minibatch: of each pixel with all pixels of one image of the batch, mean over all ordered pairs of images
        pixel:     of head(student's pixel) and of the teacher's pixel with teacher's pixels drawn from the memory
        region:    the same with teacher's regions, the mean vectors of one class in one image

    `head` is a 1×1 convolution Cs → Ct – BN – ReLU – 1×1 convolution. Labels are taken at the map's size (nearest); a
    pixel whose label is ignored or not in 0 to num_classes-1 counts in the minibatch term alone. The memory has a queue
    a class. At each step it takes in, first, up to `pixels_per_image` pixels of each class and one region of each class
    from each image of the batch, and is drawn from, equally from all classes seen so far. A pass without gradients
    leaves the memory as it is.

    On several processes the images of all of them make the batch, with gradients through the student's side, and all
    hold the same memory; each has to have equally many images. Head and queues are in the state dict. The queues take
    4·K·(pixel_queue + region_queue)·Ct bytes: 428 MB for 19 classes and a head of 256 channels, but 3.4 GB for the 2048
    channels of a ResNet's last map, and each checkpoint as much: choose smaller queues there.

    Published: weights 1, 0.1 and 0.1 and the options' defaults, for the head's last map (`head.features` in our
    models). Unlike the authors' code, the head's last convolution has a bias; draws come, with replacement, from the
    filled part of the queues of classes seen so far, where theirs take as many from each class's whole queue; and maps
    are pooled before the minibatch term for every model, to keep the matrices of all pairs small, where theirs are for
    SegFormer alone.

    Relations: the similarities of SKDLoss are inside one image, and compared by their squared difference.

    Args:
        minibatch_weight: at least 0.
        pixel_weight: at least 0.
        region_weight: at least 0.
        num_classes: K; needed where `pixel_weight` or `region_weight` is above 0. In a recipe it may be left out:
            `build_loss` gets it from the models.
        ignore_index: a label that is ignored; None where all of 0 to K-1 count.
        temperature: τ, above 0.
        pool_size: side of the cells averaged before the minibatch term, the last ones smaller where the size does not
            divide; 1 for none. The matrices have N·(h·w / pool_size²)² numbers an image, N images in the batch.
        pixel_queue: pixels kept a class.
        region_queue: regions kept a class.
        pixels_per_image: pixels taken in a class and image.
        pixel_draws: pixels drawn a step.
        region_draws: regions drawn a step.
    """

    name = "cirkd"
    map_terms = {
        "cirkd_minibatch": "minibatch_weight",
        "cirkd_pixel": "pixel_weight",
        "cirkd_region": "region_weight",
    }
    checks = {"temperature": check_positive, "ignore_index": check_ignore_index, **dict.fromkeys(SIZES, check_whole)}
    citation = """@inproceedings{yang2022cross,
  title     = {Cross-Image Relational Knowledge Distillation for Semantic Segmentation},
  author    = {Yang, Chuanguang and Zhou, Helong and An, Zhulin and Jiang, Xue and Xu, Yongjun and Zhang, Qian},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}"""

    def __init__(
        self,
        student_channels: int | None,
        teacher_channels: int | None,
        *,
        minibatch_weight: float = 1.0,
        pixel_weight: float = 0.1,
        region_weight: float = 0.1,
        num_classes: int | None = None,
        ignore_index: int | None = 255,
        temperature: float = 0.1,
        pool_size: int = 2,
        pixel_queue: int = 20_000,
        region_queue: int = 2_000,
        pixels_per_image: int = 16,
        pixel_draws: int = 4_096,
        region_draws: int = 1_024,
    ) -> None:
        super().__init__(**given(locals()))
        if pixel_weight == 0 and region_weight == 0:
            return
        if num_classes is None:
            raise ValueError(
                "missing cirkd.num_classes: the memory has a queue for each class. Give the number of classes, or "
                "leave the memory out with pixel_weight=0 and region_weight=0."
            )
        self.head = _projection_head(self.student_channels, self.teacher_channels)
        if pixel_weight > 0:
            self.pixels = ClassQueues(num_classes, pixel_queue, self.teacher_channels)
        if region_weight > 0:
            self.regions = ClassQueues(num_classes, region_queue, self.teacher_channels)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(options)
        if options["num_classes"] is not None:
            check_whole("num_classes", options["num_classes"])

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        maps = self.maps(student, teacher)
        terms = {"cirkd_minibatch": self._minibatch_term(*maps)} if self.minibatch_weight > 0 else {}
        if self.pixel_weight > 0 or self.region_weight > 0:
            labels, logits = check_labels(self.name, labels, student.logits)
            if logits.shape[1] != self.num_classes:
                raise ValueError(
                    f"the models have {logits.shape[1]} classes and cirkd.num_classes is {self.num_classes}; "
                    f"give num_classes={logits.shape[1]}."
                )
            terms |= self._memory_terms(*maps, labels)
        return terms

    def _minibatch_term(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        student, teacher = (
            _pixels(F.avg_pool2d(each, self.pool_size, ceil_mode=True)) for each in (student_map, teacher_map)
        )
        return cross_image_divergence(
            student, teacher, _of_all_processes(student), _of_all_processes(teacher), self.temperature
        )

    def _memory_terms(self, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> dict[str, Tensor]:
        student, teacher = _pixels(self.head(student_map)), _pixels(teacher_map)  # (B, h·w, Ct)
        members = class_members(labels, self.num_classes, teacher_map.shape[-2:], self.ignore_index)  # (B, K, h·w)
        if torch.is_grad_enabled():
            self._remember(teacher, members)
        terms = {}
        for name, draws in (("pixel", self.pixel_draws), ("region", self.region_draws)):
            if hasattr(self, f"{name}s"):
                drawn = getattr(self, f"{name}s").draw(uniform(teacher.new_empty(draws), self._source))  # (draws, Ct)
                terms[f"cirkd_{name}"] = memory_divergence(student, teacher, drawn, members.any(1), self.temperature)
        return terms

    @torch.no_grad()
    def _remember(self, teacher: Tensor, members: Tensor) -> None:
        if self.pixel_weight > 0:
            chosen = pixels_of_classes(teacher, members, self.pixels_per_image, uniform(teacher[..., 0], self._source))
            self.pixels.append(*map(gather_batch, chosen))
        if self.region_weight > 0:
            self.regions.append(*map(gather_batch, regions_of_classes(teacher, members)))


def _projection_head(student_channels: int, teacher_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1),
    )


@in_float32
def _pixels(feature_map: Tensor) -> Tensor:
    """`(B, C, h, w)` to vectors of length 1, `(B, h·w, C)`."""
    return unit_vectors(feature_map.flatten(2).transpose(1, 2), dim=2)


def _of_all_processes(vectors: Tensor) -> Tensor:
    # Without gradients the loss is only tried out: before training, on the CPU, where nccl could gather nothing.
    return gather_batch(vectors) if torch.is_grad_enabled() else vectors
