"""Streams: datasets of unknown length that are read in order and never held in memory."""

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
    """Return whether a dataset can only be iterated over."""
    return dataset is not None and not hasattr(dataset, "__len__")


class StreamedRows(IterableDataset):
    """Rows with `image`, `label` (PIL, or None) and `name`, decoded on the fly, like those of `load_split`.

    They come from a `datasets.IterableDataset` with image columns `image` and `label`, or any iterable of such rows.
    With `by_rows`, processes and workers never split it by files.
    """

    def __init__(self, dataset: Any, decode: DecodedRows | None = None, *, by_rows: bool = False) -> None:
        self.dataset, self.decode, self.by_rows = without_decoding(dataset), decode or DecodedRows(), by_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for _, row in self.part(0, 1))

    def first(self, count: int) -> StreamedRows:
        """Return the first `count` rows of a `datasets` stream, the same for any number of processes and workers."""
        # If split by files, `take` would give each process that many rows of its own files.
        return StreamedRows(self.dataset.take(count), self.decode, by_rows=True)

    def shuffled(self, seed: int, buffer_size: int) -> StreamedRows:
        """Shuffle a `datasets` stream anew each pass: its files, and its undecoded rows in a buffer."""
        if not hasattr(self.dataset, "shuffle"):
            raise ValueError(f"{type(self.dataset).__name__} cannot be shuffled: only a stream of `datasets` can.")
        return StreamedRows(self.dataset.shuffle(seed, buffer_size=buffer_size), self.decode, by_rows=self.by_rows)

    def part(self, index: int, count: int, epoch: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows of process `index` of `count`, shared among a `DataLoader`'s workers, with their positions.

        A `datasets` stream is split by files if their number allows it, otherwise by rows; `first` rows and other
        iterables are split by rows. A position is unique within a pass.
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
            # Unlike `iter(source)`, this skips nothing in a worker.
            every = ({column: value for column, [value] in batch.items()} for batch in source.iter(batch_size=1))
            rows = itertools.islice(every, first, None, step)
        else:
            source = split_dataset_by_node(source, index, count)
            source.set_epoch(epoch)
            rows = iter(source)  # which takes its worker into account
        for place, row in enumerate(rows):
            position = place * step + first
            yield position, self._decoded(row, position)

    def _decoded(self, row: Mapping[str, Any], position: int) -> dict[str, Any]:
        stored = {column: row[column] for column in ("image", "label") if isinstance(row.get(column), (Mapping, bytes))}
        name = row.get("name") or f"image {position}"
        batch = self.decode({**{column: [_content(value)] for column, value in stored.items()}, "name": [name]})
        return {"label": None, **row, **{column: batch[column][0] for column in stored}, "name": name}


def _content(stored: Mapping[str, Any] | bytes) -> Mapping[str, Any] | bytes:
    """Return the bytes if there are any, or if the path is remote; labels in bytes count as not yet mapped."""
    if isinstance(stored, bytes):
        return stored
    if stored["bytes"] is None and "://" in (stored["path"] or ""):
        with fsspec.open(stored["path"], "rb") as file:
            return file.read()
    return stored if stored["bytes"] is None else stored["bytes"]


class StreamedSamples(IterableDataset):
    """An endless stream of augmented samples for the Trainer: it begins again after its last row.

    A sample draws from `np.random.default_rng([seed, pass, position])`; see docs/data.md.

    Args:
        dataset: `StreamedRows`, or a source for them.
        transform, num_labels, seed, ignore_index: As in `TrainingSamples`, whose epoch has the samples of an
            unshuffled pass in one process.
        shuffle_buffer: Number of undecoded rows in the buffer that shuffles a `datasets` stream; 1 keeps its order.

    Raises ValueError as in `TrainingSamples`; on iteration, also if there are no rows at all.
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
            if position is None and epoch == 0 and (workers is None or workers.id == 0):
                advice = "use fewer processes or data workers, or more data"
                raise ValueError(f"The training stream has no rows for this process: {advice}.")
            if position is None:  # more workers than files; the others continue
                return
