from __future__ import annotations

import logging
import pickle
import subprocess
import sys

import numpy as np
import paths
import pytest
from PIL import Image

from afdcd_hf.data.benchmarks import BENCHMARKS, get_benchmark
from afdcd_hf.data.loading import load_benchmark

CAMVID = paths.CAMVID


def camvid_folder(root, split="train", stems=("a", "b", "c"), image_suffix=".png"):
    """A small camvid; the label of image i is its index, with one void pixel."""
    for folder in (split, f"{split}annot"):
        (root / folder).mkdir(parents=True)
    for index, stem in enumerate(stems):
        label = np.full((4, 6), index, np.uint8)
        label[0, 0] = 11
        colour = Image.new("RGB", (6, 4), (index, 20, 30))
        colour.save(root / split / f"{stem}{image_suffix}", format="PNG" if "png" in image_suffix.lower() else "JPEG")
        Image.fromarray(label).save(root / f"{split}annot" / f"{stem}.png")
    return root


def raw_files(root, split="train"):
    return root / split, root / f"{split}annot"


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_row_is_consistent(name):
    row = BENCHMARKS[name]
    assert row.name == name and len(row.palette) == row.num_labels == len(set(row.classes)) == len(set(row.palette))
    assert all(len(colour) == 3 and all(0 <= value <= 255 for value in colour) for colour in row.palette)
    assert row.label2id == {label: index for index, label in row.id2label.items()}
    assert row.id2label[0] == row.classes[0]
    assert not 0 <= row.ignore_index < row.num_labels


def test_camvid_is_the_eleven_class_benchmark():
    camvid = get_benchmark("camvid")
    assert camvid.num_labels == 11 and camvid.classes[3] == "road" and camvid.palette[3] == (128, 64, 128)
    assert dict(camvid.split_sizes) == {"train": 367, "val": 101, "test": 233}


def test_unknown_names_splits_and_options_list_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'camvit'; known are scenes, camvid, .*; did you mean 'camvid'"):
        load_benchmark("camvit")
    with pytest.raises(ValueError, match="camvid has no split 'trainval'; it has train, val, test"):
        load_benchmark("camvid", "trainval", tmp_path)
    with pytest.raises(ValueError, match=r"\['size'\] for camvid; accepted are: none"):
        load_benchmark("camvid", "train", tmp_path, size=(96, 192))
    with pytest.raises(ValueError, match=r"\['images'\] for scenes; accepted are: size, num_images, seed"):
        load_benchmark("scenes", "train", images=3)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg", ".JPG", ".jpeg"])
def test_camvid_rows_are_rgb_images_and_remapped_labels_with_a_name(tmp_path, suffix):
    dataset = load_benchmark("camvid", "train", camvid_folder(tmp_path, image_suffix=suffix))
    assert dataset.column_names == ["image", "label", "name"] and len(dataset) == 3
    row = dataset[1]
    assert row["image"].mode == "RGB" and row["image"].size == (6, 4) and row["label"].mode == "L"
    label = np.array(row["label"])
    assert label[0, 0] == 255 and (label.ravel()[1:] == 1).all()
    assert row["name"] == f"train/b{suffix}"


def test_select_shuffle_iteration_and_slices_keep_the_remapping(tmp_path):
    dataset = load_benchmark("camvid", "train", str(camvid_folder(tmp_path)))
    for view in (dataset.select([0, 2]), dataset.shuffle(seed=0), pickle.loads(pickle.dumps(dataset))):
        for row in view:
            assert np.array(row["label"])[0, 0] == 255
            assert np.array(row["label"])[0, 1] == np.array(row["image"])[0, 0, 0]
    assert [np.array(label)[0, 0] for label in dataset[:2]["label"]] == [255, 255]
    assert np.array(dataset["label"][2])[0, 0] == 255
    assert dataset.select_columns("name")[2] == {"name": "train/c.png"}


def test_adding_a_column_with_map_does_not_touch_the_labels(tmp_path):
    dataset = load_benchmark("camvid", "train", camvid_folder(tmp_path)).map(lambda row: {"width": row["image"].width})
    assert dataset[2]["width"] == 6 and np.array(dataset[2]["label"])[0, :2].tolist() == [255, 2]
    stored = {"bytes": None, "path": str(tmp_path / "trainannot" / "c.png")}
    assert dataset.with_format(None)[2]["label"] == stored  # the file as it is


def test_files_are_read_on_access_only(tmp_path):
    images, _ = raw_files(camvid_folder(tmp_path))
    (images / "b.png").write_bytes(b"not a picture")
    dataset = load_benchmark("camvid", "train", tmp_path)
    assert dataset[0]["name"] == "train/a.png"
    with pytest.raises(OSError, match="b.png|cannot identify"):
        dataset[1]


def test_palette_labels_are_ids_and_colour_coded_ones_are_refused(tmp_path):
    _, labels = raw_files(camvid_folder(tmp_path))
    with_palette = Image.open(labels / "a.png").convert("P")
    with_palette.putdata([5] * 23 + [11])
    with_palette.putpalette([value for colour in range(256) for value in (255 - colour, 0, 0)])
    with_palette.save(labels / "a.png")
    Image.new("RGB", (6, 4)).save(labels / "b.png")
    dataset = load_benchmark("camvid", "train", tmp_path)
    assert np.unique(np.array(dataset[0]["label"])).tolist() == [5, 255]
    with pytest.raises(ValueError, match=r"train/b\.png: the label .*: the label's image mode is RGB"):
        dataset[1]


def test_a_count_other_than_the_published_one_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_benchmark("camvid", "train", camvid_folder(tmp_path))
    assert "camvid train has 3 images, published are 367" in caplog.text


def test_data_dir_must_be_given_and_exist(tmp_path):
    with pytest.raises(ValueError, match="give data_dir, a folder with train/ and trainannot/"):
        load_benchmark("camvid", "train")
    with pytest.raises(FileNotFoundError, match="nowhere is no folder; camvid needs"):
        load_benchmark("camvid", "train", tmp_path / "nowhere")


def test_a_missing_folder_is_named_with_the_layout_and_the_splits_there(tmp_path):
    camvid_folder(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder valannot, .*Expected: train/ and .*there: train\."):
        load_benchmark("camvid", "val", tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder test and no testannot"):
        load_benchmark("camvid", "test", tmp_path)


def test_images_and_labels_without_counterpart_are_named_and_counted(tmp_path):
    images, labels = raw_files(camvid_folder(tmp_path, stems="abcdefg"))
    for stem in "abcde":
        (labels / f"{stem}.png").unlink()
    (images / "g.png").unlink()
    expected = r"5 in .*train without label \(a\.png, b\.png, c\.png, \.\.\.\); 1 in .*annot without image \(g\.png\)"
    with pytest.raises(FileNotFoundError, match=expected):
        load_benchmark("camvid", "train", tmp_path)


def test_an_empty_split_and_doubled_stems_are_refused(tmp_path):
    images, labels = raw_files(camvid_folder(tmp_path))
    (images / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"both a\.jpg and a\.png"):
        load_benchmark("camvid", "train", tmp_path)
    for path in [*images.iterdir()]:
        path.unlink()
    (images / "readme.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"train holds no file ending in \.png, \.jpg, \.jpeg"):
        load_benchmark("camvid", "train", tmp_path)


def test_hidden_and_foreign_files_are_no_data(tmp_path):
    images, labels = raw_files(camvid_folder(tmp_path))
    (images / "._a.png").write_bytes(b"")
    (labels / "Thumbs.db").write_bytes(b"")
    assert len(load_benchmark("camvid", "train", tmp_path)) == 3


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


def pixels_of(dataset):
    return [np.array(row["image"]).tobytes() for row in dataset]


def test_scenes_have_the_asked_size_and_number():
    dataset = load_benchmark("scenes", "val", size=(32, 64), num_images=3)
    assert len(dataset) == 3 and [row["name"] for row in dataset] == [f"scenes/val/{i:06d}" for i in range(3)]
    for row in dataset:
        assert row["image"].mode == "RGB" and row["label"].mode == "L"
        assert row["image"].size == row["label"].size == (64, 32)
        assert set(np.unique(np.array(row["label"]))) <= {*range(8), 255}


def test_scenes_repeat_and_more_of_them_only_append():
    few, many = (pixels_of(load_benchmark("scenes", "train", size=(32, 64), num_images=n)) for n in (2, 4))
    assert few == many[:2] and len(set(many)) == 4


def test_splits_and_seeds_share_no_scene():
    asked = [("train", 0), ("val", 0), ("train", 1), ("val", 1)]
    scenes = [
        pixels
        for split, seed in asked
        for pixels in pixels_of(load_benchmark("scenes", split, size=(32, 64), num_images=6, seed=seed))
    ]
    assert len(set(scenes)) == 24


def test_scenes_need_no_data_dir_and_refuse_bad_numbers(tmp_path):
    with pytest.raises(ValueError, match="scenes is generated and reads no files"):
        load_benchmark("scenes", "train", tmp_path)
    with pytest.raises(ValueError, match="num_images=0"):
        load_benchmark("scenes", "train", num_images=0)
    with pytest.raises(ValueError, match="seed=-1"):
        load_benchmark("scenes", "train", seed=-1)


def test_the_package_exports_every_name_it_lists():
    import afdcd_hf.data as data

    assert all(getattr(data, name).__module__.startswith("afdcd_hf.data") for name in data.__all__ if name[1].islower())
    assert set(data.__all__) <= set(dir(data)) and data.SCENE_CLASSES == data.BENCHMARKS["scenes"].classes
    with pytest.raises(AttributeError, match="no attribute 'load_benchmarks'"):
        data.load_benchmarks  # noqa: B018


def test_reading_the_table_imports_neither_torch_nor_datasets():
    code = "import sys; from afdcd_hf.data import BENCHMARKS; print({'torch', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
