"""Tiny copies of the benchmarks' folder layouts, written on the fly.

Every builder takes `(root, split, count)` plus keywords, writes one split and returns `root`; call it again for another
split. What label files hold is described by tables `value in the file → train id` (`CITYSCAPES_VALUES`, ...): by
default label i shows its table's values as vertical bands, column x holding value number (x + i).
`labels=[array, ...]` writes given (H, W) arrays of file values instead; then `count` and `size` are theirs.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_CITYSCAPES_TRAINED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = {value: 255 for value in range(34)} | {value: i for i, value in enumerate(_CITYSCAPES_TRAINED)}
CITYSCAPES_VALUES = {7: 0, 26: 13, 3: 255, 11: 2, 33: 18, 1: 255}  # road, car, (out of roi), building, bicycle, (ego)
VOC_VALUES = {0: 0, 15: 15, 255: 255, 20: 20}  # background, person, (void), tvmonitor
ADE20K_VALUES = {1: 0, 150: 149, 0: 255, 13: 12}  # wall, flag, (other), person
COCO_STUFF_VALUES = {0: 0, 181: 170, 255: 255, 12: 11}  # person, wood, (unlabelled), stop sign
CAMVID_VALUES = {value: value for value in range(11)} | {11: 255}

_SPLIT_YEARS = {"train": 2007, "trainval": 2008, "val": 2009, "train_aug": 2010, "test": 2011}


def train_ids(label, table):
    """Expected result of loading a label file with `label`, (H, W) uint8; KeyError for values not in the table."""
    return np.array([table[int(value)] for value in label.ravel()], np.uint8).reshape(label.shape)


def cityscapes_folder(root, split="train", count=3, *, size=(8, 16), city="aachen", kinds=("labelIds",), labels=None):
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png and gtFine/<split>/<city>/*_gtFine_*.png.

    Beside the labels, with `kinds` "labelIds" and "labelTrainIds", are the polygons and instance ids of the
    published archive; without kinds there is no gtFine. `labels` always has arrays of the 34 ids.
    """
    for index, label in enumerate(_labels(labels, count, size, CITYSCAPES_VALUES)):
        stem = f"{split}/{city}/{city}_000000_{index:06d}"
        _save_image(root / f"leftImg8bit/{stem}_leftImg8bit.png", index, label)
        for kind in ("instanceIds", *kinds) if kinds else ():
            shown = train_ids(label, CITYSCAPES_IDS) if kind == "labelTrainIds" else label
            dtype = np.uint16 if kind == "instanceIds" else np.uint8
            _save_label(root / f"gtFine/{stem}_gtFine_{kind}.png", shown, dtype)
            (root / f"gtFine/{stem}_gtFine_polygons.json").write_text("{}")
    return root


def voc_folder(
    root, split="train", count=3, *, size=(8, 12), inside="", label_folder="SegmentationClass", id_list="", labels=None
):
    """JPEGImages/*.jpg, SegmentationClass/*.png (with VOC's palette) or SegmentationClassAug/*.png (grey), and a list.

    Everything is in `inside`, such as "VOCdevkit/VOC2012"; labels go to `label_folder` (None: no labels); the list of
    ids is `id_list` (None: no list), by default ImageSets/Segmentation/<split>.txt.
    """
    home, ids = root / inside, []
    for index, label in enumerate(_labels(labels, count, size, VOC_VALUES)):
        ids.append(f"{_SPLIT_YEARS[split]}_{index:06d}")
        _save_image(home / f"JPEGImages/{ids[-1]}.jpg", index, label)
        if label_folder is not None:
            _save_label(home / label_folder / f"{ids[-1]}.png", label, palette=label_folder == "SegmentationClass")
    if id_list is not None:
        path = home / (id_list or f"ImageSets/Segmentation/{split}.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in ids))
    return root


def ade20k_folder(root, split="train", count=3, *, size=(8, 12), image_suffix=".jpg", labels=None):
    """images/{training,validation}/ADE_*.jpg and annotations/{training,validation}/ADE_*.png."""
    folder = {"train": "training", "val": "validation"}[split]
    for index, label in enumerate(_labels(labels, count, size, ADE20K_VALUES)):
        stem = f"{folder}/ADE_{split}_{index + 1:08d}"
        _save_image(root / f"images/{stem}{image_suffix}", index, label)
        _save_label(root / f"annotations/{stem}.png", label)
    return root


def coco_stuff_folder(
    root, split="train", count=3, *, size=(8, 12), image_root="images", label_root="stuffthingmaps",
    image_suffix=".jpg", remapped_too=False, labels=None,
):  # fmt: skip
    """images/{train2017,val2017}/*.jpg and stuffthingmaps/{train2017,val2017}/*.png, or below other roots.

    `remapped_too`: also *_labelTrainIds.png beside each label, as written by mmsegmentation.
    """
    for index, label in enumerate(_labels(labels, count, size, COCO_STUFF_VALUES)):
        stem = f"{split}2017/{index + (500 if split == 'val' else 0):012d}"
        _save_image(root / image_root / f"{stem}{image_suffix}", index, label)
        _save_label(root / label_root / f"{stem}.png", label)
        if remapped_too:
            remapped = train_ids(label, COCO_STUFF_VALUES) if labels is None else np.zeros_like(label)
            _save_label(root / label_root / f"{stem}_labelTrainIds.png", remapped)
    return root


def camvid_folder(root, split="train", count=3, *, size=(4, 6), stems=None, image_suffix=".png", labels=None):
    """<split>/*.png and <split>annot/*.png, named a, b, c, ... or by `stems` (whose number is the count).

    Unlike in the other builders, label i is i everywhere by default, except void (11) in the upper left pixel.
    """
    stems = "abcdefghijklmnopqrstuvwxyz"[: len(labels or range(count))] if stems is None else stems
    for index, stem in enumerate(stems):
        label = np.full(size, index % 11, np.uint8) if labels is None else labels[index]
        if labels is None:
            label[0, 0] = 11
        _save_image(root / split / f"{stem}{image_suffix}", index, label)
        _save_label(root / f"{split}annot" / f"{stem}.png", label)
    return root


def _labels(labels, count, size, table):
    if labels is not None:
        return labels
    bands = [np.array(list(table), np.uint8)[(np.arange(size[1]) + index) % len(table)] for index in range(count)]
    return [np.broadcast_to(row, size).copy() for row in bands]


def _save_image(path, index, label):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", label.shape[::-1], (index % 256, 20, 30))
    image.save(path, format="PNG" if "png" in path.suffix.lower() else "JPEG")


def _save_label(path, label, dtype=np.uint8, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label.astype(dtype))
    if palette:
        image = image.convert("P")
        image.putdata(label.ravel().tolist())
        image.putpalette([channel for value in range(256) for channel in voc_colour(value)])
    image.save(path, format="PNG")


def voc_colour(value):
    """VOC's colour of a class: bits 0, 3, 6, ... of its id are the red channel from the highest bit down, and so on."""
    return tuple(
        sum(((value >> (3 * place + channel)) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )
