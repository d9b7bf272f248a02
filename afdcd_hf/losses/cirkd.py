"""CIRKD: how pixels relate to those of other images, of the batch and of a memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_positive, check_weight, check_whole
from ..ops.precision import without_autocast
from .gathering import gather_batch
from .label_maps import check_ignore_index, check_labels, class_members
from .map_loss import MapLoss, unit_vectors
from .queues import ClassQueues, pixels_of_classes, regions_of_classes

MEMORY_WEIGHTS = ("pixel_weight", "region_weight")


def relation_divergence(student_relation: Tensor, teacher_relation: Tensor, temperature: float) -> Tensor:
    """Mean over rows of `KL(softmax(teacher / τ) ‖ softmax(student / τ))`.

    Args:
        student_relation: `(..., M)` similarities, float32 or float64; a row is the last dimension.
        teacher_relation: the same.
        temperature: τ, above 0.

    Returns:
        A scalar, 0 where the relations agree (up to a constant a row).
    """
    student = F.log_softmax(student_relation / temperature, dim=-1)
    teacher = F.log_softmax(teacher_relation / temperature, dim=-1)
    rows = student[..., 0].numel()
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / rows


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
        relation_divergence(_cosines(own, all_student), _cosines(taught, all_teacher), temperature)
        for own, taught in zip(student, teacher, strict=True)
    ]
    return torch.stack(divergences).mean()


def _cosines(own: Tensor, others: Tensor) -> Tensor:
    return torch.einsum("ac,nbc->anb", own, others)


class CIRKDLoss(MapLoss):
    """Cross-image relations (Yang et al., CVPR 2022).

    All vectors have length 1; σ is a softmax with temperature τ; pixels are those of the map. Three terms, each the
    mean over pixels of KL(σ(teacher's similarities) ‖ σ(student's similarities)):

        minibatch: of each pixel with all pixels of one image of the batch, mean over all ordered pairs of images
        pixel:     of head(student's pixel) and of the teacher's pixel with teacher's pixels drawn from the memory
        region:    the same with teacher's regions, the mean vectors of one class in one image

    `head` is a 1×1 convolution Cs → Ct – BN – ReLU – 1×1 convolution. The memory has a queue a class. At each step it
    takes in, first, up to `pixels_per_image` pixels of each class and one region of each class from each image of the
    batch, and is drawn from, equally from all classes seen so far. Labels are taken at the map's size (nearest); what
    is not in 0 to num_classes-1 is not taken in. A teacher map of another size is resized bilinearly
    (align_corners=False). float32 inside, also under autocast. A pass without gradients leaves the memory as it is.

    On several processes the images of all of them make the batch, with gradients through the student's side, and all
    hold the same memory; each has to have equally many images. Head and queues are in the state dict. The queues take
    4·K·(pixel_queue + region_queue)·Ct bytes: 428 MB for 19 classes and a head of 256 channels, but 3.4 GB for the 2048
    channels of a ResNet's last map, and each checkpoint as much: choose smaller queues there.
    Distils maps (the head's last in the paper: `head.features` in our networks); published: weights 1, 0.1 and 0.1 and
    the options' defaults, but for `pool_size`, which is ours to keep the matrices of all pairs small.

    Relations: the similarities of SKDLoss are inside one image, and compared by their squared difference.

    Args:
        student_channels: Cs.
        teacher_channels: Ct.
        minibatch_weight: at least 0.
        pixel_weight: at least 0.
        region_weight: at least 0.
        num_classes: K; needed where `pixel_weight` or `region_weight` is above 0. In a recipe it may be left out:
            `build_loss` gets it from the networks.
        ignore_index: a label that is not taken in either; None where all of 0 to K-1 are.
        temperature: τ, above 0.
        pool_size: side of the cells averaged before the minibatch term, the last ones smaller where the size does not
            divide; 1 for none. The matrices have N·(h·w / pool_size²)² numbers an image, N images in the batch.
        pixel_queue: pixels kept a class.
        region_queue: regions kept a class.
        pixels_per_image: pixels taken in a class and image.
        pixel_draws: pixels drawn a step.
        region_draws: regions drawn a step.

    Raises:
        ValueError: a bad value, or no `num_classes` where it is needed; in `forward`, maps that are missing or of the
            wrong channels, another number of classes in the logits, or no labels for the memory.
    """

    citation = """@inproceedings{yang2022cross,
  title     = {Cross-Image Relational Knowledge Distillation for Semantic Segmentation},
  author    = {Yang, Chuanguang and Zhou, Helong and An, Zhulin and Jiang, Xue and Xu, Yongjun and Zhang, Qian},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}"""

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
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
        super().__init__(student_channels, teacher_channels)
        self.minibatch_weight, self.pixel_weight, self.region_weight = minibatch_weight, pixel_weight, region_weight
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.temperature, self.pool_size = temperature, pool_size
        self.pixel_queue, self.region_queue, self.pixels_per_image = pixel_queue, region_queue, pixels_per_image
        self.pixel_draws, self.region_draws = pixel_draws, region_draws
        self.check_arguments(self.get_config_dict())
        self.check_channels()
        if num_classes is None and (pixel_weight > 0 or region_weight > 0):
            raise ValueError(
                "missing cirkd.num_classes: the memory has a queue for each class. Give the number of classes, or "
                "leave the memory out with pixel_weight=0 and region_weight=0."
            )
        # what no term needs is not made: DDP stops at weights that take no part
        if pixel_weight > 0 or region_weight > 0:
            self.head = _projection_head(student_channels, teacher_channels)
        if pixel_weight > 0:
            self.pixels = ClassQueues(num_classes, pixel_queue, teacher_channels)
        if region_weight > 0:
            self.regions = ClassQueues(num_classes, region_queue, teacher_channels)

    @staticmethod
    def check_arguments(arguments: Mapping[str, Any]) -> None:
        for name in ("minibatch_weight", *MEMORY_WEIGHTS):
            check_weight(name, arguments[name])
        check_positive("temperature", arguments["temperature"])
        check_ignore_index(arguments["ignore_index"])
        for name in ("pool_size", "pixel_queue", "region_queue", "pixels_per_image", "pixel_draws", "region_draws"):
            check_whole(name, arguments[name])
        if arguments["num_classes"] is not None:
            check_whole("num_classes", arguments["num_classes"])

    def forward(self, student: Activations, teacher: Activations, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the terms `cirkd_minibatch`, `cirkd_pixel` and `cirkd_region` whose weight is above 0.

        Args:
            student: see `DistillationLoss.forward`.
            teacher: likewise.
            labels: `(B, H, W)` int64; not needed for the minibatch term alone.
        """
        weights = {"minibatch": self.minibatch_weight, "pixel": self.pixel_weight, "region": self.region_weight}
        if not any(weights.values()):
            return {}
        with without_autocast(student.logits):
            maps = self.maps("cirkd", student, teacher)
            terms = {}
            if self.minibatch_weight > 0:
                terms["minibatch"] = self._minibatch_term(*maps)
            if self.pixel_weight > 0 or self.region_weight > 0:
                check_labels("cirkd", labels, student.logits)
                self._check_classes(student.logits)
                terms |= self._memory_terms(*maps, labels)
            return {f"cirkd_{name}": weights[name] * term for name, term in terms.items()}

    def _minibatch_term(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        student, teacher = (
            _pixels(F.avg_pool2d(each, self.pool_size, ceil_mode=True)) for each in (student_map, teacher_map)
        )
        return cross_image_divergence(
            student, teacher, _of_all_processes(student), _of_all_processes(teacher), self.temperature
        )

    def _memory_terms(self, student_map: Tensor, teacher_map: Tensor, labels: Tensor) -> dict[str, Tensor]:
        student, teacher = _pixels(self.head(student_map)), _pixels(teacher_map)  # (B, h·w, Ct)
        if torch.is_grad_enabled():
            self._remember(teacher, class_members(labels, self.num_classes, teacher_map.shape[-2:], self.ignore_index))
        terms = {}
        for name, draws in (("pixel", self.pixel_draws), ("region", self.region_draws)):
            if hasattr(self, f"{name}s"):
                memory = getattr(self, f"{name}s").draw(self._uniform(teacher.new_empty(draws)))  # (draws, Ct)
                relations = student @ memory.to(student).T, teacher @ memory.to(teacher).T  # (B, h·w, draws)
                terms[name] = relation_divergence(*relations, self.temperature)
        return terms

    @torch.no_grad()
    def _remember(self, teacher: Tensor, members: Tensor) -> None:
        if self.pixel_weight > 0:
            chosen = pixels_of_classes(teacher, members, self.pixels_per_image, self._uniform(teacher[..., 0]))
            self.pixels.append(*map(gather_batch, chosen))
        if self.region_weight > 0:
            self.regions.append(*map(gather_batch, regions_of_classes(teacher, members)))

    def _uniform(self, like: Tensor) -> Tensor:
        if self._source is None:
            return torch.rand(like.shape, device=like.device)
        return self._source.uniform(like)

    def _check_classes(self, logits: Tensor) -> None:
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"the networks have {logits.shape[1]} classes and cirkd.num_classes is {self.num_classes}; give "
                f"num_classes={logits.shape[1]}."
            )


def _projection_head(student_channels: int, teacher_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False),
        nn.BatchNorm2d(teacher_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(teacher_channels, teacher_channels, kernel_size=1),
    )


def _pixels(feature_map: Tensor) -> Tensor:
    """`(B, C, h, w)` to vectors of length 1, `(B, h·w, C)`."""
    return unit_vectors(feature_map.flatten(2).transpose(1, 2), dim=2)


def _of_all_processes(vectors: Tensor) -> Tensor:
    # Without gradients the loss is only tried out: before training, on the CPU, where nccl could gather nothing.
    return gather_batch(vectors) if torch.is_grad_enabled() else vectors
