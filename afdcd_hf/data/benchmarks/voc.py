"""Pascal VOC 2012: twenty object classes and the background, with or without the masks of SBD ("VOCAug")."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from .colours import voc_colour
from .files import IMAGE_SUFFIXES, LABEL_SUFFIXES, by_key, first_folder, home_of, lacking, visible_files
from .lists import read_list
from .pairing import Found, LabelKind, all_pairs, listed_pairs, picked_pairs, stem_of
from .row import Benchmark, SplitFiles, Submission

logger = logging.getLogger(__name__)

_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
_HOMES = ("", "VOC2012", "VOCdevkit/VOC2012")
_IMAGES, _LABELS, _MORE_LABELS = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
_LIST_FOLDERS = ("ImageSets/Segmentation", "ImageSets/SegmentationAug")
_KINDS = (LabelKind("", {}),)


def _find_files(benchmark: Benchmark, root: Path, split: str, list_file: Path | None) -> SplitFiles:
    """The images of a list, by default the split's in ImageSets, and their masks.

    An image has its mask from SegmentationClass, and from SegmentationClassAug only if it has none there: so the
    official masks are used wherever there are any, in all splits and whichever way SegmentationClassAug was made. A
    list of two columns, such as the released code's, decides for itself.
    """
    home = home_of(root, _HOMES, (_IMAGES,))
    if list_file is None:
        list_file = _split_list(home, split)
    listed = None if list_file is None else read_list(list_file, root)
    if listed is not None and listed.names_labels:
        return listed_pairs(benchmark, listed, (home, root), _KINDS)
    found = _scan(benchmark, home, split)
    if listed is None:
        return _without_list(benchmark, home, split, found)
    return picked_pairs(found, listed, key_of=str)


def _scan(benchmark: Benchmark, home: Path, split: str) -> Found:
    image_dir = _folder(benchmark, home, split, (_IMAGES,))
    images = by_key(visible_files(image_dir, IMAGE_SUFFIXES), str, image_dir)
    optional = split == "test"
    if not optional:
        _folder(benchmark, home, split, (_LABELS, _MORE_LABELS))
    labels = _masks(home / _MORE_LABELS) | _masks(home / _LABELS)  # the right one wins
    return Found(images, labels, {}, str(image_dir), f"{_LABELS} or {_MORE_LABELS} of {home}", optional)


def _folder(benchmark: Benchmark, home: Path, split: str, paths: tuple[str, ...]) -> Path:
    folder = first_folder(home, paths)
    if folder is None:
        there = [name for name in benchmark.split_sizes if _split_list(home, name)]
        raise lacking(benchmark, home, split, f"folder {' or '.join(paths)}", there)
    return folder


def _masks(folder: Path) -> dict[str, Path]:
    return by_key(visible_files(folder, LABEL_SUFFIXES), str, folder) if folder.is_dir() else {}


def _split_list(home: Path, split: str) -> Path | None:
    """The list of a split: train_aug goes by two names, and in two folders."""
    names = ("train_aug", "trainaug") if split == "train_aug" else (split,)
    paths = [home / folder / f"{name}.txt" for folder in _LIST_FOLDERS for name in names]
    return next((path for path in paths if path.is_file()), None)


def _without_list(benchmark: Benchmark, home: Path, split: str, found: Found) -> SplitFiles:
    """train_aug is what has a mask in SegmentationClassAug or is in train, and is not in val: 10,582 images."""
    val, train = _split_list(home, "val"), _split_list(home, "train")
    more = set(_masks(home / _MORE_LABELS))
    if split != "train_aug" or val is None or not more:
        there = [name for name in benchmark.split_sizes if _split_list(home, name)]
        helpful = f" (or {_MORE_LABELS}/*.png and {_LIST_FOLDERS[0]}/val.txt)" if split == "train_aug" else ""
        raise lacking(benchmark, home, split, f"list {_LIST_FOLDERS[0]}/{split}.txt{helpful}", there)
    keys = (more | _ids(train)) - _ids(val)
    logger.info(
        "%s has no list of train_aug: taking the images with a mask in %s and those of train, without val's",
        home,
        _MORE_LABELS,
    )
    of_split = {key: path for key, path in found.images.items() if key in keys}
    labels = {key: path for key, path in found.labels.items() if key in keys}
    return all_pairs(replace(found, images=of_split, labels=labels))


def _ids(path: Path | None) -> set[str]:
    return set() if path is None else {stem_of(columns[0]) for columns in read_list(path, path.parent).rows}


VOC = Benchmark(
    name="voc",
    classes=tuple(_CLASSES),
    palette=tuple(voc_colour(index) for index in range(21)),
    split_sizes={"train": 1464, "trainval": 2913, "val": 1449, "train_aug": 10582, "test": 1456},
    licence="images: Flickr's terms of use; the terms of SBD's masks are not stated",
    homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    citation=(
        "M. Everingham, L. Van Gool, C. K. I. Williams, J. Winn, A. Zisserman: The Pascal visual object classes (VOC) "
        "challenge. International Journal of Computer Vision 88(2), 2010. For train_aug also B. Hariharan, "
        "P. Arbeláez, L. Bourdev, S. Maji, J. Malik: Semantic contours from inverse detectors. ICCV 2011."
    ),
    layout=(
        "JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/<split>.txt as in VOCdevkit/VOC2012 (or "
        "a folder that holds VOCdevkit/VOC2012/); for train_aug also SegmentationClassAug/*.png and "
        "ImageSets/Segmentation/trainaug.txt; the test split has no masks"
    ),
    find_files=_find_files,
    submission=Submission(label_ids={}),
)
