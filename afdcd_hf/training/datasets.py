"""What the trainers need from their datasets, checked before training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from ..data.samples import TrainingSamples, collate_samples
from ..data.statistics import count_labels
from ..data.streaming import StreamedSamples, is_stream
from ..losses.task import TaskLoss
from ..model_utils import ignore_index_of
from .distributed import images_per_step

if TYPE_CHECKING:
    from .training_args import SegmentationTrainingArguments

logger = logging.getLogger(__name__)


def parts_of(dataset: Any) -> list[Any]:
    """Return the datasets inside torch's `Subset`, `ConcatDataset` and the like, down to `TrainingSamples`."""
    if hasattr(dataset, "ignore_index"):  # such as TrainingSamples
        return [dataset]
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    return [part for each in inner if each is not None for part in parts_of(each)] or [dataset]


def stated(dataset: Any, name: str) -> Any:
    """Return `ignore_index` or `num_labels` of a dataset or of those inside it; None if none of them states it."""
    values: set[Any] = {getattr(part, name, None) for part in parts_of(dataset)} - {None}
    if len(values) > 1:
        raise ValueError(f"train_dataset combines datasets with {name} {sorted(values)}: give all of them the same.")
    return next(iter(values), None)


def check_samples(train_dataset: Any, args: SegmentationTrainingArguments, model: Any) -> None:
    """Raise if the samples have more classes than the model, or if there are too few for a batch.

    The Trainer would only warn of too few, and save an untrained model.
    """
    given, known = stated(train_dataset, "num_labels"), _num_labels(model)
    if None not in (given, known) and given > known:
        raise ValueError(f"train_dataset has num_labels={given}, but the model {known}: give both the same.")
    batch = images_per_step(args)
    for part in parts_of(train_dataset):
        if isinstance(part, TrainingSamples):
            part.check_batch(args.train_batch_size, batch // args.train_batch_size)
    if args.dataloader_drop_last and hasattr(train_dataset, "__len__") and len(train_dataset) < batch:
        raise ValueError(
            f"The training set has {len(train_dataset)} samples, but a batch takes {batch}, and incomplete batches are "
            "dropped: use a smaller batch, or dataloader_drop_last=False."
        )


def resolve_class_weights(args: SegmentationTrainingArguments, train_dataset: Any) -> None:
    """Replace `class_weights="balanced"` with numbers from the training labels, rounded as a recipe stores them."""
    if args.class_weights != "balanced":
        return
    TaskLoss(kind=args.task_loss, class_weights=[1.0])  # raises if they have no effect, before all labels are read
    if not isinstance(train_dataset, TrainingSamples):
        raise ValueError(
            f"class_weights='balanced' needs TrainingSamples, and train_dataset is a {type(train_dataset).__name__}: "
            "give one number for each class."
        )
    own = range(args.process_index, len(train_dataset), args.world_size)
    labels = (train_dataset.dataset, train_dataset.num_labels, train_dataset.ignore_index)
    counted = count_labels(*labels, indices=own, progress=not args.disable_tqdm and args.process_index == 0)
    counted.pixels[:] = reduce(torch.from_numpy(counted.pixels).to(args.device), "sum").cpu().numpy()
    args.class_weights = counted.balanced_weights.round(6).tolist()
    if args.process_index == 0:
        logger.info("class_weights, balanced over %d labels: %s", len(train_dataset), args.class_weights)


def checks_itself(dataset: Any) -> bool:
    """Whether a dataset consists of our samples, which check their labels."""
    return all(isinstance(part, (TrainingSamples, StreamedSamples)) for part in parts_of(dataset))


def first_batch(train_dataset: Any, collate: Callable[[list], Any] | None, model: Any) -> dict[str, Any] | None:
    """Return a batch of a dataset's first sample, or None if the dataset is empty.

    ValueError if it has no `pixel_values` and `labels`, or labels that the model cannot be trained on.
    """
    first = next(iter(() if train_dataset is None else train_dataset), None)
    if first is None:
        return None
    if collate is None and (problem := _missing(first, ("pixel_values", "labels"))):
        raise ValueError(
            f"train_dataset {problem}. `TrainingSamples` makes these tensors from rows with `image` and `label`; or "
            "give a data_collator."
        )
    batch: Any = (collate or collate_samples)([first])
    if problem := _missing(batch, ("pixel_values", "labels")):
        raise ValueError(f"The data_collator's batch for train_dataset {problem}.")
    ignored = stated(train_dataset, "ignore_index")
    _check_labels(batch["labels"], _num_labels(model), ignore_index_of(model) if ignored is None else ignored)
    return batch


def _check_labels(labels: Tensor, num_labels: int | None, ignore_index: int) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 3:
        found = f"{str(labels.dtype).removeprefix('torch.')} {tuple(labels.shape)}"
        raise ValueError(f"The labels of a batch must be int64 (B, H, W), not {found}: convert them in train_dataset.")
    ids = torch.unique(labels).tolist()
    if num_labels is not None and (wrong := [i for i in ids if i != ignore_index and not 0 <= i < num_labels]):
        raise ValueError(
            f"The first labels of train_dataset hold {wrong[:5]}, but the model has classes 0..{num_labels - 1} and "
            f"ignores {ignore_index}: map the labels, or build the model with more classes."
        )


def check_evaluation_rows(eval_dataset: Any) -> None:
    """Raise ValueError if the first row of an evaluation set (a stream is not touched) has no `image` and `label`."""
    for rows in eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]:
        if rows is None or is_stream(rows) or not len(rows):
            continue
        if problem := _missing(rows[0], ("image", "label")):
            raise ValueError(
                f"eval_dataset {problem}: evaluation reads the original images and labels, at their full size, as "
                "`load_split` returns them."
            )


def _num_labels(model: Any) -> int | None:
    return getattr(getattr(model, "config", None), "num_labels", None)


def _missing(row: Any, names: tuple[str, str]) -> str | None:
    if isinstance(row, Mapping) and not [name for name in names if name not in row]:
        return None
    found = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"a {type(row).__name__}"
    return f"needs rows with {' and '.join(names)}; its first one has {found}"
