"""CutMix and ClassMix against plain loops over the pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from afdcd_hf.data.samples import TrainingSamples, classmix_mask, collate_samples

HEIGHT, WIDTH, SEED, EPOCH = 8, 12, 5, 2


def row(index):
    """One colour an image, for the pixels to tell where they come from; a column of its labels is ignored."""
    ids = np.random.default_rng(index).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    ids[:, index] = 255
    return {"image": Image.new("RGB", (WIDTH, HEIGHT), (index, 0, 0)), "label": Image.fromarray(ids)}


ROWS = [row(index) for index in range(6)]
MORE = [{"image": Image.new("RGB", (WIDTH, HEIGHT), (50, 0, 0))}]


def transform(image, label, rng):
    """Colour and a draw in two channels: the draw shows which generator it was."""
    pixels = torch.zeros(3, HEIGHT, WIDTH)
    pixels[0], pixels[1] = image.getpixel((0, 0))[0], rng.random()
    return {"pixel_values": pixels, "labels": torch.from_numpy(np.asarray(label).astype(np.int64))}


def samples(**options):
    made = TrainingSamples(ROWS, transform, num_labels=4, seed=SEED, **options)
    made.set_epoch(EPOCH)
    return made


def plain(index, kind):
    """Sample `index` with another mixed in, pixel by pixel, and its name."""
    draws = np.random.default_rng([SEED, EPOCH, index, 2])
    if kind == "classmix":
        draws.random()  # CutMix's, whose probability is 0
    draws.random()
    partner = int(draws.integers(len(ROWS)))
    other = transform(ROWS[partner]["image"], ROWS[partner]["label"], draws)
    if kind == "cutmix":
        scale = math.sqrt(draws.random())
        tall, wide = int(HEIGHT * scale), int(WIDTH * scale)
        top, left = int(draws.integers(HEIGHT)) - tall // 2, int(draws.integers(WIDTH)) - wide // 2
    else:
        there = sorted({int(value) for value in other["labels"].flatten()} - {255})
        chosen = set(draws.choice(there, 2, replace=False).tolist())
    own = samples()[index]
    pixels, labels = own["pixel_values"].clone(), own["labels"].clone()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if kind == "cutmix":
                taken = top <= y < top + tall and left <= x < left + wide
            else:
                taken = int(other["labels"][y, x]) in chosen
            if taken:
                pixels[:, y, x], labels[y, x] = other["pixel_values"][:, y, x], other["labels"][y, x]
    return pixels, labels, f"image {index} with parts of image {partner}"


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_pixels_and_labels_are_those_of_a_plain_loop_in_any_batch_and_from_workers(kind):
    mixed = samples(**{f"{kind}_probability": 1.0})
    options = {"num_workers": 1, "timeout": 60, "multiprocessing_context": "fork", "collate_fn": collate_samples}
    batches = list(DataLoader(mixed, batch_size=3, **options))
    seen = [sample for batch in batches for sample in zip(*batch.values(), strict=True)]
    changed = 0
    for index, (pixels, labels, name) in enumerate(seen):
        expected = plain(index, kind)
        assert torch.equal(pixels, expected[0]) and torch.equal(labels, expected[1]) and name == expected[2]
        assert torch.equal(mixed.__getitems__([4, index])[1]["labels"], labels)
        changed += bool((pixels[0] != index).any())
    assert changed >= 4  # but for partners that are the image itself, and rectangles that are empty


def test_half_of_the_samples_are_mixed_and_the_others_as_ever():
    mixed, usual = samples(cutmix_probability=0.5), samples()
    drawn = [np.random.default_rng([SEED, EPOCH, index, 2]).random() < 0.5 for index in range(6)]
    assert [" with parts of " in mixed[index]["name"] for index in range(6)] == drawn and 0 < sum(drawn) < 6
    for index in (index for index in range(6) if not drawn[index]):
        assert torch.equal(mixed[index]["pixel_values"], usual[index]["pixel_values"])


def test_an_unlabelled_image_is_labelled_where_a_labelled_one_is_pasted():
    options = {"unlabelled": MORE, "classmix_probability": 1.0}
    sample = samples(**options).__getitems__([0, 1])[1]
    pasted = sample["pixel_values"][0] != 50
    assert (sample["labels"] != 255).equal(pasted) and 0 < pasted.sum() < HEIGHT * WIDTH


def test_one_class_alone_is_not_pasted_and_a_probability_is_checked():
    for labels in (torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255)):
        assert not classmix_mask(labels, np.random.default_rng(0), 255).any()
    with pytest.raises(ValueError, match=r"classmix_probability=1.5: expected 0 to 1"):
        samples(classmix_probability=1.5)
