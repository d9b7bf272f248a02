"""Streams: each row once over processes and workers, decoded and augmented like stored rows."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from images import labelled_image
from stored_images import as_arrays
from torch.utils.data import DataLoader

from afdcd_hf.data import StreamedRows, StreamedSamples, TrainingSamples, load_split
from afdcd_hf.data.decoding import DecodedRows

ROWS = [labelled_image(index, 4, 8, 12) for index in range(8)]


def dataset(count: int = 8) -> Dataset:
    columns = {name: [row[name] for row in ROWS[:count]] for name in ("image", "label", "name")}
    return Dataset.from_dict(columns).cast_column("image", Image()).cast_column("label", Image())


def draw(image, label, rng):
    return {"pixel_values": torch.full((3, 2, 2), rng.random()), "labels": torch.from_numpy(np.asarray(label) // 1)}


FILES = StreamedRows(dataset().to_iterable_dataset(4))


@pytest.mark.parametrize(("source", "count"), [(FILES, 8), (StreamedRows(ROWS), 8), (FILES.first(5), 5)])
def test_processes_and_workers_share_the_rows(source, count):
    class Part(torch.utils.data.IterableDataset):
        def __init__(self, index):
            self.index = index

        def __iter__(self):
            return ((position, row["name"]) for position, row in source.part(self.index, 2))

    options = {"num_workers": 2, "batch_size": None, "multiprocessing_context": "fork"}
    seen = [one for index in range(2) for one in DataLoader(Part(index), **options)]
    assert sorted(name for _, name in seen) == [f"bands_{index}" for index in range(count)]
    assert len({position for position, _ in seen}) == count


def test_a_sample_depends_on_seed_pass_and_position_and_an_empty_stream_is_rejected():
    samples = StreamedSamples(dataset(2).to_iterable_dataset(), draw, num_labels=4, seed=7)
    for (epoch, place), one in zip([(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)], samples, strict=False):
        assert one["name"] == f"bands_{place}"
        expected = np.random.default_rng([7, epoch, place]).random()
        assert float(one["pixel_values"].mean()) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="no rows for this process"):
        next(iter(DataLoader(StreamedSamples([], draw, num_labels=4), num_workers=1)))
    with pytest.raises(ValueError, match="list cannot be shuffled: only a stream of `datasets` can"):
        StreamedSamples([], draw, num_labels=4, shuffle_buffer=2)


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_a_stream_has_the_rows_and_samples_of_the_stored_dataset(tmp_path, form):
    name, options = str(tmp_path), {"label_map": {1: 3, 3: 255}}
    if form == "saved":
        dataset(5).save_to_disk(name)
    else:
        for index in range(5):
            dataset(5).select([index]).to_parquet(tmp_path / f"train-{index}.parquet")
    held, streamed = load_split(name, "train", **options), load_split(name, "train", streaming=True, **options)
    assert as_arrays(streamed) == as_arrays(held) and len(as_arrays(held)) == 5
    assert as_arrays(load_split(name, "train", max_samples=2, streaming=True, **options)) == as_arrays(held)[:2]
    stored, found = TrainingSamples(held, draw, num_labels=4), iter(StreamedSamples(streamed, draw, num_labels=4))
    for epoch in range(3):  # what an epoch shows, unshuffled
        stored.set_epoch(epoch)
        for index in range(5):
            one, other = next(found), stored[index]
            assert all(torch.equal(one[key], other[key]) for key in ("pixel_values", "labels"))
    mixed = StreamedSamples(streamed, draw, num_labels=4, shuffle_buffer=4)
    names = [one["name"] for _, one in zip(range(10), mixed, strict=False)]
    assert sorted(names[:5]) == sorted(names[5:]) == held["name"][:] and names[:5] != names[5:]


def test_files_named_by_url_are_read_and_their_labels_mapped():
    for name in ("image", "label"):
        with fsspec.open(f"memory://{name}.png", "wb") as file:
            ROWS[0][name].save(file, format="PNG")
    row = {name: {"bytes": None, "path": f"memory://{name}.png"} for name in ("image", "label")}
    (read,) = StreamedRows([row], DecodedRows.with_map({1: 9}))
    label = np.asarray(ROWS[0]["label"])
    assert np.array_equal(read["label"], np.where(label == 1, 9, label)) and 1 in label
    assert np.array_equal(read["image"], ROWS[0]["image"])
