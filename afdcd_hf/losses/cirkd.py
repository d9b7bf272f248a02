"""CIRKD: how pixels relate to those of other images, of the batch and of a memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..features import Activations
from ..ops.checks import check_ignore_index, check_positive, check_whole, optional
from ..ops.precision import in_float32
from .base import MapLoss, given, kl_divergences, unit_vectors
from .queues import ClassQueues, pixels_of_classes, regions_of_classes
from .random_source import uniform

SIZES = ("pool_size", "pixel_queue", "region_queue", "pixels_per_image", "pixel_draws", "region_draws")


@in_float32
def cross_image_divergence(
    student: Tensor, teacher: Tensor, all_student: Tensor, all_teacher: Tensor, temperature: float
) -> Tensor:
    """Mean over pairs of images, and over the pixels of the first, of the divergence of their similarities.

    Vectors of length 1: `(B, A, Cs)` and `(B, A, Ct)` of A pixels of this process's images, and N instead of B for the
    images of all processes.
    """
    divergences = [
        # (A, N, A): a row holds the cosines of one pixel with all pixels of one image
        kl_divergences(_cosines(own, all_student), _cosines(taught, all_teacher), temperature, dim=-1).mean()
        for own, taught in zip(student, teacher, strict=True)
    ]
    return torch.stack(divergences).mean()


@in_float32
def memory_divergence(student: Tensor, teacher: Tensor, memory: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Mean over the anchors `(B, A)` bool of the divergence of their similarities to vectors `(M, C)` of the memory.

    Student and teacher are `(B, A, C)` of length 1; 0 without any anchor.
    """
    memory = memory.to(student.dtype)
    divergences = kl_divergences(student @ memory.T, teacher @ memory.T, temperature, dim=-1)  # (B, A)
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

    The defaults are the published ones, for the head's last map. Unlike the authors' code, the head's last convolution
    has a bias; draws come, with replacement, from the filled part of the queues of classes seen so far, where theirs
    take as many from each class's whole queue; and maps are pooled before the minibatch term for every model, to keep
    the matrices of all pairs small, where theirs are for SegFormer alone.

    Relations: the similarities of SKDLoss are inside one image, and compared by their squared difference.

    Args:
        num_classes: K; needed for the memory. In a recipe it may be left out: `build_loss` gets it from the models.
        ignore_index: a label that is ignored; None where all of 0 to K-1 count.
        pool_size: side of the cells averaged before the minibatch term, the last ones smaller where the size does not
            divide; 1 for none. The matrices have N·(h·w / pool_size²)² numbers an image, N images in the batch.
        pixel_queue: pixels kept a class.
        region_queue: likewise.
        pixels_per_image: pixels taken in a class and image.
        pixel_draws: pixels drawn a step.
        region_draws: likewise.
    """

    name = "cirkd"
    map_terms = {
        "cirkd_minibatch": "minibatch_weight",
        "cirkd_pixel": "pixel_weight",
        "cirkd_region": "region_weight",
    }
    checks = {
        "temperature": check_positive,
        "ignore_index": check_ignore_index,
        "num_classes": optional(check_whole),
        **dict.fromkeys(SIZES, check_whole),
    }
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
        self.head = nn.Sequential(
            nn.Conv2d(self.student_channels, self.teacher_channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(self.teacher_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(self.teacher_channels, self.teacher_channels, kernel_size=1),
        )
        if pixel_weight > 0:
            self.pixels = ClassQueues(num_classes, pixel_queue, self.teacher_channels)
        if region_weight > 0:
            self.regions = ClassQueues(num_classes, region_queue, self.teacher_channels)

    def compute(self, student: Activations, teacher: Activations, labels: Tensor | None) -> dict[str, Tensor]:
        student_map, teacher_map = self.maps(student, teacher)
        terms = {}
        if self.minibatch_weight > 0:
            terms["cirkd_minibatch"] = self._minibatch_term(student_map, teacher_map)
        if self.pixel_weight > 0 or self.region_weight > 0:
            members = self.members(student, labels, teacher_map.shape[-2:])  # (B, K, h·w)
            if members.shape[1] != self.num_classes:
                raise ValueError(
                    f"the models have {members.shape[1]} classes and cirkd.num_classes is {self.num_classes}; "
                    f"give num_classes={members.shape[1]}."
                )
            terms |= self._memory_terms(student_map, teacher_map, members)
        return terms

    def _minibatch_term(self, *maps: Tensor) -> Tensor:
        student, teacher = (_pixels(F.avg_pool2d(each, self.pool_size, ceil_mode=True)) for each in maps)
        # Without gradients the loss is only tried out: before training, on the CPU, where nccl could gather nothing.
        everyone = (gather_batch(each) if torch.is_grad_enabled() else each for each in (student, teacher))
        return cross_image_divergence(student, teacher, *everyone, self.temperature)

    def _memory_terms(self, student_map: Tensor, teacher_map: Tensor, members: Tensor) -> dict[str, Tensor]:
        student, teacher = _pixels(self.head(student_map)), _pixels(teacher_map)  # (B, h·w, Ct)
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


@in_float32
def _pixels(feature_map: Tensor) -> Tensor:
    """`(B, C, h, w)` to vectors of length 1, `(B, h·w, C)`."""
    return unit_vectors(feature_map.flatten(2).transpose(1, 2), dim=2)


def gather_batch(tensor: Tensor) -> Tensor:
    """Concatenate the tensors `(B, ...)` of all processes, of one shape and dtype, in the order of ranks.

    Gradients flow to every process: each one receives the sum of what all processes' losses ask of its part. DDP then
    takes the mean, so that the mean of the losses over processes is what is minimised. Call it on every process, at the
    same point.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    return _GatherBatch.apply(tensor)


class _GatherBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.batch = tensor.shape[0]
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may use the given one elsewhere
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.batch :][: ctx.batch]
