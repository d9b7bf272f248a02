"""Streams: every row once over processes and workers, decoded and augmented as stored ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from images import labelled_image
from stored_pictures import as_arrays
from torch.utils.data import DataLoader

from afdcd_hf.data import StreamedRows, StreamedSamples, TrainingSamples, load_split


def stream(count: int, shards: int = 2):
    rows = [labelled_image(index, 4, 8, 12) for index in range(count)]
    columns = {name: [row[name] for row in rows] for name in ("image", "label", "name")}
    return (
        Dataset.from_dict(columns)
        .cast_column("image", Image())
        .cast_column("label", Image())
        .to_iterable_dataset(shards)
    )


def stored_as(form: str, folder, count: int = 5) -> str:
    """A dataset in one of the forms that `load_split` reads."""
    rows = stream(count, 1)
    held = Dataset.from_dict({name: [row[name] for row in rows] for name in ("image", "label", "name")})
    held = held.cast_column("image", Image()).cast_column("label", Image())
    if form == "saved":
        held.save_to_disk(folder / form)
    else:
        (folder / form).mkdir()
        held.select(range(3)).to_parquet(folder / form / "train-0.parquet")
        held.select(range(3, count)).to_parquet(folder / form / "train-1.parquet")
    return str(folder / form)


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


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_stream_has_the_rows_and_samples_of_the_stored_dataset(tmp_path, form):
    name, options = stored_as(form, tmp_path), {"label_map": {1: 3, 3: 255}}
    held, streamed = load_split(name, "train", **options), load_split(name, "train", streaming=True, **options)
    assert as_arrays(streamed) == as_arrays(held) and len(as_arrays(held)) == 5
    assert as_arrays(load_split(name, "train", max_samples=2, streaming=True, **options)) == as_arrays(held)[:2]
    stored, found = TrainingSamples(held, draw, num_labels=4), iter(StreamedSamples(streamed, draw, num_labels=4))
    for epoch in range(2):  # what an epoch shows, unshuffled
        stored.set_epoch(epoch)
        for index in range(5):
            one, other = next(found), stored[index]
            assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(
                one["labels"], other["labels"]
            )
    mixed = StreamedSamples(streamed, draw, num_labels=4, shuffle_buffer=4)
    names = [one["name"] for _, one in zip(range(10), mixed, strict=False)]
    assert sorted(names[:5]) == sorted(names[5:]) == held["name"][:] and names[:5] != names[5:]


def test_what_no_stream_can_do_is_refused(tmp_path):
    name = stored_as("parquet", tmp_path)
    for folder in ("images", "labels"):
        (tmp_path / "pairs" / folder / "train").mkdir(parents=True)
    for given, message in (
        ((name, "train[:50%]"), "A stream has no part such as 'train"),
        ((str(tmp_path / "pairs"), "train"), "streaming cannot be given for .*, a folder of images and labels"),
        (("camvid", "train", tmp_path), "streaming cannot be given for the benchmark camvid"),
    ):
        with pytest.raises(ValueError, match=message):
            load_split(*given, streaming=True)
    with pytest.raises(ValueError, match="list cannot be shuffled: only a stream of `datasets` can"):
        StreamedSamples([], draw, num_labels=4, shuffle_buffer=2)
