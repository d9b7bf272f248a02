"""Miniature copies of the folder layouts: which files are found, and what is said when some are not."""

from __future__ import annotations

import os

import numpy as np
import pytest
from miniatures import (
    ADE20K_VALUES,
    CAMVID_VALUES,
    CITYSCAPES_VALUES,
    COCO_STUFF_VALUES,
    VOC_VALUES,
    ade20k_folder,
    camvid_folder,
    cityscapes_folder,
    coco_stuff_folder,
    train_ids,
    voc_folder,
)
from PIL import Image

from afdcd_hf.data.benchmarks import get_benchmark

BUILDERS = {
    "camvid": (camvid_folder, CAMVID_VALUES),
    "cityscapes": (cityscapes_folder, CITYSCAPES_VALUES),
    "voc": (voc_folder, VOC_VALUES),
    "ade20k": (ade20k_folder, ADE20K_VALUES),
    "coco_stuff": (coco_stuff_folder, COCO_STUFF_VALUES),
    "coco_stuff_182": (coco_stuff_folder, {value: value for value in COCO_STUFF_VALUES}),
}


def find(name, root, split="train", list_file=None):
    row = get_benchmark(name)
    return row.find_files(row, root, split, list_file)


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def assert_mapped(files, table):
    """The map takes each label file's values to the train ids of the table."""
    for label in files.labels:
        values = np.asarray(Image.open(label))
        mapped = np.vectorize(lambda value: files.label_map.get(value, value))(values)
        assert np.array_equal(mapped, train_ids(values, table)) and len(np.unique(mapped)) > 1


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_image_is_found_with_its_label_and_the_label_map(tmp_path, name, split):
    build, table = BUILDERS[name]
    build(build(tmp_path, "train"), "val", 2)
    files = find(name, tmp_path, split)
    assert len(files.images) == len(files.labels) == (3 if split == "train" else 2)
    assert all(path.is_file() for path in (*files.images, *files.labels)) and len(set(files.images)) == len(
        files.images
    )
    assert list(files.images) == sorted(files.images) and list(files.labels) == sorted(files.labels)
    assert_mapped(files, table)


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("camvid", "CamVid"),
        ("cityscapes", "cityscapes"),
        ("voc", "VOCdevkit/VOC2012"),
        ("voc", "VOC2012"),
        ("ade20k", "ADEChallengeData2016"),
        ("coco_stuff", "coco_stuff164k"),
    ],
)
def test_the_usual_parent_of_a_data_set_is_accepted(tmp_path, name, home):
    build, _ = BUILDERS[name]
    build(tmp_path / home)
    inside = find(name, tmp_path / home)
    assert names(find(name, tmp_path).images, tmp_path / home) == names(inside.images, tmp_path / home)
    assert names(find(name, tmp_path).images, tmp_path)[0].startswith(f"{home}/")


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff"])
def test_suffixes_may_be_in_upper_case_and_images_png(tmp_path, name):
    build, table = BUILDERS[name]
    for suffix in (".JPG", ".PNG", ".jpeg"):
        root = build(tmp_path / suffix, image_suffix=suffix)
        for label in find(name, root).labels:
            label.rename(label.with_suffix(".PNG"))
        files = find(name, root)
        assert {path.suffix for path in files.images} == {suffix} and {path.suffix for path in files.labels} == {".PNG"}
        assert_mapped(files, table)


def test_cityscapes_pairs_by_city_sequence_and_frame(tmp_path):
    cityscapes_folder(cityscapes_folder(tmp_path, city="zurich"), city="bremen", count=1)
    (tmp_path / "leftImg8bit" / "train" / "bremen" / "notes.png").write_bytes(b"")  # without the ending: no data
    (tmp_path / "leftImg8bit" / "train" / "license.txt").write_text("")
    files = find("cityscapes", tmp_path)
    assert names(files.images, tmp_path)[:2] == [
        "leftImg8bit/train/bremen/bremen_000000_000000_leftImg8bit.png",
        "leftImg8bit/train/zurich/zurich_000000_000000_leftImg8bit.png",
    ]
    assert names(files.labels, tmp_path)[3] == "gtFine/train/zurich/zurich_000000_000002_gtFine_labelIds.png"


def test_cityscapes_train_ids_are_used_where_label_ids_are_absent(tmp_path):
    both = find("cityscapes", cityscapes_folder(tmp_path / "both", kinds=("labelIds", "labelTrainIds")))
    assert all(path.name.endswith("_labelIds.png") for path in both.labels) and both.label_map[7] == 0
    ready = find("cityscapes", cityscapes_folder(tmp_path / "ready", kinds=("labelTrainIds",)))
    assert all(path.name.endswith("_labelTrainIds.png") for path in ready.labels) and ready.label_map == {}
    assert_mapped(ready, {0: 0, 2: 2, 13: 13, 18: 18, 255: 255})
    with pytest.raises(
        FileNotFoundError, match="train holds no file ending in _gtFine_labelIds.png, _gtFine_labelTrain"
    ):
        find("cityscapes", cityscapes_folder(tmp_path / "neither", kinds=("color",)))


def test_cityscapes_folders_may_be_those_of_the_archives(tmp_path):
    cityscapes_folder(tmp_path)
    for name in ("leftImg8bit", "gtFine"):
        (tmp_path / f"{name}_trainvaltest").mkdir()
        (tmp_path / name).rename(tmp_path / f"{name}_trainvaltest" / name)
    assert names(find("cityscapes", tmp_path).labels, tmp_path)[0].startswith("gtFine_trainvaltest/gtFine/train/")


def test_a_test_split_may_have_no_labels(tmp_path):
    files = find("cityscapes", cityscapes_folder(tmp_path / "none", "test", kinds=()), "test")
    assert len(files.images) == 3 and files.labels == (None,) * 3
    (tmp_path / "none" / "gtFine" / "test" / "aachen").mkdir(parents=True)
    assert find("cityscapes", tmp_path / "none", "test").labels == (None,) * 3
    dummies = find("cityscapes", cityscapes_folder(tmp_path / "dummies", "test"), "test")
    assert None not in dummies.labels and dummies.label_map[1] == 255
    dummies.labels[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 in .*leftImg8bit.test without label \(aachen_000000_000000_left"):
        find("cityscapes", tmp_path / "dummies", "test")
    voc = voc_folder(voc_folder(tmp_path / "voc"), "test", label_folder=None)  # masks of train lie there
    assert find("voc", voc, "test").labels == (None,) * 3
    with pytest.raises(
        FileNotFoundError, match="no folder gtFine/train or gtFine_trainvaltest/gtFine/train, needed for"
    ):
        find("cityscapes", cityscapes_folder(tmp_path / "train", kinds=()))


def test_camvid_has_a_labelled_test_split(tmp_path):
    assert_mapped(find("camvid", camvid_folder(tmp_path, "test"), "test"), CAMVID_VALUES | {11: 255})


def test_voc_takes_the_ids_of_the_splits_list_from_among_all_images(tmp_path):
    voc_folder(voc_folder(voc_folder(tmp_path), "val", 2), "test", label_folder=None)
    (tmp_path / "ImageSets" / "Segmentation" / "trainval.txt").write_text("2009_000001\n\n2007_000002 \n")
    files = find("voc", tmp_path, "trainval")
    assert names(files.images, tmp_path) == ["JPEGImages/2009_000001.jpg", "JPEGImages/2007_000002.jpg"]
    assert Image.open(files.labels[0]).mode == "P"


def test_voc_prefers_the_official_mask_of_an_image(tmp_path):
    voc_folder(tmp_path, count=2, id_list=None)
    voc_folder(tmp_path, count=4, label_folder="SegmentationClassAug")
    folders = [label.parent.name for label in find("voc", tmp_path).labels]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    only_aug = voc_folder(tmp_path / "aug", "val", label_folder="SegmentationClassAug")
    assert_mapped(find("voc", only_aug, "val"), VOC_VALUES)


@pytest.mark.parametrize("folder", ["Segmentation", "SegmentationAug"])
@pytest.mark.parametrize("stem", ["trainaug", "train_aug"])
def test_voc_train_aug_is_found_by_each_of_its_lists(tmp_path, folder, stem):
    voc_folder(tmp_path, "train_aug", label_folder="SegmentationClassAug", id_list=f"ImageSets/{folder}/{stem}.txt")
    assert len(find("voc", tmp_path, "train_aug").images) == 3


def test_voc_train_aug_without_a_list_is_all_masks_but_vals(tmp_path, caplog):
    voc_folder(voc_folder(tmp_path), "val", 2)
    for split in ("val", "train_aug"):
        voc_folder(tmp_path, split, 2, label_folder="SegmentationClassAug", id_list=None)
    with caplog.at_level("INFO"):
        files = find("voc", tmp_path, "train_aug")
    ids = [f"2007_00000{index}" for index in range(3)] + ["2010_000000", "2010_000001"]
    assert [path.stem for path in files.images] == [path.stem for path in files.labels] == ids
    assert "no list of train_aug: taking the images with a mask in SegmentationClassAug" in caplog.text
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list .*/train_aug.txt \(or SegmentationClassAug.* there: train\."):
        find("voc", tmp_path, "train_aug")


def test_voc_names_missing_folders_lists_and_masks(tmp_path):
    voc_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no list ImageSets/Segmentation/val.txt, needed .* there: train\."):
        find("voc", tmp_path, "val")
    (tmp_path / "SegmentationClass" / "2007_000001.png").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 of the 3 .* have no label in SegmentationClass or .*01 \(line 2\)\."
    ):
        find("voc", tmp_path)
    (tmp_path / "SegmentationClass").rename(tmp_path / "masks")
    with pytest.raises(
        FileNotFoundError, match="no folder SegmentationClass or SegmentationClassAug, needed for voc's"
    ):
        find("voc", tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="no folder JPEGImages, .*Expected: JPEGImages/"):
        find("voc", tmp_path)


@pytest.mark.parametrize("image_root", ["images", ""])
@pytest.mark.parametrize("label_root", ["stuffthingmaps", "annotations", "labels"])
def test_coco_stuff_is_found_under_each_of_its_usual_names(tmp_path, image_root, label_root):
    coco_stuff_folder(tmp_path, image_root=image_root, label_root=label_root)
    assert_mapped(find("coco_stuff", tmp_path), COCO_STUFF_VALUES)


def test_coco_stuffs_remapped_copies_do_not_disturb_and_serve_alone(tmp_path):
    coco_stuff_folder(tmp_path, remapped_too=True)
    for name in ("coco_stuff", "coco_stuff_182"):
        assert [path.stem for path in find(name, tmp_path).labels] == [f"{index:012d}" for index in range(3)]
    for label in find("coco_stuff", tmp_path).labels:
        label.unlink()
    remapped = find("coco_stuff", tmp_path)
    assert remapped.label_map == {} and remapped.labels[0].name == "000000000000_labelTrainIds.png"
    with pytest.raises(FileNotFoundError, match=r"train2017 holds no file ending in \.png"):
        find("coco_stuff_182", tmp_path)


def test_missing_folders_are_named_with_all_their_names_and_the_splits_there(tmp_path):
    coco_stuff_folder(tmp_path / "coco")
    with pytest.raises(
        FileNotFoundError,
        match=r"no folder images/val2017 or val2017 and no stuffthingmaps/val2017 or annotations/val2017 or labels/"
        r"val2017, needed for coco_stuff's split val\. Expected: images/train2017.* there: train\.",
    ):
        find("coco_stuff", tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="no folder images/training and no annotations/training, .*there: none"):
        find("ade20k", tmp_path)


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff", "cityscapes"])
def test_images_and_labels_without_counterpart_are_counted_and_named(tmp_path, name):
    files = find(name, BUILDERS[name][0](tmp_path, count=6))
    for path in (*files.labels[:4], files.images[5]):
        path.unlink()
    first, last = files.images[0].name, files.labels[5].name
    with pytest.raises(FileNotFoundError, match=rf"4 in .* without label \({first}, .*\); 1 in .* image \({last}\)"):
        find(name, tmp_path)


def test_the_number_of_system_calls_does_not_grow_with_the_number_of_files(tmp_path, monkeypatch):
    calls = []

    def counted(real):
        return lambda *args, **options: calls.append(args) or real(*args, **options)

    for name in ("stat", "lstat", "listdir", "scandir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def number_of_calls(root, count):
        coco_stuff_folder(root, count=count)
        lines = (
            f"images/train2017/{index:012d}.jpg stuffthingmaps/train2017/{index:012d}.png" for index in range(count)
        )
        (root / "two.lst").write_text("\n".join(lines))
        (root / "one.lst").write_text("\n".join(f"{index:012d}" for index in range(count)))
        calls.clear()
        for list_file in (None, root / "one.lst", root / "two.lst"):
            assert len(find("coco_stuff", root, list_file=list_file).images) == count
        return len(calls)

    assert 0 < number_of_calls(tmp_path / "few", 2) == number_of_calls(tmp_path / "many", 20)
