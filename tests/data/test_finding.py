"""Miniature copies of the folder layouts: which files are found, by lists too, and what is said when some are not."""

from __future__ import annotations

import os
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
    """The map takes each label file's values to the train ids of the table."""
    for label in files.labels:
        values = np.asarray(Image.open(label))
        mapped = np.vectorize(lambda value: files.label_map.get(value, value))(values)
        assert np.array_equal(mapped, train_ids(values, table)) and len(np.unique(mapped)) > 1


# Folders


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_every_image_is_found_with_its_label_and_the_label_map(tmp_path, name, split):
    build, table = BUILDERS[name]
    build(build(tmp_path, "train"), "val", 2)
    files = find(name, tmp_path, split)
    assert len(files.images) == len(files.labels) == len(set(files.images)) == (3 if split == "train" else 2)
    assert all(path.is_file() for path in (*files.images, *files.labels))
    assert list(files.images) == sorted(files.images) and list(files.labels) == sorted(files.labels)
    assert_mapped(files, table)


@pytest.mark.parametrize(
    ("name", "home"),
    [("camvid", "CamVid"), ("cityscapes", "cityscapes"), ("voc", "VOCdevkit/VOC2012"), ("voc", "VOC2012")]
    + [("ade20k", "ADEChallengeData2016"), ("coco_stuff", "coco_stuff164k")],
)
def test_the_usual_parent_of_a_data_set_is_accepted(tmp_path, name, home):
    BUILDERS[name][0](tmp_path / home)
    inside = names(find(name, tmp_path / home).images, tmp_path)
    assert names(find(name, tmp_path).images, tmp_path) == inside and inside[0].startswith(f"{home}/")


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
    image, label = pairs(find("cityscapes", tmp_path), tmp_path)[0]
    assert image == "leftImg8bit/train/bremen/bremen_000000_000000_leftImg8bit.png"
    assert label == "gtFine/train/bremen/bremen_000000_000000_gtFine_labelIds.png"
    for name in ("leftImg8bit", "gtFine"):  # folders may be those of the archives
        (tmp_path / f"{name}_trainvaltest").mkdir()
        (tmp_path / name).rename(tmp_path / f"{name}_trainvaltest" / name)
    assert names(find("cityscapes", tmp_path).labels, tmp_path)[0] == f"gtFine_trainvaltest/{label}"


def test_cityscapes_train_ids_are_used_where_label_ids_are_absent(tmp_path):
    both = find("cityscapes", cityscapes_folder(tmp_path / "both", kinds=("labelIds", "labelTrainIds")))
    assert all(path.name.endswith("_labelIds.png") for path in both.labels) and both.label_map[7] == 0
    ready = find("cityscapes", cityscapes_folder(tmp_path / "ready", kinds=("labelTrainIds",)))
    assert all(path.name.endswith("_labelTrainIds.png") for path in ready.labels) and ready.label_map == {}
    assert_mapped(ready, {0: 0, 2: 2, 13: 13, 18: 18, 255: 255})
    with pytest.raises(FileNotFoundError, match="holds no file ending in _gtFine_labelIds.png, _gtFine_labelTrain"):
        find("cityscapes", cityscapes_folder(tmp_path / "neither", kinds=("color",)))


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
    with pytest.raises(FileNotFoundError, match="no folder gtFine/train or gtFine_trainvaltest/gtFine/train, needed"):
        find("cityscapes", cityscapes_folder(tmp_path / "train", kinds=()))


def test_voc_takes_the_ids_of_the_splits_list_from_among_all_images(tmp_path):
    voc_folder(voc_folder(voc_folder(tmp_path), "val", 2), "test", label_folder=None)
    (tmp_path / "ImageSets" / "Segmentation" / "trainval.txt").write_text("2009_000001\n\n2007_000002 \n")
    files = find("voc", tmp_path, "trainval")
    assert names(files.images, tmp_path) == ["JPEGImages/2009_000001.jpg", "JPEGImages/2007_000002.jpg"]
    for folder in ("Segmentation", "SegmentationAug"):
        for stem in ("trainaug", "train_aug"):
            root, aug = tmp_path / folder / stem, {"label_folder": "SegmentationClassAug"}
            voc_folder(root, "train_aug", id_list=f"ImageSets/{folder}/{stem}.txt", **aug)
            assert len(find("voc", root, "train_aug").images) == 3


def test_voc_prefers_the_official_mask_of_an_image(tmp_path):
    voc_folder(tmp_path, count=2, id_list=None)
    voc_folder(tmp_path, count=4, label_folder="SegmentationClassAug")
    folders = [label.parent.name for label in find("voc", tmp_path).labels]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    only_aug = voc_folder(tmp_path / "aug", "val", label_folder="SegmentationClassAug")
    assert_mapped(find("voc", only_aug, "val"), VOC_VALUES)


def test_voc_train_aug_without_a_list_is_all_masks_but_vals(tmp_path, caplog):
    voc_folder(voc_folder(tmp_path), "val", 2)
    for split in ("val", "train_aug"):
        voc_folder(tmp_path, split, 2, label_folder="SegmentationClassAug", id_list=None)
    with caplog.at_level("INFO"):
        files = find("voc", tmp_path, "train_aug")
    ids = [f"2007_00000{index}" for index in range(3)] + ["2010_000000", "2010_000001"]
    assert [path.stem for path in files.images] == [path.stem for path in files.labels] == ids
    assert "no list of train_aug: taking the images with a label in SegmentationClassAug" in caplog.text
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no list .*/train_aug.txt \(or SegmentationClassAug.* there: train\."):
        find("voc", tmp_path, "train_aug")


def test_voc_names_missing_folders_lists_and_masks(tmp_path):
    voc_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no list ImageSets/Segmentation/val.txt, needed .* there: train\."):
        find("voc", tmp_path, "val")
    (tmp_path / "SegmentationClass" / "2007_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 3 .* no label in .*SegmentationClass: .*01 \(line 2\)\."):
        find("voc", tmp_path)
    (tmp_path / "SegmentationClass").rename(tmp_path / "masks")
    with pytest.raises(FileNotFoundError, match="no folder SegmentationClass or SegmentationClassAug, needed for voc"):
        find("voc", tmp_path)
    (tmp_path / "JPEGImages").rename(tmp_path / "images")
    with pytest.raises(FileNotFoundError, match="no folder JPEGImages .*Expected: JPEGImages/"):
        find("voc", tmp_path)


def test_coco_stuff_is_found_under_each_of_its_usual_names(tmp_path):
    for number, label_root in enumerate(["stuffthingmaps", "annotations", "labels"]):
        root = coco_stuff_folder(tmp_path / label_root, image_root=["images", ""][number % 2], label_root=label_root)
        assert_mapped(find("coco_stuff", root), COCO_STUFF_VALUES)


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


@pytest.mark.parametrize("name", ["ade20k", "coco_stuff", "cityscapes", "camvid"])
def test_images_and_labels_without_counterpart_are_counted_and_named(tmp_path, name):
    files = find(name, BUILDERS[name][0](tmp_path, count=6))
    for path in (*files.labels[:4], files.images[5]):
        path.unlink()
    first, last = files.images[0].name, files.labels[5].name
    with pytest.raises(FileNotFoundError, match=rf"4 in .* without label \({first}, .*\); 1 in .* image \({last}\)"):
        find(name, tmp_path)


def test_empty_folders_and_doubled_stems_are_refused_and_hidden_files_are_no_data(tmp_path):
    images = camvid_folder(tmp_path) / "train"
    (images / "._a.png").write_bytes(b"")
    (tmp_path / "trainannot" / "Thumbs.db").write_bytes(b"")
    assert len(find("camvid", tmp_path).images) == 3
    (images / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"both a\.jpg and a\.png"):
        find("camvid", tmp_path)
    for path in [*images.iterdir()]:
        path.unlink()
    (images / "readme.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"train holds no file ending in \.png, \.jpg, \.jpeg"):
        find("camvid", tmp_path)


def test_the_number_of_system_calls_does_not_grow_with_the_number_of_files(tmp_path, monkeypatch):
    calls = []

    def counted(real):
        return lambda *args, **options: calls.append(args) or real(*args, **options)

    for name in ("stat", "lstat", "listdir", "scandir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def number_of_calls(root, count):
        coco_stuff_folder(root, count=count)
        stems = [f"{index:012d}" for index in range(count)]
        lines = (f"images/train2017/{stem}.jpg stuffthingmaps/train2017/{stem}.png" for stem in stems)
        (root / "two.lst").write_text("\n".join(lines))
        (root / "one.lst").write_text("\n".join(stems))
        calls.clear()
        for list_file in (None, root / "one.lst", root / "two.lst"):
            assert len(find("coco_stuff", root, list_file=list_file).images) == count
        return len(calls)

    assert 0 < number_of_calls(tmp_path / "few", 2) == number_of_calls(tmp_path / "many", 20)


# Lists


def city(index, kind="labelIds", split="train"):
    stem = f"aachen/aachen_000000_{index:06d}"
    return f"leftImg8bit/{split}/{stem}_leftImg8bit.png", f"gtFine/{split}/{stem}_gtFine_{kind}.png"


LISTED = {  # pairs of image and label
    "cityscapes": [city(2), city(0)],
    "voc": [("JPEGImages/2007_000001.jpg", "SegmentationClass/2007_000001.png")],
    "camvid": [("train/b.png", "trainannot/b.png")],
    "ade20k": [("images/training/ADE_train_00000003.jpg", "annotations/training/ADE_train_00000003.png")],
    "coco_stuff": [("images/train2017/000000000001.jpg", "stuffthingmaps/train2017/000000000001.png")],
}


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("form", ["{} {}", "/{}   /{}", "{}\t{}", "{} {}\r", "\\{} \\{}"])
def test_two_columns_name_image_and_label(tmp_path, name, form):
    whole = find(name, BUILDERS[name][0](tmp_path))
    lines = "\n".join(form.format(*pair) for pair in LISTED[name])
    lines = lines.replace("/", "\\") if "\\" in form else lines
    files = listed(name, tmp_path, f"# a comment\n\n{lines}", split="val" if name == "camvid" else "train")
    assert pairs(files, tmp_path) == LISTED[name] and files.label_map == whole.label_map  # in order, across splits


@pytest.mark.parametrize("name", LISTED)
def test_one_column_names_images_by_path_file_name_or_id(tmp_path, name):
    BUILDERS[name][0](tmp_path)
    for image, label in LISTED[name]:
        file = image.rsplit("/", 1)[1]
        stem = file.rsplit(".", 1)[0]
        for entry in (image, f"/{image}", image.replace("/", "\\"), file, stem, stem.removesuffix("_leftImg8bit")):
            assert pairs(listed(name, tmp_path, entry), tmp_path) == [(image, label)]


def test_paths_may_be_relative_to_the_data_sets_own_root_or_to_data_dir(tmp_path):
    voc_folder(tmp_path, inside="VOCdevkit/VOC2012")
    pair = "JPEGImages/2007_000000.jpg", "SegmentationClass/2007_000000.png"
    expected = [tuple(f"VOCdevkit/VOC2012/{path}" for path in pair)]
    for lines in (" ".join(pair), " ".join(expected[0]), pair[0], expected[0][0]):
        assert pairs(listed("voc", tmp_path, lines), tmp_path) == expected


@pytest.mark.parametrize("home", ["/SegNet/CamVid", "C:\\SegNet\\CamVid"])
def test_absolute_paths_of_another_machine_are_found_by_their_ends(tmp_path, home):
    camvid_folder(tmp_path)
    lines = f"{home}/train/a.png {home}/trainannot/a.png"
    assert pairs(listed("camvid", tmp_path, lines), tmp_path) == [("train/a.png", "trainannot/a.png")]
    assert len(listed("camvid", tmp_path, f"{home}/train/a.png").images) == 1
    with pytest.raises(FileNotFoundError, match=r"are not in .*train: /SegNet/CamVid/val/a.png \(line 1\)"):
        listed("camvid", tmp_path, f"{home}/val/a.png")
    with pytest.raises(FileNotFoundError, match=r"SegNet/CamVid/train/a.png \(line 1\)"):
        listed("camvid", tmp_path, lines.replace(home, "SegNet/CamVid"))
    with pytest.raises(ValueError, match=r"\.\./camvid/train/a\.png: listed paths must lie under data_dir"):
        listed("camvid", tmp_path, "../camvid/train/a.png trainannot/a.png")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-16-le"])
@pytest.mark.parametrize("line", ["train/é.png\ttrainannot/é.png", "train/é.png", "é"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_lists_in_other_encodings_and_names_in_other_unicode_forms(tmp_path, encoding, line, on_disk):
    camvid_folder(tmp_path, stems=[unicodedata.normalize(on_disk, "é"), "b"])
    (tmp_path / "trainannot" / (unicodedata.normalize(on_disk, "é") + ".png")).rename(tmp_path / "trainannot" / "é.png")
    assert len(find("camvid", tmp_path).images) == 2
    for form in ("NFC",) if encoding == "latin-1" else ("NFC", "NFD"):
        (tmp_path / "mine.txt").write_text(unicodedata.normalize(form, line), encoding=encoding)
        if encoding in ("latin-1", "utf-16-le"):  # the latter without a mark that says so
            with pytest.raises(ValueError, match=r"The list .*mine\.txt is not text in UTF-8 .*; save it in UTF-8"):
                find("camvid", tmp_path, list_file="mine.txt")
        else:
            (image,) = find("camvid", tmp_path, list_file="mine.txt").images
            assert image.is_file() and unicodedata.normalize("NFC", image.stem) == "é"


def test_missing_files_are_counted_and_named_with_their_lines(tmp_path):
    camvid_folder(tmp_path)
    lines = "# c\n" + "".join(f"train/{stem}.png trainannot/{stem}.png\n" for stem in "axbyzw")
    expected = (
        r"4 of the 6 images listed in .*a\.lst are not under .*: train/x\.png \(line 3\), .* \(line 6\), \.\.\.\."
    )
    with pytest.raises(FileNotFoundError, match=expected):
        listed("camvid", tmp_path, lines)
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 labels listed .*: trainannot/x.png \(line 2\)\."):
        listed("camvid", tmp_path, "train/a.png trainannot/a.png\ntrain/b.png trainannot/x.png")
    with pytest.raises(FileNotFoundError, match=r"2 of the 3 images .* are not in .*train: x \(line 1\), val/a"):
        listed("camvid", tmp_path, "x\na\nval/a.png")
    (tmp_path / "trainannot" / "b.png").unlink()
    assert len(listed("camvid", tmp_path, "a\nc").images) == 2  # what is not listed may be incomplete
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images .* have no label in .*trainannot: b \(line 2\)"):
        listed("camvid", tmp_path, "a\nb")


def test_the_names_of_listed_labels_decide_the_label_map(tmp_path):
    cityscapes_folder(tmp_path, kinds=("labelIds", "labelTrainIds"))
    assert listed("cityscapes", tmp_path, " ".join(city(0))).label_map[26] == 13
    assert listed("cityscapes", tmp_path, " ".join(city(0, "labelTrainIds"))).label_map == {}
    mixed = " ".join(city(0)) + "\n" + " ".join(city(1, "labelTrainIds"))
    with pytest.raises(ValueError, match=r"lists \*\w+labelIds\.png \(line 1\) and \*\w+labelTrainIds\.png \(line 2\)"):
        listed("cityscapes", tmp_path, mixed)
    with pytest.raises(ValueError, match=r"line 1: .*instanceIds.png is no label file .* wants \*\w+labelIds\.png or"):
        listed("cityscapes", tmp_path, " ".join(city(0, "instanceIds")))
    coco_stuff_folder(tmp_path, remapped_too=True)
    lines = "images/train2017/000000000001.jpg stuffthingmaps/train2017/000000000001_labelTrainIds.png"
    assert listed("coco_stuff", tmp_path, lines).label_map == {}
    with pytest.raises(ValueError, match=r"182, which wants \*\.png, not \*_labelTrainIds\.png: its class ids"):
        listed("coco_stuff_182", tmp_path, lines)


def test_lists_of_unlabelled_splits_and_lists_in_the_data_sets_own_place(tmp_path):
    cityscapes_folder(tmp_path, "test", kinds=())
    files = listed("cityscapes", tmp_path, city(1, split="test")[0], split="test")
    assert files.labels == (None,) and files.images[0].name == "aachen_000000_000001_leftImg8bit.png"
    voc_folder(tmp_path, "train_aug", label_folder="SegmentationClassAug", id_list=None)
    (tmp_path / "ImageSets" / "SegmentationAug").mkdir(parents=True)
    pair = "JPEGImages/2010_000002.jpg", "SegmentationClassAug/2010_000002.png"
    (tmp_path / "ImageSets" / "SegmentationAug" / "train_aug.txt").write_text(f"/{pair[0]} /{pair[1]}\n")
    assert pairs(find("voc", tmp_path, "train_aug"), tmp_path) == [pair]


def test_missing_empty_and_uneven_lists_are_refused_and_repetitions_noticed(tmp_path, caplog):
    camvid_folder(tmp_path, stems=["a b", "a", "b"])
    assert len(listed("camvid", tmp_path, "train/a b.png\ttrainannot/a b.png\n").images) == 1
    with pytest.raises(ValueError, match="line 1, has 4 columns; expected are one .* put a tab after it"):
        listed("camvid", tmp_path, "train/a b.png trainannot/a b.png")
    with pytest.raises(FileNotFoundError, match="The list yours.txt is not there, nor in "):
        find("camvid", tmp_path, list_file="yours.txt")
    with pytest.raises(ValueError, match=r"a\.lst lists no image"):
        listed("camvid", tmp_path, "# nothing\n\n")
    with pytest.raises(ValueError, match="line 2, has 1 columns, but the lines before it have 2: name the labels of"):
        listed("camvid", tmp_path, "train/a.png trainannot/a.png\ntrain/b.png")
    assert len(listed("camvid", tmp_path, "a\nb\na\n").images) == 3
    assert "lists 1 of its 3 images more than once" in caplog.text
