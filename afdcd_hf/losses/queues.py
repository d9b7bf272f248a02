"""Memories of vectors, one queue a class, and what of a labelled map goes into them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops.precision import in_float32
from .base import unit_vectors

NO_CLASS = -1


class ClassQueues(nn.Module):
    """The newest vectors of each class, as buffers: they are saved and resumed with the loss.

    Processes that append the same vectors in the same order hold the same queues, and need not be synchronised. Where
    a step is taken back and done again, it is enough to restore `appended`: the same vectors go to the same places.

    Args:
        num_classes: K.
        size: vectors kept a class.
        channels: C; the buffer takes 4·K·size·C bytes (19 classes of 20,000 vectors of 256 channels: 389 MB).
    """

    vectors: Tensor
    appended: Tensor

    def __init__(self, num_classes: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_classes, size, channels))
        self.register_buffer("appended", torch.zeros(num_classes, dtype=torch.int64))  # ever, a class

    @torch.no_grad()
    def append(self, vectors: Tensor, classes: Tensor) -> None:
        """Put each vector `(M, C)` into the queue of its class `(M,)`, in place of the oldest one if that is full.

        Vectors of class -1 and those that are not finite are left out.
        """
        num_classes, size, _ = self.vectors.shape
        classes = torch.where(vectors.isfinite().all(1), classes, NO_CLASS)
        of_class = classes.unsqueeze(1) == torch.arange(num_classes, device=classes.device)  # (M, K)
        number = of_class.sum(0)  # (K,)
        ordinals = of_class.cumsum(0).gather(1, classes.clamp(min=0).unsqueeze(1)).squeeze(1) - 1  # (M,)
        # of more vectors than a queue holds the last ones stay; written twice, a place would keep either of them
        kept = (classes != NO_CLASS) & (ordinals >= number[classes] - size)
        vectors, classes, ordinals = vectors[kept], classes[kept], ordinals[kept]
        self.vectors[classes, (self.appended[classes] + ordinals) % size] = vectors.to(self.vectors.dtype)
        self.appended += number

    def draw(self, uniform: Tensor) -> Tensor:
        """Vectors `(M, C)` drawn with replacement, equally many of each class that has any (up to one).

        The random numbers `(M,)` in [0, 1) choose inside a class. Zeros while all queues are empty.
        """
        held = self.appended.clamp(max=self.vectors.shape[1])  # (K,)
        present = held > 0
        first_present = present.to(torch.int8).argsort(descending=True, stable=True)
        turns = torch.arange(len(uniform), device=uniform.device) % present.sum().clamp(min=1)
        classes = first_present[turns]  # (M,)
        # float32 rounds the product of a number close to 1 up to the whole
        places = (uniform * held[classes]).long().minimum(held[classes] - 1).clamp(min=0)
        return self.vectors[classes, places]


def queue_names(module: nn.Module) -> list[str]:
    """Names, among the buffers of `module`, of the vectors in queues: large, and equal on all processes."""
    return [f"{name}.vectors" for name, part in module.named_modules() if isinstance(part, ClassQueues)]


def pixels_of_classes(vectors: Tensor, members: Tensor, most: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """At most `most` pixels of each class and image, chosen at random.

    Args:
        vectors: `(B, A, C)`, one a pixel.
        members: `(B, K, A)` bool, at most one class a pixel.
        most: pixels a class and image.
        uniform: `(B, A)` random numbers in [0, 1); the pixels with the smallest are chosen.

    Returns:
        Vectors `(B·R, C)` and their classes `(B·R,)` with R = min(A, K·most), -1 where fewer pixels were to be had: a
        shape that does not hang on the labels can be gathered over processes.
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
    """The mean vector, of length 1, of each class in each image; arguments as for `pixels_of_classes`.

    Gives `(B·K, C)` and their classes `(B·K,)`, -1 for a class that the image does not show.
    """
    means = unit_vectors(members.to(vectors.dtype) @ vectors, dim=2)  # of the sum: its direction is that of the mean
    classes = torch.where(members.any(2), torch.arange(members.shape[1], device=members.device), NO_CLASS)
    return means.flatten(0, 1), classes.flatten()
