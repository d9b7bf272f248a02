"""CIRKD: relations of pixels to those of other images, in the batch and in a memory with one queue per class."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..citations import bibtex
from ..features import Activations
from ..ops.checks import check_ignore_index, check_positive, check_whole, optional
from ..ops.precision import in_float32
from .base import MapLoss, kl_divergences, option, uniform, unit_vectors

NO_CLASS = -1


class CIRKDLoss(MapLoss):
    """Cross-image relations (Yang et al., CVPR 2022).

    All vectors have length 1; σ is a softmax with temperature τ. Three terms, each the mean over the map's pixels of
    KL(σ(teacher's similarities) ‖ σ(student's similarities)):

        minibatch: of each pixel to all pixels of one image of the batch, mean over all ordered pairs of images
        pixel:     of head(student's pixel), and of the teacher's pixel, to teacher pixels drawn from the memory
        region:    the same to teacher regions, the mean vectors of one class in one image

    `head` is a 1×1 convolution Cs → Ct – BN – ReLU – 1×1 convolution. Labels are resized to the map's size (nearest); a
    pixel whose label is ignored or not in 0 to num_classes-1 counts only in the minibatch term. The memory has one
    queue per class. Each step with gradients first adds up to `pixels_per_image` pixels of each class, and one region
    of each class, from each image of the batch; draws then come equally from all classes seen so far.

    On several processes, the images of all of them form the batch, with gradients through the student's side, and all
    hold the same memory; each needs the same number of images. Head and queues are in the state dict. The queues take
    4·K·(pixel_queue + region_queue)·Ct bytes: 428 MB for 19 classes and 256 channels, 3.4 GB for 2048.

    The defaults are the published ones, for the head's last map. Unlike in the authors' code, the head's last
    convolution has a bias, draws come only from the filled part of the queues, and maps are pooled before the
    minibatch term for every model, not only for SegFormer.

    Relations: SKDLoss compares similarities within one image, by their squared difference.

    Args:
        num_classes: K; needed for the memory. In a recipe it may be left out: `build_loss` gets it from the models.
        ignore_index: label that is ignored; None if all of 0 to K-1 count.
        pool_size: side of the cells averaged before the minibatch term, the last ones smaller if it does not divide the
            map; 1 for none. The matrices have N·(h·w / pool_size²)² numbers per image, N images in the batch.
        pixel_queue, region_queue: vectors kept per class.
        pixels_per_image: pixels added per class and image.
        pixel_draws, region_draws: vectors drawn per step.
    """

    name = "cirkd"
    map_terms = {f"cirkd_{part}": f"{part}_weight" for part in ("minibatch", "pixel", "region")}
    citation = bibtex("yang2022cross")

    minibatch_weight: float = option(default=1.0)
    pixel_weight: float = option(default=0.1)
    region_weight: float = option(default=0.1)
    num_classes: int | None = option(default=None, check=optional(check_whole))
    ignore_index: int | None = option(default=255, check=check_ignore_index)
    temperature: float = option(default=0.1, check=check_positive)
    pool_size: int = option(default=2, check=check_whole)
    pixel_queue: int = option(default=20_000, check=check_whole)
    region_queue: int = option(default=2_000, check=check_whole)
    pixels_per_image: int = option(default=16, check=check_whole)
    pixel_draws: int = option(default=4_096, check=check_whole)
    region_draws: int = option(default=1_024, check=check_whole)

    def build(self) -> None:
        if self.pixel_weight == 0 and self.region_weight == 0:
            return
        if self.num_classes is None:
            raise ValueError(
                "missing cirkd.num_classes: the memory has a queue for each class. Give the number of classes, or "
                "leave the memory out with pixel_weight=0 and region_weight=0."
            )
        channels = self.teacher_channels
        self.head = nn.Sequential(
            nn.Conv2d(self.student_channels, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, kernel_size=1),
        )
        if self.pixel_weight > 0:
            self.pixels = ClassQueues(self.num_classes, self.pixel_queue, channels)
        if self.region_weight > 0:
            self.regions = ClassQueues(self.num_classes, self.region_queue, channels)

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
        # Without gradients, this is the trial before training, on the CPU, where nccl cannot gather.
        everyone = (gather_batch(each) if torch.is_grad_enabled() else each for each in (student, teacher))
        return cross_image_divergence(student, teacher, *everyone, self.temperature)

    def _memory_terms(self, student_map: Tensor, teacher_map: Tensor, members: Tensor) -> dict[str, Tensor]:
        student, teacher = _pixels(self.head(student_map)), _pixels(teacher_map)  # (B, h·w, Ct)
        if torch.is_grad_enabled():
            self._remember(teacher, members)
        terms = {}
        for name, draws in (("pixel", self.pixel_draws), ("region", self.region_draws)):
            if hasattr(self, f"{name}s"):
                drawn = getattr(self, f"{name}s").draw(uniform(teacher.new_empty(draws)))  # (draws, Ct)
                terms[f"cirkd_{name}"] = memory_divergence(student, teacher, drawn, members.any(1), self.temperature)
        return terms

    @torch.no_grad()
    def _remember(self, teacher: Tensor, members: Tensor) -> None:
        if self.pixel_weight > 0:
            chosen = pixels_of_classes(teacher, members, self.pixels_per_image, uniform(teacher[..., 0]))
            self.pixels.append(*map(gather_batch, chosen))
        if self.region_weight > 0:
            self.regions.append(*map(gather_batch, regions_of_classes(teacher, members)))


@in_float32
def _pixels(feature_map: Tensor) -> Tensor:
    """Turn a map `(B, C, h, w)` into unit vectors `(B, h·w, C)`."""
    return unit_vectors(feature_map.flatten(2).transpose(1, 2), dim=2)


def gather_batch(tensor: Tensor) -> Tensor:
    """Concatenate the tensors `(B, ...)` of all processes, of equal shape and dtype, in rank order."""
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
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # autograd may use the original elsewhere
        dist.all_reduce(gradient)  # the sum over all losses; DDP then averages, so that their mean is minimised
        return gradient[dist.get_rank() * ctx.batch :][: ctx.batch]


@in_float32
def cross_image_divergence(
    student: Tensor, teacher: Tensor, all_student: Tensor, all_teacher: Tensor, temperature: float
) -> Tensor:
    """Compute the minibatch term from unit vectors of A pixels per image, of this process's B images and of all N."""
    divergences = []
    for own, taught in zip(student, teacher, strict=True):
        ours = torch.einsum("ac,nbc->anb", own, all_student)  # cosines of one pixel with all pixels of one image
        theirs = torch.einsum("ac,nbc->anb", taught, all_teacher)
        divergences.append(kl_divergences(ours, theirs, temperature, dim=-1).mean())
    return torch.stack(divergences).mean()


@in_float32
def memory_divergence(student: Tensor, teacher: Tensor, memory: Tensor, anchors: Tensor, temperature: float) -> Tensor:
    """Average, over `anchors` `(B, A)` bool, the divergence of similarities to `memory` `(M, C)`; 0 without anchors."""
    memory = memory.to(student.dtype)
    divergences = kl_divergences(student @ memory.T, teacher @ memory.T, temperature, dim=-1)  # (B, A)
    return divergences.masked_fill(~anchors, 0.0).sum() / anchors.sum().clamp(min=1)


class ClassQueues(nn.Module):
    """The newest `size` vectors of each class, saved and resumed with the loss; restoring `appended` undoes a step."""

    vectors: Tensor
    appended: Tensor

    def __init__(self, num_classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_classes, size, channels))
        self.register_buffer("appended", torch.zeros(num_classes, dtype=torch.int64))  # in total, per class

    @torch.no_grad()
    def append(self, vectors: Tensor, classes: Tensor) -> None:
        """Append finite vectors `(M, C)` to the queues of their classes `(M,)`, -1 for none, replacing the oldest."""
        num_classes, size, _ = self.vectors.shape
        classes = torch.where(vectors.isfinite().all(1), classes, NO_CLASS)
        of_class = classes.unsqueeze(1) == torch.arange(num_classes, device=classes.device)  # (M, K)
        number = of_class.sum(0)  # (K,)
        ordinals = of_class.cumsum(0).gather(1, classes.clamp(min=0).unsqueeze(1)).squeeze(1) - 1  # (M,)
        # keep only the last `size` vectors of a class: a place that is written twice could hold either
        kept = (classes != NO_CLASS) & (ordinals >= number[classes] - size)
        vectors, classes, ordinals = vectors[kept], classes[kept], ordinals[kept]
        self.vectors[classes, (self.appended[classes] + ordinals) % size] = vectors.to(self.vectors.dtype)
        self.appended += number

    def draw(self, uniform: Tensor) -> Tensor:
        """Draw `(M, C)` with replacement, evenly from filled queues, by random numbers `(M,)` in [0, 1); else zeros."""
        held = self.appended.clamp(max=self.vectors.shape[1])  # (K,)
        present = held > 0
        first_present = present.to(torch.int8).argsort(descending=True, stable=True)
        turns = torch.arange(len(uniform), device=uniform.device) % present.sum().clamp(min=1)
        classes = first_present[turns]  # (M,)
        # float32 may round the product with a number close to 1 up to `held`
        places = (uniform * held[classes]).long().minimum(held[classes] - 1).clamp(min=0)
        return self.vectors[classes, places]


def queue_names(module: nn.Module) -> list[str]:
    """Return the names of `module`'s buffers of queued vectors, which are large and equal on all processes."""
    return [f"{name}.vectors" for name, part in module.named_modules() if isinstance(part, ClassQueues)]


def pixels_of_classes(vectors: Tensor, members: Tensor, most: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Choose up to `most` pixels of each class and image, those with the smallest random numbers `(B, A)` in [0, 1).

    Takes vectors `(B, A, C)` and `members` `(B, K, A)` bool; returns vectors `(B·R, C)` and their classes `(B·R,)`, -1
    in unused rows, with R = min(A, K·most). This shape does not depend on the labels, so that it can be gathered.
    """
    _, num_classes, pixels = members.shape
    most = min(most, pixels)
    numbers, places = uniform.unsqueeze(1).masked_fill(~members, 2.0).topk(most, largest=False)  # (B, K, most)
    chosen = (numbers < 2).flatten(1)
    front = (~chosen).to(torch.int8).argsort(dim=1, stable=True)[:, :pixels]  # (B, R), those chosen first
    classes = torch.arange(num_classes, device=members.device).repeat_interleave(most)
    classes = torch.where(chosen, classes, NO_CLASS).gather(1, front)
    places = places.flatten(1).gather(1, front).unsqueeze(2).expand(-1, -1, vectors.shape[2])
    return vectors.gather(1, places).flatten(0, 1), classes.flatten()


@in_float32
def regions_of_classes(vectors: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return the unit mean vector of each class in each image, `(B·K, C)`, and the classes `(B·K,)`, -1 if absent."""
    means = unit_vectors(members.to(vectors.dtype) @ vectors, dim=2)  # the sum has the mean's direction
    classes = torch.where(members.any(2), torch.arange(members.shape[1], device=members.device), NO_CLASS)
    return means.flatten(0, 1), classes.flatten()
