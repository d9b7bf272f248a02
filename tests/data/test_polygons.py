"""Polygons of three formats as label maps, against masks drawn by hand and pycocotools."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from afdcd_hf.cli import main
from afdcd_hf.data import load_split
from afdcd_hf.data.polygons import Shape, import_annotations

HEIGHT, WIDTH = 4, 6
SQUARE, CORNER = [1, 0, 4, 0, 4, 3, 1, 3], [3, 2, 9, 2, 9, 9, 3, 9]
EXPECTED = [  # the square (class 1), the smaller corner over it (2), and the crowd below everything
    [255, 1, 1, 1, 0, 0],
    [255, 1, 1, 1, 0, 0],
    [0, 1, 1, 2, 2, 2],
    [0, 0, 0, 2, 2, 2],
]
CROWD = {"size": [HEIGHT, WIDTH], "counts": [0, 2, 2, 2, 18]}  # two pixels down in each of the first two columns
NAMES = ["background", "car", "dog"]


def image(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)


def coco(folder, **changes) -> str:
    image(folder / "val2017" / "a.bmp")
    image(folder / "train2017" / "a.bmp")
    shapes = [(9, [CORNER], 0), (3, [SQUARE], 0), (3, CROWD, 1)]
    content = {
        "images": [{"id": 7, "file_name": "a.bmp", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": category, "segmentation": drawn, "iscrowd": crowd}
            for i, (category, drawn, crowd) in enumerate(shapes)
        ],
    }
    (folder / "annotations").mkdir()
    path = folder / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps(content | changes))
    return str(path)


def yolo(folder) -> str:
    image(folder / "images" / "val" / "a.webp")
    (folder / "labels" / "val").mkdir(parents=True)
    shares = [(np.reshape(one, (-1, 2)) / (WIDTH, HEIGHT)).ravel() for one in (SQUARE, CORNER)]
    lines = [" ".join(map(str, [index, *one])) for index, one in enumerate(shares)]
    (folder / "labels" / "val" / "a.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": {0: "car", 1: "dog"}, "val": "images/val"}))
    return str(folder)


def labelme(folder, corners=((1, 0), (4, 3))) -> str:
    image(folder / "val" / "a.tif")
    shapes = [{"label": "dog", "points": np.reshape(CORNER, (-1, 2)).tolist()}]
    shapes.append({"label": "car", "points": corners, "shape_type": "rectangle"})
    shapes.append({"label": "__ignore__", "points": [[0, 0], [2, 0], [2, 2], [0, 2]]})
    content = {"shapes": shapes, "imagePath": "..\\raw\\a.tif", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (folder / "val" / "a.json").write_text(json.dumps(content))
    return str(folder)


@pytest.mark.parametrize("make", [coco, yolo, labelme])
def test_each_format_becomes_a_dataset_with_the_label_drawn_by_hand(tmp_path, capsys, make):
    out = str(tmp_path / "out")
    source = make(tmp_path / "raw")
    for path in list((tmp_path / "raw").rglob("*.*")):  # as macOS leaves on other disks
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert main(["datasets", source, "--import_to", out]) == 0
    printed = capsys.readouterr().out
    assert "val 1 images in" in printed
    assert printed.endswith(f"with --dataset {out} --train_split val --class_names {' '.join(NAMES)}\n")
    (row,) = load_split(out, "val")
    label, expected = np.asarray(row["label"]), np.array(EXPECTED)
    assert label.tolist() == (np.where(expected == 255, 0, expected) if make is yolo else expected).tolist()
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == NAMES
    with pytest.raises(FileExistsError, match="out exists: give a new folder"):
        import_annotations(tmp_path / "raw", out)


def test_annotations_that_cannot_be_drawn_are_named(tmp_path):
    box = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2]}
    (tmp_path / "empty").mkdir()
    flat, worded, unnamed = (yolo(tmp_path / name) for name in ("flat", "worded", "unnamed"))
    (tmp_path / "flat" / "labels" / "val" / "a.txt").write_text("0 .5 .5 .1 .1")
    (tmp_path / "worded" / "labels" / "val" / "a.txt").write_text("car .5 .5 .1 .1 .2 .2")
    (tmp_path / "unnamed" / "data.yaml").write_text("names: car\nval: images/val")
    runs = {"id": 5, "image_id": 7, "category_id": 3, "segmentation": {"size": [9, 9], "counts": [81]}}
    other_size = [{"id": 7, "file_name": "a.bmp", "height": 9, "width": 9}]
    for source, message in (
        (coco(tmp_path / "box", annotations=[box]), "annotation 5 has no segmentation; boxes alone"),
        (coco(tmp_path / "lost", images=[{"id": 7, "file_name": "b.png"}]), "b.png was found 0 times below"),
        (coco(tmp_path / "odd", images=[{"id": 7}]), "instances_val2017.json does not follow .*KeyError 'file_name'"),
        (coco(tmp_path / "runs", annotations=[runs]), r"a\.bmp: run lengths for \[9, 9\] .* not fit this image of 4x6"),
        (worded, "a.txt: line 1: expected .* in numbers; found 7 words, the first car"),
        (unnamed, "data.yaml: names is 'car'; expected a list of the classes"),
        (
            labelme(tmp_path / "bent", [(1, 0), (4, 3), (4, 4)]),
            r"a\.json: car is a rectangle of 3 points; expected",
        ),
        (coco(tmp_path / "size", images=other_size), "is 4x6 pixels"),
        (flat, "a.txt: line 1: expected a class from 0 to 1 and three or more points.*five: a box"),
        (tmp_path / "empty", "is missing or in an unknown format: expected a COCO"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            import_annotations(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_masks_equal_pycocotools_up_to_border_pixels():
    rng, differing, drawn = np.random.default_rng(0), 0, 0
    for corners in rng.integers(3, 12, 50):
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, corners)), rng.uniform(3, 25, corners)
        polygon = np.c_[40 + radii * np.cos(angles), 30 + radii * np.sin(angles)]
        runs = coco_mask.merge(coco_mask.frPyObjects([polygon.ravel().tolist()], 60, 80))
        theirs = coco_mask.decode(runs).astype(bool)
        packed = Shape("car", (), runs={"size": runs["size"], "counts": runs["counts"].decode()})
        assert np.array_equal(packed.mask(60, 80), theirs)
        differing += int((Shape("car", [polygon]).mask(60, 80) != theirs).sum())
        drawn += int(theirs.sum())
    assert differing < 0.02 * drawn
