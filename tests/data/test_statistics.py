"""Label statistics, compared with counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from miniatures import voc_folder
from PIL import Image

from afdcd_hf.data import count_labels, load_split

FIRST = [[0, 0, 1], [1, 255, 1]]
SECOND = [[3, 3], [3, 3], [0, 255]]


def row(label):
    return {"image": None, "label": None if label is None else Image.fromarray(np.array(label, np.uint8))}


def test_pixels_images_and_sizes_are_counted_in_one_pass():
    rows = [row(FIRST), row(SECOND), row(None)]
    for given in (rows, iter(rows)):
        found = count_labels(given, 5)
        assert found.pixels.tolist() == [3, 3, 0, 4, 0] and found.images.tolist() == [2, 1, 0, 1, 0]
        assert found.ignored == 2 and found.sizes == {(2, 3): 1, (3, 2): 1} and found.unlabelled == 1
        assert found.shares.tolist() == [0.3, 0.3, 0, 0.4, 0] and found.ignored_share == 2 / 12
    assert count_labels(rows).pixels.tolist() == [3, 3, 0, 4]  # as many classes as there are
    with pytest.raises(ValueError, match=r"image 1: 4 label pixels lie outside 0..1 \(values 3\)"):
        count_labels(rows, 2)


def test_images_are_not_read(tmp_path):
    voc_folder(tmp_path, count=2, labels=[np.array(FIRST, np.uint8), np.array(SECOND, np.uint8)])
    for image in (tmp_path / "JPEGImages").iterdir():
        image.write_bytes(b"damaged")
    assert count_labels(load_split("voc", "train", tmp_path), 21).pixels[:4].tolist() == [3, 3, 0, 4]


def test_balanced_weights_are_enets():
    weights = count_labels([row(FIRST), row(SECOND)], 5).balanced_weights  # shares 0.3, 0.3, 0, 0.4, 0
    by_hand = [1 / math.log(1.32), 1 / math.log(1.32), 1 / math.log(1.02), 1 / math.log(1.42), 1 / math.log(1.02)]
    assert weights.tolist() == pytest.approx([5 * one / sum(by_hand) for one in by_hand])
