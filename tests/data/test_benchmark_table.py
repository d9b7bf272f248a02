"""What the table says about each benchmark, held against values spelled out by hand."""

from __future__ import annotations

import json

import pytest
from miniatures import CITYSCAPES_IDS, ade20k_folder, cityscapes_folder, coco_stuff_folder, voc_colour, voc_folder

from afdcd_hf.data.benchmarks import BENCHMARKS, get_benchmark

CITYSCAPES_TRAIN_IDS = (
    # unlabeled ... ground; road, sidewalk, parking, rail track, building, wall, fence, guard rail, bridge, tunnel
    *(255, 255, 255, 255, 255, 255, 255),
    *(0, 1, 255, 255, 2, 3, 4, 255, 255, 255),
    # pole, polegroup, traffic light, traffic sign, vegetation, terrain, sky, person, rider, car, truck, bus
    *(5, 255, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    # caravan, trailer, train, motorcycle, bicycle
    *(255, 255, 16, 17, 18),
)
DEAD_IN_COCO = {
    12: "street sign",
    26: "hat",
    29: "shoe",
    30: "eye glasses",
    45: "plate",
    66: "mirror",
    68: "window",
    69: "desk",
    71: "door",
    83: "blender",
    91: "hair brush",
}
LIVE_IN_COCO = {
    1: "person",
    13: "stop sign",
    90: "toothbrush",
    92: "banner",
    124: "grass",
    157: "sky-other",
    182: "wood",
}


def label_map(name, folder, root):
    row = get_benchmark(name)
    return row.find_files(row, folder(root), "train", None).label_map


def test_the_rows_stand_in_a_fixed_order():
    names = ["scenes", "camvid", "cityscapes", "voc", "ade20k", "coco_stuff", "coco_stuff_182"]
    assert list(BENCHMARKS) == names


@pytest.mark.parametrize(
    ("given", "meant"), [("Cityscapes", "cityscapes"), ("ade", "ade20k"), ("VOCaug", "voc"), ("coco", "coco_stuff")]
)
def test_unknown_names_list_the_known_ones_and_the_one_probably_meant(given, meant):
    with pytest.raises(ValueError, match=f"{given!r}; known are scenes, .*coco_stuff_182; did you mean {meant!r}"):
        get_benchmark(given)
    with pytest.raises(ValueError, match=r"'imagenet-1k'; known are .*coco_stuff_182\.$"):
        get_benchmark("imagenet-1k")


def test_numbers_of_classes_and_images_are_the_published_ones():
    facts = {name: (row.num_labels, dict(row.split_sizes)) for name, row in BENCHMARKS.items() if name != "scenes"}
    coco = {"train": 118287, "val": 5000}
    assert facts == {
        "camvid": (11, {"train": 367, "val": 101, "test": 233}),
        "cityscapes": (19, {"train": 2975, "val": 500, "test": 1525}),
        "voc": (21, {"train": 1464, "trainval": 2913, "val": 1449, "train_aug": 10582, "test": 1456}),
        "ade20k": (150, {"train": 20210, "val": 2000}),
        "coco_stuff": (171, coco),
        "coco_stuff_182": (182, coco),
    }


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "scenes"])
def test_every_row_says_where_it_is_from_and_under_which_terms(name):
    row = BENCHMARKS[name]
    assert row.licence and row.homepage.startswith("http") and row.citation.endswith(".") and row.ignore_index == 255
    assert all(label == label.strip().lower() for label in row.classes)


def test_cityscapes_maps_each_of_the_34_ids(tmp_path):
    mapping = label_map("cityscapes", cityscapes_folder, tmp_path)
    assert [mapping[value] for value in range(34)] == list(CITYSCAPES_TRAIN_IDS) and len(mapping) == 34
    assert list(CITYSCAPES_IDS.values()) == list(CITYSCAPES_TRAIN_IDS)  # the miniatures' own table
    row = get_benchmark("cityscapes")
    assert (row.classes[0], row.classes[6], row.classes[18]) == ("road", "traffic light", "bicycle")
    assert (row.palette[0], row.palette[6], row.palette[18]) == ((128, 64, 128), (250, 170, 30), (119, 11, 32))


def test_cityscapes_submissions_hold_label_ids_under_names_the_server_finds():
    submission = get_benchmark("cityscapes").submission
    back = submission.label_ids
    assert [CITYSCAPES_TRAIN_IDS[back[train_id]] for train_id in range(19)] == list(range(19)) and back[255] == 0
    name = "cityscapes/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    assert submission.file_name(name) == "berlin_000000_000019_labelIds.png"


def test_voc_keeps_its_ids_and_has_its_own_colours(tmp_path):
    row = get_benchmark("voc")
    assert label_map("voc", voc_folder, tmp_path) == {}
    assert (row.classes[0], row.classes[5], row.classes[15], row.classes[20]) == (
        *("background", "bottle", "person", "tvmonitor"),
    )
    assert row.palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert row.palette[8] == (64, 0, 0) and row.palette[15] == (192, 128, 128) and row.palette[20] == (0, 64, 128)
    assert row.palette == tuple(voc_colour(index) for index in range(21))  # the miniatures' own rule
    assert row.submission.file_name("VOCdevkit/VOC2012/JPEGImages/2008_000006.jpg") == "2008_000006.png"
    assert row.submission.label_ids == {}


def test_ade20k_classes_are_one_less_than_the_files_values(tmp_path):
    row = get_benchmark("ade20k")
    mapping = label_map("ade20k", ade20k_folder, tmp_path)
    assert mapping == {0: 255, **{value: value - 1 for value in range(1, 151)}}
    spelled = {1: "wall", 2: "building", 8: "bed", 13: "person", 21: "car", 81: "bus", 128: "bicycle", 150: "flag"}
    assert {value: row.classes[mapping[value]] for value in spelled} == spelled
    assert row.palette[0] == (120, 120, 120) and row.palette[6] == (140, 140, 140) and row.palette[149] == (92, 0, 255)
    assert all(mapping[row.submission.label_ids[train_id]] == train_id for train_id in range(150))
    assert row.submission.file_name("images/validation/ADE_val_00000001.jpg") == "ADE_val_00000001.png"


def test_coco_stuff_leaves_out_what_was_never_annotated(tmp_path):
    row, mapping = get_benchmark("coco_stuff"), label_map("coco_stuff", coco_stuff_folder, tmp_path)
    assert sorted(value for value, train_id in mapping.items() if train_id == 255) == [i - 1 for i in DEAD_IN_COCO]
    live = [mapping[value] for value in range(182) if value + 1 not in DEAD_IN_COCO]
    assert live == list(range(171)) and len(mapping) == 182  # 255 is not listed and stays
    assert {coco_id: row.classes[mapping[coco_id - 1]] for coco_id in LIVE_IN_COCO} == LIVE_IN_COCO
    assert not set(DEAD_IN_COCO.values()) & set(row.classes)


def test_coco_stuff_182_is_as_in_the_files_with_the_same_colours(tmp_path):
    row, short = get_benchmark("coco_stuff_182"), get_benchmark("coco_stuff")
    assert label_map("coco_stuff_182", coco_stuff_folder, tmp_path) == {}
    spelled = DEAD_IN_COCO | LIVE_IN_COCO
    assert {coco_id: row.classes[coco_id - 1] for coco_id in spelled} == spelled
    colours = dict(zip(row.classes, row.palette, strict=True))
    assert [colours[name] for name in short.classes] == list(short.palette)
    assert (row.palette[0], row.palette[14]) == ((128, 0, 0), (192, 128, 128))  # VOC's of 1 and of 15


def test_the_table_can_be_written_as_json():
    assert json.loads(json.dumps({name: [row.id2label, row.palette] for name, row in BENCHMARKS.items()}))
