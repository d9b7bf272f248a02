"""The table of benchmarks, compared with values written out by hand."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from miniatures import CITYSCAPES_IDS, voc_colour
from PIL import Image
from stored_images import ids

from afdcd_hf.data import benchmarks
from afdcd_hf.data.benchmarks import BENCHMARKS, get_benchmark
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
IN_ADE20K = {1: "wall", 2: "building", 8: "bed", 13: "person", 21: "car", 81: "bus", 128: "bicycle", 150: "flag"}
SPELLED = {  # class and colour by train id
    "cityscapes": {0: ("road", (128, 64, 128)), 6: ("traffic light", (250, 170, 30)), 18: ("bicycle", (119, 11, 32))},
    "camvid": {3: ("road", (128, 64, 128)), 8: ("car", (64, 0, 128))},
    "voc": {0: ("background", (0, 0, 0)), 5: ("bottle", (128, 0, 128)), 20: ("tvmonitor", (0, 64, 128))},
    "ade20k": {0: ("wall", (120, 120, 120)), 6: ("road", (140, 140, 140)), 149: ("flag", (92, 0, 255))},
}


def test_numbers_of_classes_and_images_are_the_published_ones():
    facts = {name: (row.num_labels, dict(row.split_sizes)) for name, row in BENCHMARKS.items()}
    coco = {"train": 118287, "val": 5000}
    assert facts == facts | {
        "scenes": (8, {"train": 400, "val": 100}),
        "camvid": (11, {"train": 367, "val": 101, "test": 233}),
        "cityscapes": (19, {"train": 2975, "val": 500, "test": 1525}),
        "voc": (21, {"train": 1464, "trainval": 2913, "val": 1449, "train_aug": 10582, "test": 1456}),
        "ade20k": (150, {"train": 20210, "val": 2000}),
        "coco_stuff": (171, coco),
        "coco_stuff_182": (182, coco),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_row_is_consistent_and_names_source_and_licence(name):
    row = BENCHMARKS[name]
    assert row.name == name and len(row.palette) == row.num_labels == len(set(row.classes)) == len(set(row.palette))
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in row.palette)
    assert all(label == label.strip().lower() for label in row.classes) and row.licence and row.ignore_index == 255
    assert json.loads(json.dumps([row.classes, row.palette]))
    assert name == "scenes" or row.homepage.startswith("http") and row.citation.endswith(".")
    assert all((row.classes[i], row.palette[i]) == spelled for i, spelled in SPELLED.get(name, {}).items())


def test_cityscapes_maps_each_of_the_34_ids_and_back_for_its_server():
    row = get_benchmark("cityscapes")
    assert [row.label_map[value] for value in range(34)] == list(CITYSCAPES_TRAIN_IDS) and len(row.label_map) == 34
    assert list(CITYSCAPES_IDS.values()) == list(CITYSCAPES_TRAIN_IDS)  # the miniatures' own table
    back = row.submission.label_ids
    assert [CITYSCAPES_TRAIN_IDS[back[train_id]] for train_id in range(19)] == list(range(19)) and back[255] == 0
    name = "cityscapes/leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png"
    assert row.submission.file_name(name) == "berlin_000000_000019_labelIds.png"


def test_camvid_and_voc_keep_their_ids_and_ade20k_s_are_one_less_than_in_the_files():
    assert get_benchmark("camvid").label_map == {11: 255}
    voc, ade20k = get_benchmark("voc"), get_benchmark("ade20k")
    assert voc.label_map == voc.submission.label_ids == {}
    assert voc.palette == tuple(voc_colour(index) for index in range(21))  # the miniatures' own rule
    assert voc.submission.file_name("VOCdevkit/VOC2012/JPEGImages/2008_000006.jpg") == "2008_000006.png"
    assert ade20k.label_map == {0: 255, **{value: value - 1 for value in range(1, 151)}}
    assert {value: ade20k.classes[ade20k.label_map[value]] for value in IN_ADE20K} == IN_ADE20K
    assert ade20k.submission.label_ids == {255: 0, **{train_id: train_id + 1 for train_id in range(150)}}
    assert ade20k.submission.file_name("images/validation/ADE_val_00000001.jpg") == "ADE_val_00000001.png"


def test_coco_stuff_drops_classes_that_were_never_annotated_and_coco_stuff_182_keeps_them():
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
        "title: Rooms\nlicence: mine\nhomepage: http://x\ncitation: Me.\nlayout: train/, train_ids/\n"
        "splits: {train: 3}\nignored: [9]\nfiles: {images: ['{split}'], labels: ['{split}_ids']}\n"
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
