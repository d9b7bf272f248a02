"""Training samples: checked labels, augmentation that depends only on (seed, epoch, index), CutMix and ClassMix."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from .checks import check_columns, check_labels, with_ignore_index
from .decoding import SampleError, with_decoding

logger = logging.getLogger(__name__)


class TrainingSamples(Dataset):
    """Augmented samples for the Trainer, identical for any number of workers and after a resume.

    Item i of epoch e draws from `np.random.default_rng([seed, e, i])`. Global random state is not used, because workers
    prefetch before a resumed run restores it, and the continuation would differ.

    Args:
        dataset: A `datasets.Dataset` with image columns `image` and `label`, or anything indexable whose rows have
            these as PIL images and, optionally, a `name`.
        transform: Turns an image and its label into tensors, drawing only from the generator: `RandomScaleCropFlip`.
        num_labels: Number of classes K.
        seed: Non-negative seed of the augmentation.
        ignore_index: Label of pixels that are not trained on, which the transform and the loss must share; with up to
            255 classes, it replaces 255 in the dataset's labels.
        unlabelled: More images, all of whose pixels are ignored; any labels are not used.
        unlabelled_share: Their share of each batch (of one process, before accumulation), above 0 and below 1, rounded
            down to whole images. They replace labelled ones, of which an epoch shows the remaining share.
        cutmix_probability: Probability, 0..1, that a rectangle of another labelled image, augmented independently,
            is pasted into a sample with its labels (`cutmix_mask`).
        classmix_probability: The same for half of the other image's classes (`classmix_mask`), after CutMix.

    Raises:
        ValueError: If `num_labels`, `seed`, `unlabelled_share` or a probability is out of range, or the dataset has
            columns but not `image` and `label`; when indexed, if a label holds values other than 0..K-1 and
            `ignore_index`, or does not fit its image.
        OSError: When indexed, if a file is damaged.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Image.Image, Image.Image, np.random.Generator], Mapping[str, Tensor]],
        *,
        num_labels: int,
        seed: int = 0,
        ignore_index: int = 255,
        unlabelled: Any = None,
        unlabelled_share: float = 0.5,
        cutmix_probability: float = 0.0,
        classmix_probability: float = 0.0,
    ) -> None:
        for key, value in (("cutmix", cutmix_probability), ("classmix", classmix_probability)):
            if not 0 <= value <= 1:
                raise ValueError(f"{key}_probability={value}: expected a probability between 0 and 1.")
        if not 0 < unlabelled_share < 1:
            raise ValueError(f"unlabelled_share={unlabelled_share}: expected a share above 0 and below 1, such as 0.5.")
        if num_labels < 1:
            raise ValueError(f"num_labels={num_labels}: at least one class is needed.")
        if seed < 0:
            raise ValueError(f"seed={seed}: numpy's generators take no negative seed.")
        if (padding := getattr(transform, "ignore_index", ignore_index)) != ignore_index:
            what = f"The transform pads labels with ignore_index={padding}, but these samples have {ignore_index}"
            raise ValueError(f"{what}: give both the same.")
        check_columns(dataset)
        self.dataset = with_decoding(dataset)
        self.unlabelled = with_decoding(unlabelled)
        self.unlabelled_share = unlabelled_share
        self.transform = transform
        self.num_labels = num_labels
        self.seed = seed
        self.ignore_index = ignore_index
        self._mixing = [(cutmix_probability, cutmix_mask), (classmix_probability, classmix_mask)]
        # Shared memory: persistent workers hold a copy of this object made in epoch 0, and must see later epochs too.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation of the next pass; call it in the main process before the epoch begins."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """Return item `index` of this epoch: `pixel_values` float32 `(3, H, W)`, `labels` int64 `(H, W)`, `name`."""
        index = range(len(self))[int(index)]  # like a list: -1 is the last item, and IndexError ends an iteration
        return self._mixed(self._labelled(index, self._rng(index)), index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor | str]]:
        """Return the samples of a batch; called by `DataLoader`."""
        # spread evenly, so that each process's part of a batch has the same mix
        done = [self._unlabelled_among(count) for count in range(len(indices) + 1)]
        return [
            self[index] if done[place] == done[place + 1] else self._unlabelled(index)
            for place, index in enumerate(indices)
        ]

    def _unlabelled_among(self, count: int) -> int:
        return 0 if self.unlabelled is None else math.floor(self.unlabelled_share * count + 1e-9)

    def check_batch(self, batch_size: int, batches: int = 1) -> None:
        """Raise ValueError if batches of this size would have no room for the unlabelled images.

        A warning if the `batches` of a step (of several processes, or accumulated) hold fewer than one large batch.
        """
        each, images = self._unlabelled_among(batch_size), batch_size * batches
        if self.unlabelled is not None and not each:
            raise ValueError(
                f"unlabelled_share={self.unlabelled_share} of a batch of {batch_size} is less than one image: use "
                "larger batches or a larger share."
            )
        if each * batches < (wanted := self._unlabelled_among(images)):
            logger.warning(
                "unlabelled_share=%s is rounded down in each of the %d batches of %d images that make up a step: %d of "
                "its %d images are unlabelled, not %d. A share of whole images, fewer processes or less accumulation "
                "avoids this.", self.unlabelled_share, batches, batch_size, each * batches, images, wanted,
            )  # fmt: skip

    def _labelled(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        row = self.dataset[index]
        return self.sample(row, row.get("name") or f"image {index}", rng)

    def sample(self, row: Mapping[str, Any], name: str, rng: np.random.Generator) -> dict[str, Any]:
        """Turn a row into a sample, augmented with draws from `rng` alone."""
        given = np.asarray(row["label"])
        ids = with_ignore_index(given, self.num_labels, self.ignore_index)
        check_labels(ids, self.num_labels, self.ignore_index, name)
        return self._augmented(row["image"], row["label"] if ids is given else Image.fromarray(ids), rng, name)

    def _mixed(self, sample: dict[str, Any], index: int) -> dict[str, Tensor | str]:
        """Mix parts of other samples into sample `index`, chosen independently of the batch, which differs by rank."""
        rng = self._rng(index, 2)
        for probability, mask_of in self._mixing:
            if rng.random() < probability:
                other = self._labelled(int(rng.integers(len(self.dataset))), rng)
                pasted = mask_of(other["labels"], rng, self.ignore_index)
                mixed = {key: torch.where(pasted, other[key], sample[key]) for key in ("pixel_values", "labels")}
                sample = {**mixed, "name": f"{sample['name']} with parts of {other['name']}"}
        return sample

    def _unlabelled(self, index: int) -> dict[str, Tensor | str]:
        """Return an unlabelled image in place of sample `index`."""
        rng = self._rng(int(index), 1)
        chosen = int(rng.integers(len(self.unlabelled)))
        row = self.unlabelled[chosen]
        label = Image.fromarray(np.full((row["image"].height, row["image"].width), self.ignore_index, np.int32))
        sample = self._augmented(row["image"], label, rng, row.get("name") or f"unlabelled image {chosen}")
        return self._mixed(sample, int(index))

    def _rng(self, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, int(self.epoch), *numbers])

    def _augmented(self, image: Image.Image, label: Image.Image, rng: np.random.Generator, name: str) -> dict[str, Any]:
        try:
            sample = self.transform(image, label, rng)
        except ValueError as error:
            raise SampleError(f"{name}: {error}") from error
        return {"pixel_values": sample["pixel_values"], "labels": sample["labels"], "name": name}


def collate_samples(samples: Sequence[Mapping[str, Tensor | str]]) -> dict[str, Tensor | list[str]]:
    """Stack samples of equal size: `(3, H, W)` and `(H, W)` become `(B, 3, H, W)` and `(B, H, W)`.

    If every sample has a `name`, the batch lists them as `names`, for messages; no model sees them. In a
    `DataLoader` worker, the batch is built directly in shared memory.
    """
    tensors = [{key: value for key, value in sample.items() if key != "name"} for sample in samples]
    batch: dict[str, Any] = default_collate(tensors)
    if all("name" in sample for sample in samples):
        batch["names"] = [sample["name"] for sample in samples]
    return batch


def cutmix_mask(labels: Tensor, rng: np.random.Generator, ignore_index: int) -> Tensor:
    """Return which pixels `(H, W)` of an image are pasted: a random rectangle (Yun et al., arXiv 1905.04899).

    Its share of the area is uniform in 0..1 (their α = 1), its aspect ratio is the image's, and its centre is uniform
    over the image, which clips it.
    """
    scale = math.sqrt(rng.random())
    mask = torch.zeros(labels.shape, dtype=torch.bool)
    lengths = [int(side * scale) for side in labels.shape]
    starts = [int(rng.integers(side)) - length // 2 for side, length in zip(labels.shape, lengths, strict=True)]
    rows, columns = (slice(max(0, start), start + length) for start, length in zip(starts, lengths, strict=True))
    mask[rows, columns] = True
    return mask


def classmix_mask(labels: Tensor, rng: np.random.Generator, ignore_index: int) -> Tensor:
    """Return the same: all pixels of half of the image's classes, rounded down (Olsson et al., arXiv 2007.07936).

    They use the classes that a model predicts; these are the label's `(H, W)`, without ignored pixels.
    """
    classes = np.unique(labels[labels != ignore_index].numpy())
    chosen = rng.choice(classes, len(classes) // 2, replace=False) if len(classes) > 1 else classes[:0]
    return torch.isin(labels, torch.from_numpy(chosen))
