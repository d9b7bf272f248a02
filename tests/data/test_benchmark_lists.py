"""List files with one and two columns, as they circulate with the benchmarks."""

from __future__ import annotations

import pytest
from miniatures import ade20k_folder, camvid_folder, cityscapes_folder, coco_stuff_folder, voc_folder

from afdcd_hf.data.benchmarks import get_benchmark


def find(name, root, lines, split="train", file_name="a.lst"):
    list_file = root / file_name
    list_file.write_text(lines)
    row = get_benchmark(name)
    return row.find_files(row, root, split, list_file)


def pairs(files, root):
    return [
        tuple(path.relative_to(root).as_posix() for path in pair)
        for pair in zip(files.images, files.labels, strict=True)
    ]


def city(index, kind="labelIds", split="train"):
    stem = f"aachen/aachen_000000_{index:06d}"
    return f"leftImg8bit/{split}/{stem}_leftImg8bit.png", f"gtFine/{split}/{stem}_gtFine_{kind}.png"


LISTS = {  # name: (builder, lines, expected pairs)
    "cityscapes": (cityscapes_folder, "\t".join(city(2)) + "\n" + "\t".join(city(0)), [city(2), city(0)]),
    "voc": (
        voc_folder,
        "/JPEGImages/2007_000001.jpg /SegmentationClass/2007_000001.png\n",
        [("JPEGImages/2007_000001.jpg", "SegmentationClass/2007_000001.png")],
    ),
    "camvid": (camvid_folder, "train/b.png trainannot/b.png\r\n", [("train/b.png", "trainannot/b.png")]),
    "ade20k": (
        ade20k_folder,
        "images/training/ADE_train_00000003.jpg   annotations/training/ADE_train_00000003.png",
        [("images/training/ADE_train_00000003.jpg", "annotations/training/ADE_train_00000003.png")],
    ),
    "coco_stuff": (
        coco_stuff_folder,
        "images/train2017/000000000001.jpg\tstuffthingmaps/train2017/000000000001.png",
        [("images/train2017/000000000001.jpg", "stuffthingmaps/train2017/000000000001.png")],
    ),
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("slash", ["", "/"])
def test_two_columns_name_image_and_label(tmp_path, name, slash):
    build, lines, expected = LISTS[name]
    row = get_benchmark(name)
    whole = row.find_files(row, build(tmp_path), "train", None)
    files = find(name, tmp_path, f"# a comment\n\n{slash if not lines.startswith('/') else ''}{lines}")
    assert pairs(files, tmp_path) == expected and files.label_map == whole.label_map


@pytest.mark.parametrize("name", LISTS)
def test_one_column_names_images_by_path_file_name_or_id(tmp_path, name):
    build, _, expected = LISTS[name]
    build(tmp_path)
    for image, label in expected:
        path, stem = f"/{image}", image.rsplit("/", 1)[1].rsplit(".", 1)[0]
        for entry in (image, path, stem, image.rsplit("/", 1)[1], stem.removesuffix("_leftImg8bit")):
            assert pairs(find(name, tmp_path, entry), tmp_path) == [(image, label)]


def test_two_columns_may_cross_splits_and_order_is_the_lists(tmp_path):
    camvid_folder(camvid_folder(tmp_path), "val")
    lines = "val/c.png valannot/c.png\ntrain/a.png trainannot/a.png\n"
    assert [path.name for path in find("camvid", tmp_path, lines).images] == ["c.png", "a.png"]


def test_paths_may_be_relative_to_the_data_sets_own_root_or_to_data_dir(tmp_path):
    voc_folder(tmp_path, inside="VOCdevkit/VOC2012")
    pair = "JPEGImages/2007_000000.jpg", "SegmentationClass/2007_000000.png"
    expected = [tuple(f"VOCdevkit/VOC2012/{path}" for path in pair)]
    for lines in (" ".join(pair), " ".join(expected[0]), pair[0], expected[0][0]):
        assert pairs(find("voc", tmp_path, lines), tmp_path) == expected


def test_absolute_paths_of_another_machine_are_found_by_their_ends(tmp_path):
    camvid_folder(tmp_path)
    lines = "/SegNet/CamVid/train/a.png /SegNet/CamVid/trainannot/a.png"
    assert pairs(find("camvid", tmp_path, lines), tmp_path) == [("train/a.png", "trainannot/a.png")]
    assert pairs(find("camvid", tmp_path, "/SegNet/CamVid/train/a.png"), tmp_path) == [
        ("train/a.png", "trainannot/a.png")
    ]
    with pytest.raises(FileNotFoundError, match=r"are not in .*train: /SegNet/CamVid/val/a.png \(line 1\)"):
        find("camvid", tmp_path, "/SegNet/CamVid/val/a.png")
    with pytest.raises(FileNotFoundError, match=r"SegNet/CamVid/train/a.png \(line 1\)"):
        find("camvid", tmp_path, lines.replace("/SegNet", "SegNet"))
    with pytest.raises(ValueError, match=r"\.\./camvid/train/a\.png: listed paths must lie under data_dir"):
        find("camvid", tmp_path, "../camvid/train/a.png trainannot/a.png")


def test_blanks_in_paths_need_a_tab_after_them(tmp_path):
    camvid_folder(tmp_path, stems=["a b", "c"])
    assert len(find("camvid", tmp_path, "train/a b.png\ttrainannot/a b.png\n").images) == 1
    with pytest.raises(ValueError, match="line 1, has 4 columns; expected are one .* put a tab after it"):
        find("camvid", tmp_path, "train/a b.png trainannot/a b.png")


def test_missing_files_are_counted_and_named_with_their_lines(tmp_path):
    camvid_folder(tmp_path)
    lines = "# c\n" + "".join(f"train/{stem}.png trainannot/{stem}.png\n" for stem in "axbyzw")
    expected = (
        r"4 of the 6 images listed in .*a\.lst are not under .*: train/x\.png \(line 3\), .* \(line 6\), \.\.\.\."
    )
    with pytest.raises(FileNotFoundError, match=expected):
        find("camvid", tmp_path, lines)
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 labels listed .*: trainannot/x.png \(line 2\)\."):
        find("camvid", tmp_path, "train/a.png trainannot/a.png\ntrain/b.png trainannot/x.png")
    with pytest.raises(
        FileNotFoundError, match=r"2 of the 3 images listed in .* are not in .*train: x \(line 1\), val/a"
    ):
        find("camvid", tmp_path, "x\na\nval/a.png")
    (tmp_path / "trainannot" / "b.png").unlink()
    assert len(find("camvid", tmp_path, "a\nc").images) == 2  # what is not listed may be incomplete
    with pytest.raises(FileNotFoundError, match=r"1 of the 2 images .* have no label in .*trainannot: b \(line 2\)"):
        find("camvid", tmp_path, "a\nb")


def test_cityscapes_lists_decide_the_label_map_by_the_names_of_the_labels(tmp_path):
    cityscapes_folder(tmp_path, kinds=("labelIds", "labelTrainIds"))
    assert find("cityscapes", tmp_path, " ".join(city(0))).label_map[26] == 13
    assert find("cityscapes", tmp_path, " ".join(city(0, "labelTrainIds"))).label_map == {}
    mixed = " ".join(city(0)) + "\n" + " ".join(city(1, "labelTrainIds"))
    with pytest.raises(ValueError, match=r"lists \*_labelIds\.png \(line 1\) and \*_labelTrainIds\.png \(line 2\)"):
        find("cityscapes", tmp_path, mixed)
    with pytest.raises(ValueError, match=r"line 1: .*instanceIds.png is no label file .* wants \*_labelIds\.png or"):
        find("cityscapes", tmp_path, " ".join(city(0, "instanceIds")))


def test_coco_stuffs_remapped_labels_are_only_for_171_classes(tmp_path):
    coco_stuff_folder(tmp_path, remapped_too=True)
    lines = "images/train2017/000000000001.jpg stuffthingmaps/train2017/000000000001_labelTrainIds.png"
    assert find("coco_stuff", tmp_path, lines).label_map == {}
    with pytest.raises(
        ValueError, match=r"coco_stuff_182, which wants \*\.png, not \*_labelTrainIds\.png: its class ids"
    ):
        find("coco_stuff_182", tmp_path, lines)


def test_a_list_of_an_unlabelled_split_needs_no_labels(tmp_path):
    cityscapes_folder(tmp_path, "test", kinds=())
    files = find("cityscapes", tmp_path, city(1, split="test")[0], split="test")
    assert files.labels == (None,) and files.images[0].name == "aachen_000000_000001_leftImg8bit.png"


def test_voc_lists_may_stand_in_the_data_sets_own_place_with_two_columns(tmp_path):
    voc_folder(tmp_path, "train_aug", label_folder="SegmentationClassAug", id_list=None)
    (tmp_path / "ImageSets" / "SegmentationAug").mkdir(parents=True)
    pair = "JPEGImages/2010_000002.jpg", "SegmentationClassAug/2010_000002.png"
    (tmp_path / "ImageSets" / "SegmentationAug" / "train_aug.txt").write_text(f"/{pair[0]} /{pair[1]}\n")
    row = get_benchmark("voc")
    assert pairs(row.find_files(row, tmp_path, "train_aug", None), tmp_path) == [pair]


def test_a_list_may_be_given_relative_to_data_dir_and_must_exist(tmp_path):
    camvid_folder(tmp_path)
    (tmp_path / "mine.txt").write_text("\ufeffb\n", encoding="utf-8")  # with the mark that some editors write
    row = get_benchmark("camvid")
    assert pairs(row.find_files(row, tmp_path, "train", "mine.txt"), tmp_path) == [("train/b.png", "trainannot/b.png")]
    with pytest.raises(FileNotFoundError, match="The list yours.txt is not there, nor in "):
        row.find_files(row, tmp_path, "train", "yours.txt")


def test_empty_and_uneven_lists_are_refused_and_repetitions_noticed(tmp_path, caplog):
    camvid_folder(tmp_path)
    with pytest.raises(ValueError, match=r"a\.lst lists no image"):
        find("camvid", tmp_path, "# nothing\n\n")
    with pytest.raises(
        ValueError, match="line 2, has 1 columns, but the lines before it have 2: name the labels of all"
    ):
        find("camvid", tmp_path, "train/a.png trainannot/a.png\ntrain/b.png")
    assert len(find("camvid", tmp_path, "a\nb\na\n").images) == 3
    assert "lists 1 of its 3 images more than once" in caplog.text
