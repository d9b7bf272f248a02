"""Streams: every row once over processes and workers, decoded and augmented as stored ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from images import labelled_image
from torch.utils.data import DataLoader

from afdcd_hf.data import StreamedRows, StreamedSamples, TrainingSamples


def stream(count: int, shards: int = 2):
    rows = [labelled_image(index, 4, 8, 12) for index in range(count)]
    columns = {name: [row[name] for row in rows] for name in ("image", "label", "name")}
    return (
        Dataset.from_dict(columns)
        .cast_column("image", Image())
        .cast_column("label", Image())
        .to_iterable_dataset(shards)
    )


def draw(image, label, rng):
    return {"pixel_values": torch.full((3, 2, 2), rng.random()), "labels": torch.from_numpy(np.asarray(label) // 1)}


@pytest.mark.parametrize("source", [stream(8, 4), [labelled_image(index, 4, 8, 12) for index in range(8)]])
def test_processes_and_workers_share_the_rows(source):
    class Part(torch.utils.data.IterableDataset):
        def __init__(self, index):
            self.index = index

        def __iter__(self):
            return ((position, row["name"]) for position, row in StreamedRows(source).part(self.index, 2))

    options = {"num_workers": 2, "batch_size": None, "multiprocessing_context": "fork"}
    seen = [one for index in range(2) for one in DataLoader(Part(index), **options)]
    assert sorted(name for _, name in seen) == [f"bands_{index}" for index in range(8)]
    assert len({position for position, _ in seen}) == 8


def test_a_sample_draws_from_seed_pass_and_position_and_the_stream_begins_again():
    samples = StreamedSamples(stream(2, 1), draw, num_labels=4, seed=7)
    first = [one for one, _ in zip(samples, range(5), strict=False)]
    expected = [
        np.random.default_rng([7, epoch, place]).random() for epoch, place in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    ]
    assert [float(one["pixel_values"].mean()) for one in first] == pytest.approx(expected, rel=1e-6)
    assert [one["name"] for one in first] == [f"bands_{place}" for place in (0, 1, 0, 1, 0)]
    stored = TrainingSamples([labelled_image(0, 4, 8, 12)], draw, num_labels=4)[0]
    assert torch.equal(stored["labels"], first[0]["labels"])
    with pytest.raises(ValueError, match="no rows for this process"):
        next(iter(StreamedSamples([], draw, num_labels=4)))
