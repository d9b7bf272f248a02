"""Miniature copies of the folder layouts: which files are found, with and without lists, and errors."""

from __future__ import annotations

import unicodedata

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

from afdcd_hf.data.benchmarks import find_files, get_benchmark

BUILDERS = {
    "camvid": (camvid_folder, CAMVID_VALUES),
    "cityscapes": (cityscapes_folder, CITYSCAPES_VALUES),
    "voc": (voc_folder, VOC_VALUES),
    "ade20k": (ade20k_folder, ADE20K_VALUES),
    "coco_stuff": (coco_stuff_folder, COCO_STUFF_VALUES),
    "coco_stuff_182": (coco_stuff_folder, {value: value for value in COCO_STUFF_VALUES}),
}
HOMES = {"camvid": "CamVid", "cityscapes": "cityscapes", "voc": "VOCdevkit/VOC2012", "ade20k": "ADEChallengeData2016"}
AUG = {"label_folder": "SegmentationClassAug"}


def find(name, root, split="train", list_file=None):
    return find_files(get_benchmark(name), root, split, list_file)


def listed(name, root, lines, split="train"):
    (root / "a.lst").write_text(lines)
    return find(name, root, split, root / "a.lst")


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def pairs(files, root):
    return list(zip(names(files.images, root), names(files.labels, root), strict=True))


def assert_mapped(files, table):
    """Check that the map turns each label file's values into the table's train ids."""
    for label in files.labels:
        values = np.asarray(Image.open(label))
        mapped = np.vectorize(lambda value: files.label_map.get(value, value))(values)
        assert np.array_equal(mapped, train_ids(values, table)) and len(np.unique(mapped)) > 1


def refuses(error, message, *arguments, call=find, **options):
    with pytest.raises(error, match=message):
        call(*arguments, **options)


# Folders


@pytest.mark.parametrize("name", BUILDERS)
def test_every_image_is_found_with_its_label_and_label_map_also_in_usual_subfolders(tmp_path, name):
    build, table = BUILDERS[name]
    home = tmp_path / HOMES.get(name, "coco")
    build(build(home, "train"), "val", 2)
    for split, count in (("train", 3), ("val", 2)):
        files = find(name, home, split)
        assert len(files.images) == len(files.labels) == len(set(files.images)) == count
        assert all(path.is_file() for path in (*files.images, *files.labels))
        assert list(files.images) == sorted(files.images) and list(files.labels) == sorted(files.labels)
        assert_mapped(files, table)
        assert files.label_map == get_benchmark(name).label_map and find(name, tmp_path, split) == files
    for path in (*files.images, *files.labels):
        path.rename(path.with_suffix(path.suffix.upper()))
    assert len(find(name, home, "val").images) == 2


def test_cityscapes_pairs_by_city_sequence_and_frame_and_falls_back_to_train_ids(tmp_path):
    cityscapes_folder(cityscapes_folder(tmp_path, city="zurich"), city="bremen", kinds=("labelIds", "labelTrainIds"))
    (tmp_path / "leftImg8bit" / "train" / "bremen" / "notes.png").write_bytes(b"")  # without the ending: not data
    for name in ("leftImg8bit", "gtFine"):  # folders may be named as in the archives
        (tmp_path / f"{name}_trainvaltest").mkdir()
        (tmp_path / name).rename(tmp_path / f"{name}_trainvaltest" / name)
    files = find("cityscapes", tmp_path)
    assert len(files.labels) == 6 and pairs(files, tmp_path)[0] == (
        "leftImg8bit_trainvaltest/leftImg8bit/train/bremen/bremen_000000_000000_leftImg8bit.png",
        "gtFine_trainvaltest/gtFine/train/bremen/bremen_000000_000000_gtFine_labelIds.png",
    )
    ready = find("cityscapes", cityscapes_folder(tmp_path / "ready", kinds=("labelTrainIds",)))
    assert all(path.name.endswith("_labelTrainIds.png") for path in ready.labels) and ready.label_map == {}
    neither = cityscapes_folder(tmp_path / "neither", kinds=("color",))
    refuses(FileNotFoundError, "no file ending in _gtFine_labelIds.png, _gtFine_labelTrain", "cityscapes", neither)


def test_a_test_split_may_have_no_labels(tmp_path):
    none = cityscapes_folder(tmp_path / "none", "test", kinds=())
    assert find("cityscapes", none, "test").labels == (None,) * 3
    one = listed("cityscapes", none, "leftImg8bit/test/aachen/aachen_000000_000001_leftImg8bit.png", split="test")
    assert one.labels == (None,) and one.images[0].name == "aachen_000000_000001_leftImg8bit.png"
    dummies = find("cityscapes", cityscapes_folder(tmp_path / "dummies", "test"), "test")
    assert None not in dummies.labels and dummies.label_map[1] == 255
    dummies.labels[0].unlink()
    lonely = r"1 in .*leftImg8bit.test without label \(aachen_000000_000000_left"
    refuses(FileNotFoundError, lonely, "cityscapes", tmp_path / "dummies", "test")
    voc = voc_folder(voc_folder(tmp_path / "voc"), "test", label_folder=None)  # masks of train lie there
    assert find("voc", voc, "test").labels == (None,) * 3


def test_voc_uses_the_ids_of_the_splits_list_and_prefers_official_masks(tmp_path):
    voc_folder(voc_folder(tmp_path, count=2, id_list=None), count=4, **AUG)
    folders = [label.parent.name for label in find("voc", tmp_path).labels]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    (tmp_path / "ImageSets" / "Segmentation" / "trainval.txt").write_text("2007_000003\n\n2007_000002 \n")
    files = find("voc", tmp_path, "trainval")
    assert names(files.images, tmp_path) == ["JPEGImages/2007_000003.jpg", "JPEGImages/2007_000002.jpg"]
    for path in ("Segmentation/trainaug", "SegmentationAug/train_aug"):
        root = voc_folder(tmp_path / path, "train_aug", id_list=f"ImageSets/{path}.txt", **AUG)
        assert len(find("voc", root, "train_aug").images) == 3


def test_coco_stuff_accepts_usual_names_and_remapped_copies_beside_or_instead_of_the_originals(tmp_path):
    for image_root, label_root in (("images", "annotations"), ("", "labels")):
        root = coco_stuff_folder(tmp_path / label_root, image_root=image_root, label_root=label_root)
        assert_mapped(find("coco_stuff", root), COCO_STUFF_VALUES)
    root = coco_stuff_folder(tmp_path / "both", remapped_too=True)
    for label in find("coco_stuff", root).labels:
        assert label == root / "stuffthingmaps" / "train2017" / f"{label.stem}.png" and len(label.stem) == 12
        label.unlink()
    remapped = find("coco_stuff", root)
    assert remapped.label_map == {} and remapped.labels[0].name == "000000000000_labelTrainIds.png"
    refuses(FileNotFoundError, r"train2017 holds no file ending in \.png", "coco_stuff_182", root)


def test_missing_folders_lists_and_labels_are_reported_with_all_accepted_names(tmp_path):
    voc = voc_folder(tmp_path / "voc")
    for split in ("val", "train_aug"):
        lacking = (
            rf"no list ImageSets/Segmentation/{split}\.txt, needed for voc's split {split}\. Expected: JPEGImages/"
        )
        refuses(FileNotFoundError, lacking, "voc", voc, split)
    (voc / "SegmentationClass" / "2007_000001.png").unlink()
    refuses(FileNotFoundError, r"1 of the 3 .* no label in .*SegmentationClass: .*01 \(line 2\)\.", "voc", voc)
    lacking = (
        r"no folder images/val2017 or val2017 and no stuffthingmaps/val2017 or annotations/val2017 or labels/val2017, "
        r"needed for coco_stuff's split val\. Expected: images/train2017"
    )
    refuses(FileNotFoundError, lacking, "coco_stuff", coco_stuff_folder(tmp_path / "coco_stuff"), "val")


def test_unpaired_and_duplicate_files_and_empty_folders_are_named(tmp_path):
    files = find("cityscapes", cityscapes_folder(tmp_path / "c", count=6))
    for path in (*files.labels[:4], files.images[5]):
        path.unlink()
    lonely = rf"4 in .* without label \({files.images[0].name}, .*\); 1 in .* image \({files.labels[5].name}\)"
    refuses(FileNotFoundError, lonely, "cityscapes", tmp_path / "c")
    images = camvid_folder(tmp_path) / "train"
    (images / "._a.png").write_bytes(b"")  # hidden files are not data
    assert len(find("camvid", tmp_path).images) == 3
    (images / "a.jpg").write_bytes(b"")
    refuses(ValueError, r"both a\.jpg and a\.png", "camvid", tmp_path)
    for path in [*images.iterdir()]:
        path.unlink()
    refuses(FileNotFoundError, r"train holds no file ending in \.png, \.jpg, \.jpeg", "camvid", tmp_path)


# Lists


def city(index, kind="labelIds"):
    stem = f"aachen/aachen_000000_{index:06d}"
    return f"leftImg8bit/train/{stem}_leftImg8bit.png", f"gtFine/train/{stem}_gtFine_{kind}.png"


LISTED = {  # pairs of image and label
    "cityscapes": [city(2), city(0)],
    "voc": [("JPEGImages/2007_000001.jpg", "SegmentationClass/2007_000001.png")],
    "camvid": [("train/b.png", "trainannot/b.png")],
    "ade20k": [("images/training/ADE_train_00000003.jpg", "annotations/training/ADE_train_00000003.png")],
    "coco_stuff": [("images/train2017/000000000001.jpg", "stuffthingmaps/train2017/000000000001.png")],
}


@pytest.mark.parametrize("name", LISTED)
def test_lists_have_image_and_label_columns_or_one_column_of_paths_file_names_or_ids(tmp_path, name):
    whole = find(name, BUILDERS[name][0](tmp_path))
    for form in ("{} {}", "/{}   /{}", "{}\t{}", "{} {}\r"):
        lines = "\n".join(form.format(*pair) for pair in LISTED[name])
        files = listed(name, tmp_path, f"# a comment\n\n{lines}", split="val" if name == "camvid" else "train")
        assert pairs(files, tmp_path) == LISTED[name] and files.label_map == whole.label_map  # in order, across splits
    for image, label in LISTED[name]:
        file = image.rsplit("/", 1)[1]
        stem = file.rsplit(".", 1)[0]
        for entry in (image, f"/{image}", image.replace("/", "\\"), file, stem, stem.removesuffix("_leftImg8bit")):
            assert pairs(listed(name, tmp_path, entry), tmp_path) == [(image, label)]


def test_paths_may_be_relative_to_either_root_or_from_another_machine(tmp_path):
    voc_folder(tmp_path, inside="VOCdevkit/VOC2012")
    pair = "JPEGImages/2007_000000.jpg", "SegmentationClass/2007_000000.png"
    expected = [tuple(f"VOCdevkit/VOC2012/{path}" for path in pair)]
    for lines in (" ".join(pair), " ".join(expected[0]), pair[0], expected[0][0]):
        assert pairs(listed("voc", tmp_path, lines), tmp_path) == expected
    camvid_folder(tmp_path)
    for home in ("/SegNet/CamVid", "C:\\SegNet\\CamVid"):
        lines = f"{home}/train/a.png {home}/trainannot/a.png"
        assert pairs(listed("camvid", tmp_path, lines), tmp_path) == [("train/a.png", "trainannot/a.png")]
        assert len(listed("camvid", tmp_path, f"{home}/train/a.png").images) == 1
        for error, given, message in (
            (FileNotFoundError, f"{home}/val/a.png", r"are not in .*train: /SegNet/CamVid/val/a.png \(line 1\)"),
            (FileNotFoundError, lines.replace(home, "SegNet/CamVid"), r"SegNet/CamVid/train/a.png \(line 1\)"),
            (ValueError, "../c/a.png trainannot/a.png", r"\.\./c/a\.png: listed paths must lie under data_dir"),
        ):
            refuses(error, message, "camvid", tmp_path, given, call=listed)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("line", "on_disk"), [("train/é.png\ttrainannot/é.png", "NFD"), ("train/é.png", "NFC"), ("é", "NFD")]
)
def test_lists_in_other_encodings_and_names_in_other_unicode_forms(tmp_path, encoding, line, on_disk):
    camvid_folder(tmp_path, stems=[unicodedata.normalize(on_disk, "é"), "b"])
    (tmp_path / "trainannot" / (unicodedata.normalize(on_disk, "é") + ".png")).rename(tmp_path / "trainannot" / "é.png")
    assert len(find("camvid", tmp_path).images) == 2
    for form in ("NFC", "NFD"):
        (tmp_path / "mine.txt").write_text(unicodedata.normalize(form, line), encoding=encoding)
        (image,) = find("camvid", tmp_path, list_file="mine.txt").images
        assert image.is_file() and unicodedata.normalize("NFC", image.stem) == "é"
    for other in ("latin-1", "utf-16-le"):  # the latter without a byte order mark
        (tmp_path / "mine.txt").write_text(line, encoding=other)
        message = r"The list .*mine\.txt is not text in UTF-8 .*; save it in UTF-8"
        refuses(ValueError, message, "camvid", tmp_path, list_file="mine.txt")


def test_the_names_of_listed_labels_decide_the_label_map(tmp_path):
    cityscapes_folder(tmp_path, kinds=("labelIds", "labelTrainIds"))
    assert listed("cityscapes", tmp_path, " ".join(city(0))).label_map[26] == 13
    assert listed("cityscapes", tmp_path, " ".join(city(0, "labelTrainIds"))).label_map == {}
    mixed = " ".join(city(0)) + "\n" + " ".join(city(1, "labelTrainIds"))
    for lines, kinds in ((mixed, r"Ids\.png \(line 1\) and .*TrainIds"), (" ".join(city(0, "color")), "color")):
        message = rf"{kinds}\.png \(line .\), but the labels of cityscapes must be all \*_gtFine_labelIds\.png or all"
        refuses(ValueError, message, "cityscapes", tmp_path, lines, call=listed)


def test_lists_with_missing_files_or_bad_lines_are_rejected_and_duplicates_reported(tmp_path, caplog):
    (camvid_folder(tmp_path, stems=["a b", "a", "b", "c"]) / "trainannot" / "b.png").unlink()
    assert len(listed("camvid", tmp_path, "a\nc").images) == 2  # unlisted images may lack a label
    assert len(listed("camvid", tmp_path, "train/a b.png\ttrainannot/a b.png\n").images) == 1
    many = "# c\n" + "".join(f"train/{stem}.png trainannot/{stem}.png\n" for stem in "axcyzw")
    for error, lines, message in (
        (FileNotFoundError, many, r"4 of the 6 images .*a\.lst are not under .*: train/x\.png \(line 3\), .* \.\.\.\."),
        (FileNotFoundError, "train/a.png trainannot/x.png", r"1 of the 1 labels .*: trainannot/x.png \(l"),
        (FileNotFoundError, "x\na\nval/a.png", r"2 of the 3 images .* are not in .*train: x \(line 1\), val/a"),
        (FileNotFoundError, "a\nb", r"1 of the 2 images .* have no label in .*trainannot: b \(line 2\)"),
        (ValueError, "train/a b.png trainannot/a b.png", "line 1, has 4 columns; .* put a tab after it"),
        (ValueError, "train/a.png trainannot/a.png\ntrain/b.png", "line 2, has 1 columns; .* as many as in the lines"),
        (ValueError, "# nothing\n\n", r"a\.lst lists no image"),
    ):
        refuses(error, message, "camvid", tmp_path, lines, call=listed)
    refuses(FileNotFoundError, "There is no list yours.txt, here or in ", "camvid", tmp_path, list_file="yours.txt")
    assert len(listed("camvid", tmp_path, "a\nc\na\n").images) == 3
    assert "lists 1 of its 3 images more than once" in caplog.text
