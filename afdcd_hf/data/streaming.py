"""Datasets that are read from the first row to the last and never held; nobody knows how many rows there are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec
import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .decoding import DecodedRows, without_decoding
from .samples import TrainingSamples


def is_stream(dataset: Any) -> bool:
    """Whether a dataset can only be iterated over."""
    return dataset is not None and not hasattr(dataset, "__len__")


class StreamedRows(IterableDataset):
    """Rows with `image`, `label` (PIL, or None) and `name`, decoded when it is their turn, as `load_split` gives them.

    They come from a `datasets.IterableDataset` with image columns `image` and `label`, or any iterable of such rows.
    With `by_rows` processes and workers never divide it by files.
    """

    def __init__(self, dataset: Any, decode: DecodedRows | None = None, *, by_rows: bool = False) -> None:
        self.dataset, self.decode, self.by_rows = without_decoding(dataset), decode or DecodedRows(), by_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.part(0, 1))

    def first(self, count: int) -> StreamedRows:
        """The first so many rows of a stream of `datasets`, the same on any number of processes and workers."""
        # Divided by files, `take` would give each process as many rows of its own files.
        return StreamedRows(self.dataset.take(count), self.decode, by_rows=True)

    def shuffled(self, seed: int, buffer_size: int) -> StreamedRows:
        """A stream of `datasets` with its files, and rows in a buffer of undecoded ones, in another order each pass."""
        if not hasattr(self.dataset, "shuffle"):
            raise ValueError(f"{type(self.dataset).__name__} cannot be shuffled: only a stream of `datasets` can.")
        return StreamedRows(self.dataset.shuffle(seed, buffer_size=buffer_size), self.decode, by_rows=self.by_rows)

    def part(self, index: int, count: int, epoch: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of process `index` of `count`, shared among the workers of a `DataLoader`, with their positions.

        A stream of `datasets` is divided by files where their number allows it, and by rows otherwise; `first` rows and
        other iterables by rows. A position is a number that no other row of the pass has.
        """
        from datasets import IterableDataset as HubStream
        from datasets.distributed import split_dataset_by_node

        source, worker = self.dataset, get_worker_info()
        own, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first, step = index * workers + own, count * workers
        if not isinstance(source, HubStream):
            rows = itertools.islice(source, first, None, step)
        elif self.by_rows:
            source.set_epoch(epoch)
            # Unlike `iter(source)`, this leaves out nothing in a worker.
            every = ({column: value for column, [value] in batch.items()} for batch in source.iter(batch_size=1))
            rows = itertools.islice(every, first, None, step)
        else:
            source = split_dataset_by_node(source, index, count)
            source.set_epoch(epoch)
            rows = iter(source)  # which knows of its worker
        for place, row in enumerate(rows):
            position = place * step + first
            yield position, self._decoded(row, position)

    def _decoded(self, row: Mapping[str, Any], position: int) -> dict[str, Any]:
        stored = {column: row[column] for column in ("image", "label") if isinstance(row.get(column), (Mapping, bytes))}
        name = row.get("name") or f"image {position}"
        batch = self.decode({**{column: [_content(value)] for column, value in stored.items()}, "name": [name]})
        return {"label": None, **row, **{column: batch[column][0] for column in stored}, "name": name}


def _content(stored: Mapping[str, Any] | bytes) -> Mapping[str, Any] | bytes:
    """The bytes, where there are any or the path is not on this machine; as they are, labels are taken as unmapped."""
    if isinstance(stored, bytes):
        return stored
    if stored["bytes"] is None and "://" in (stored["path"] or ""):
        with fsspec.open(stored["path"], "rb") as file:
            return file.read()
    return stored if stored["bytes"] is None else stored["bytes"]


class StreamedSamples(IterableDataset):
    """Augmented samples for the Trainer from a stream, without an end: it begins again after its last row.

    A sample draws from `np.random.default_rng([seed, pass, position])`; see docs/data.md.

    Args:
        dataset: `StreamedRows`, or what they take.
        transform, num_labels, seed, ignore_index: As of `TrainingSamples`, whose samples of an epoch are those of a
            pass in one process, unshuffled, in order.
        shuffle_buffer: How many undecoded rows to shuffle a stream of `datasets` through; 1 keeps its order.

    A ValueError as from `TrainingSamples`; when iterated over, also if there is no row at all.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Image.Image, Image.Image, np.random.Generator], Mapping[str, Tensor]],
        *,
        num_labels: int,
        seed: int = 0,
        ignore_index: int = 255,
        shuffle_buffer: int = 1,
    ) -> None:
        self._samples = TrainingSamples([], transform, num_labels=num_labels, seed=seed, ignore_index=ignore_index)
        self.dataset = dataset if isinstance(dataset, StreamedRows) else StreamedRows(dataset)
        self._shuffled = shuffle_buffer > 1
        self._rows = self.dataset.shuffled(seed, shuffle_buffer) if self._shuffled else self.dataset
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.share = 0, 1  # process and number of processes, which the Trainer sets

    def __iter__(self) -> Iterator[dict[str, Tensor | str]]:
        seed, workers = self._samples.seed, get_worker_info()
        for epoch in itertools.count():
            position = None
            order = epoch if self._shuffled else 0  # `datasets` reorders the files of later epochs, shuffled or not
            for position, row in self._rows.part(*self.share, order):
                yield self._samples.sample(row, row["name"], np.random.default_rng([seed, epoch, position]))
            if position is None and workers is None:
                raise ValueError("The stream to train on has no rows for this process: give fewer processes, or data.")
            if position is None:  # more workers than files; the others go on
                return
