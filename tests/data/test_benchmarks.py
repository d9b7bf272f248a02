"""What the table says about each benchmark, held against values spelled out by hand, and the rows that are loaded."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import paths
import pytest
from miniatures import (
    CITYSCAPES_IDS,
    ade20k_folder,
    camvid_folder,
    cityscapes_folder,
    coco_stuff_folder,
    voc_colour,
    voc_folder,
)
from PIL import Image
from stored_pictures import ids

from afdcd_hf.data import benchmarks
from afdcd_hf.data.benchmarks import BENCHMARKS, find_files, get_benchmark
from afdcd_hf.data.benchmarks.row import read_benchmark
from afdcd_hf.data.loading import load_benchmark

CITYSCAPES_TRAIN_IDS = (
    # unlabeled ... ground; road, sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel
    *(255, 255, 255, 255, 255, 255, 255),
    *(0, 1, 255, 255, 2, 3, 4, 255, 255, 255),
    # pole, polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus
    *(5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    # caravan, trailer, train, motorcycle, bicycle
    *(255, 255, 16, 17, 18),
)
DEAD_IN_COCO = {12: "street sign", 26: "hat", 29: "shoe", 30: "eye glasses", 45: "plate", 66: "mirror", 68: "window"}
DEAD_IN_COCO |= {69: "desk", 71: "door", 83: "blender", 91: "hair brush"}
LIVE_IN_COCO = {1: "person", 13: "stop sign", 90: "toothbrush", 92: "banner", 124: "grass", 157: "sky-other"}
LIVE_IN_COCO |= {182: "wood"}
FOLDERS = {
    "camvid": camvid_folder,
    "cityscapes": cityscapes_folder,
    "voc": voc_folder,
    "ade20k": ade20k_folder,
    "coco_stuff": coco_stuff_folder,
    "coco_stuff_182": coco_stuff_folder,
}
CAMVID = paths.CAMVID


# The table


def test_numbers_of_classes_and_images_are_the_published_ones():
    facts = {name: (row.num_labels, dict(row.split_sizes)) for name, row in BENCHMARKS.items()}
    coco = {"train": 118287, "val": 5000}
    assert facts == {
        "scenes": (8, {"train": 400, "val": 100}),
        "camvid": (11, {"train": 367, "val": 101, "test": 233}),
        "cityscapes": (19, {"train": 2975, "val": 500, "test": 1525}),
        "voc": (21, {"train": 1464, "trainval": 2913, "val": 1449, "train_aug": 10582, "test": 1456}),
        "ade20k": (150, {"train": 20210, "val": 2000}),
        "coco_stuff": (171, coco),
        "coco_stuff_182": (182, coco),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_is_consistent_and_says_where_it_is_from_and_under_which_terms(name):
    row = BENCHMARKS[name]
    assert row.name == name and len(row.palette) == row.num_labels == len(set(row.classes)) == len(set(row.palette))
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in row.palette)
    assert row.label2id == {label: index for index, label in row.id2label.items()}
    assert row.id2label[0] == row.classes[0] and row.ignore_index == 255
    assert all(label == label.strip().lower() for label in row.classes) and row.licence
    assert json.loads(json.dumps([row.id2label, row.palette]))
    assert name == "scenes" or row.homepage.startswith("http") and row.citation.endswith(".")


@pytest.mark.parametrize(
    ("given", "meant"), [("Cityscapes", "cityscapes"), ("ade", "ade20k"), ("VOCaug", "voc"), ("coco", "coco_stuff")]
)
def test_unknown_names_list_the_known_ones_and_the_one_probably_meant(given, meant):
    with pytest.raises(ValueError, match=f"{given!r}; known are scenes, .*, voc; did you mean {meant!r}"):
        get_benchmark(given)
    with pytest.raises(ValueError, match=r"'imagenet-1k'; known are .*, voc\.$"):
        get_benchmark("imagenet-1k")


@pytest.mark.parametrize("name", FOLDERS)
def test_the_map_is_that_of_the_published_files(name, tmp_path):
    row = get_benchmark(name)
    assert row.label_map == find_files(row, FOLDERS[name](tmp_path), "train").label_map


def test_cityscapes_maps_each_of_the_34_ids_and_back_for_its_server():
    row = get_benchmark("cityscapes")
    assert [row.label_map[value] for value in range(34)] == list(CITYSCAPES_TRAIN_IDS) and len(row.label_map) == 34
    assert list(CITYSCAPES_IDS.values()) == list(CITYSCAPES_TRAIN_IDS)  # the miniatures' own table
    assert (row.classes[0], row.classes[6], row.classes[18]) == ("road", "traffic light", "bicycle")
    assert (row.palette[0], row.palette[6], row.palette[18]) == ((128, 64, 128), (250, 170, 30), (119, 11, 32))
    back = row.submission.label_ids
    assert [CITYSCAPES_TRAIN_IDS[back[train_id]] for train_id in range(19)] == list(range(19)) and back[255] == 0
    name = "cityscapes/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    assert row.submission.file_name(name) == "berlin_000000_000019_labelIds.png"


def test_camvid_and_voc_keep_their_ids_and_have_their_own_colours():
    camvid, row = get_benchmark("camvid"), get_benchmark("voc")
    assert camvid.classes[3] == "road" and camvid.palette[3] == (128, 64, 128) and camvid.label_map == {11: 255}
    assert row.label_map == row.submission.label_ids == {}
    spelled = {0: "background", 5: "bottle", 15: "person", 20: "tvmonitor"}
    assert {index: row.classes[index] for index in spelled} == spelled
    assert row.palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert row.palette == tuple(voc_colour(index) for index in range(21))  # the miniatures' own rule
    assert row.submission.file_name("VOCdevkit/VOC2012/JPEGImages/2008_000006.jpg") == "2008_000006.png"


def test_ade20k_classes_are_one_less_than_the_files_values():
    row = get_benchmark("ade20k")
    assert row.label_map == {0: 255, **{value: value - 1 for value in range(1, 151)}}
    spelled = {1: "wall", 2: "building", 8: "bed", 13: "person", 21: "car", 81: "bus", 128: "bicycle", 150: "flag"}
    assert {value: row.classes[row.label_map[value]] for value in spelled} == spelled
    assert row.palette[0] == (120, 120, 120) and row.palette[6] == (140, 140, 140) and row.palette[149] == (92, 0, 255)
    back = row.submission.label_ids
    assert all(row.label_map[back[train_id]] == train_id for train_id in range(150)) and back[255] == 0
    assert row.submission.file_name("images/validation/ADE_val_00000001.jpg") == "ADE_val_00000001.png"


def test_coco_stuff_leaves_out_what_was_never_annotated_and_coco_stuff_182_keeps_it():
    row, whole = get_benchmark("coco_stuff"), get_benchmark("coco_stuff_182")
    mapping = [row.label_map.get(value, value) for value in range(182)]
    assert [value + 1 for value, train_id in enumerate(mapping) if train_id == 255] == list(DEAD_IN_COCO)
    assert [train_id for train_id in mapping if train_id != 255] == list(range(171))
    assert {coco_id: row.classes[mapping[coco_id - 1]] for coco_id in LIVE_IN_COCO} == LIVE_IN_COCO
    assert not set(DEAD_IN_COCO.values()) & set(row.classes)
    spelled = DEAD_IN_COCO | LIVE_IN_COCO
    assert whole.label_map == {} and {coco_id: whole.classes[coco_id - 1] for coco_id in spelled} == spelled
    assert whole.palette == tuple(voc_colour(coco_id) for coco_id in range(1, 183))
    colours = dict(zip(whole.classes, whole.palette, strict=True))
    assert [colours[name] for name in row.classes] == list(row.palette)


def test_a_benchmark_is_one_file(tmp_path, monkeypatch):
    path = tmp_path / "rooms.yaml"
    path.write_text(
        "licence: mine\nhomepage: http://x\ncitation: Me.\nlayout: train/, train_ids/\nsplits: {train: 3}\n"
        "ignored: [9]\nfiles: {images: ['{split}'], labels: ['{split}_ids']}\n"
        "classes: {4: [wall, 1, 2, 3], 0: [floor, 4, 5, 6]}\n"
    )
    monkeypatch.setitem(benchmarks.BENCHMARKS, "rooms", read_benchmark(path))
    for folder, mode in (("train", "RGB"), ("train_ids", "L")):
        (tmp_path / folder).mkdir()
        Image.new(mode, (2, 1), {"RGB": (9, 9, 9), "L": 4}[mode]).save(tmp_path / folder / "a.png")
    (row,) = load_benchmark("rooms", "train", tmp_path)
    assert get_benchmark("rooms").classes == ("floor", "wall") and ids(row["label"]) == [[1, 1]]
    assert get_benchmark("rooms").label_map == {9: 255, 4: 1}


def test_reading_the_table_imports_neither_torch_nor_datasets():
    code = "import sys; from afdcd_hf.data import BENCHMARKS; print({'torch', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_the_package_exports_every_name_it_lists():
    import afdcd_hf.data as data

    assert all(getattr(data, name).__module__.startswith("afdcd_hf.data") for name in data.__all__ if name[1].islower())
    assert set(data.__all__) <= set(dir(data)) and data.SCENE_CLASSES == data.BENCHMARKS["scenes"].classes
    with pytest.raises(AttributeError, match="no attribute 'load_benchmarks'"):
        data.load_benchmarks  # noqa: B018


# Rows


def test_rows_are_rgb_images_and_remapped_labels_with_a_name_in_every_view(tmp_path):
    dataset = load_benchmark("camvid", "train", str(camvid_folder(tmp_path)))
    assert dataset.column_names == ["image", "label", "name"] and len(dataset) == 3
    row = dataset[1]
    assert row["image"].mode == "RGB" and row["image"].size == (6, 4) and row["label"].mode == "L"
    assert ids(row["label"])[0] == [255, 1, 1, 1, 1, 1] and row["name"] == "train/b.png"
    for view in (dataset.select([0, 2]), dataset.shuffle(seed=0), pickle.loads(pickle.dumps(dataset))):
        for row in view:
            label = ids(row["label"])[0]
            assert label[0] == 255 and label[1] == np.array(row["image"])[0, 0, 0]
    assert [ids(label)[0][0] for label in dataset[:2]["label"]] == [255, 255]
    assert ids(dataset["label"][2])[0][0] == 255
    assert dataset.select_columns("name")[2] == {"name": "train/c.png"}
    wider = dataset.map(lambda row: {"width": row["image"].width})
    assert wider[2]["width"] == 6 and ids(wider[2]["label"])[0][:2] == [255, 2]
    stored = {"bytes": None, "path": str(tmp_path / "trainannot" / "c.png")}
    assert wider.with_format(None)[2]["label"] == stored  # the file as it is


def test_options_are_checked_and_data_dir_must_be_given_and_exist(tmp_path):
    for arguments, options, message in (
        (("camvit",), {}, "'camvit'; known are scenes, .*; did you mean 'camvid'"),
        (("camvid", "trainval", tmp_path), {}, "camvid has no split 'trainval'; it has train, val, test"),
        (
            ("camvid", "train", tmp_path),
            {"size": (96, 192)},
            r"is read from files: leave out size='\(96, 192\)'",
        ),
        (("camvid", "train"), {}, "give data_dir, a folder with train/ and trainannot/"),
        (("scenes", "train", tmp_path), {}, "scenes is generated and reads no files: leave out data_dir="),
        (("scenes",), {"list_file": "x.txt"}, r"leave out list_file='x\.txt'"),
        (("scenes",), {"num_images": 0}, "num_images=0"),
        (("scenes",), {"seed": -1}, "seed=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            load_benchmark(*arguments, **options)
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; camvid needs"):
        load_benchmark("camvid", "train", tmp_path / "nowhere")


def test_a_count_other_than_the_published_one_is_a_warning(tmp_path, caplog):
    load_benchmark("camvid", "train", camvid_folder(tmp_path))
    assert "camvid train has 3 images, published are 367" in caplog.text


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the real CamVid is not here")
def test_the_real_camvid_loads_with_labels_in_range_and_no_warning(caplog):
    for split, size in (("train", 367), ("val", 101)):
        dataset = load_benchmark("camvid", split, CAMVID)
        assert len(dataset) == size
        label = np.array(dataset[7]["label"])
        assert label.shape == (360, 480) and set(np.unique(label)) <= {*range(11), 255}
        assert label[:60].tolist().count(3) == 0 and (label[300:] == 3).mean() > 0.3  # the road is below, not above
    assert not caplog.records
    with pytest.raises(FileNotFoundError, match="no folder test .*Splits found there: train, val"):
        load_benchmark("camvid", "test", CAMVID)


def test_scenes_repeat_more_of_them_only_append_and_splits_and_seeds_share_none():
    def pixels_of(split="train", **options):
        rows = load_benchmark("scenes", split, size=(32, 64), **options)
        assert [row["name"] for row in rows] == [f"scenes/{split}/{index:06d}" for index in range(len(rows))]
        for row in rows:
            assert row["image"].mode == "RGB" and row["image"].size == row["label"].size == (64, 32)
            assert row["label"].mode == "L" and set(np.unique(np.array(row["label"]))) <= {*range(8), 255}
        return [np.array(row["image"]).tobytes() for row in rows]

    many = pixels_of(num_images=4)
    assert pixels_of(num_images=2) == many[:2]
    others = [pixels_of("val", num_images=4), pixels_of(num_images=4, seed=1), pixels_of("val", num_images=4, seed=1)]
    assert len({*many, *sum(others, [])}) == 16
