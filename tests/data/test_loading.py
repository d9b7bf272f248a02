from __future__ import annotations

import pickle
import shutil
from dataclasses import replace

import datasets
import numpy as np
import paths
import pytest
from miniatures import camvid_folder
from PIL import Image
from stored_pictures import as_arrays, ids, raw_dataset
from torch.utils.data import DataLoader

from afdcd_hf.data.benchmarks import BENCHMARKS, get_benchmark
from afdcd_hf.data.checks import check_labels
from afdcd_hf.data.loading import check_layout, class_names, load_benchmark, load_split

CAMVID = paths.CAMVID


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


# Rows


def without_labels(monkeypatch, root):
    """A camvid whose split is published without labels."""
    camvid = get_benchmark("camvid")
    unlabelled = replace(camvid, files=replace(camvid.files, unlabelled=("train",)))
    monkeypatch.setitem(BENCHMARKS, "camvid", unlabelled)
    shutil.rmtree(camvid_folder(root) / "trainannot")
    return root


def test_rows_of_a_split_without_labels_have_none(tmp_path, monkeypatch):
    dataset = load_benchmark("camvid", "train", without_labels(monkeypatch, tmp_path))
    assert dataset[1]["label"] is None and dataset[1]["image"].size == (6, 4)
    assert dataset[:2]["label"] == [None, None] == list(dataset["label"][:2])
    assert dataset.map(lambda row: row)[0]["label"] is None


def test_two_workers_and_a_pickle_give_the_rows_of_the_main_process(tmp_path):
    dataset = load_benchmark("camvid", "train", camvid_folder(tmp_path))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=as_arrays)
    rows = [row for batch in loader for row in batch]
    assert rows == as_arrays(dataset) == as_arrays(pickle.loads(pickle.dumps(dataset)))
    assert rows[2][0] == "train/c.png" and rows[2][2][0] == [255, 2, 2, 2, 2, 2]


def test_an_image_returned_by_a_function_for_map_keeps_its_pixels(tmp_path):
    camvid_folder(tmp_path, image_suffix=".jpg", size=(16, 16))
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "train" / "a.jpg")
    dataset = load_benchmark("camvid", "train", tmp_path)
    before = np.asarray(dataset[0]["image"])
    assert np.array_equal(np.asarray(dataset.map(lambda row: row)[0]["image"]), before)  # no second JPEG compression


# Benchmarks


def test_list_files_choose_the_images_whatever_the_published_number(tmp_path, caplog):
    camvid_folder(tmp_path)
    (tmp_path / "two.txt").write_text("train/c.png trainannot/c.png\ntrain/a.png trainannot/a.png\n")
    for loaded in (
        load_benchmark("camvid", "train", tmp_path, list_file=tmp_path / "two.txt"),
        load_split("camvid", "train", str(tmp_path), list_file=str(tmp_path / "two.txt")),
    ):
        assert [row["name"] for row in loaded] == ["train/c.png", "train/a.png"]
        assert ids(loaded[0]["label"])[0][:2] == [255, 2]
    assert not caplog.records  # "published are 367" would be said of the whole split only


def test_an_empty_split_is_an_error(tmp_path):
    datasets.DatasetDict({"train": raw_dataset(), "test": raw_dataset(labels=())}).save_to_disk(tmp_path / "empty")
    with pytest.raises(ValueError, match="empty' is empty or damaged; save it again"):
        load_split(str(tmp_path / "empty"), "test")
    raw_dataset(labels=()).to_parquet(tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match=r"The split 'train' of .*mine\.parquet' is empty"):
        load_split(str(tmp_path / "mine.parquet"), "train")


def test_options_that_make_no_sense_are_refused_and_not_dropped(tmp_path):
    camvid_folder(tmp_path)
    with pytest.raises(ValueError, match="label_column, label_map cannot be given for the benchmark camvid"):
        load_split("camvid", "train", tmp_path, label_map={}, label_column="label")
    with pytest.raises(ValueError, match=r"list_file='x\.txt' is only for benchmarks"):
        load_split("mine", "train", list_file="x.txt")
    raw_dataset().save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="data_dir and config cannot be given for .* written by save_to_disk"):
        load_split(str(tmp_path / "saved"), "train", "sub", config="small")
    with pytest.raises(ValueError, match="revision cannot be given for the folder"):
        load_split(str(tmp_path), "train", revision="v1")
    with pytest.raises(ValueError, match="labels_as='camvid' brings its own map; leave out label_map"):
        load_split(str(tmp_path / "saved"), "train", labels_as="camvid", label_map={1: 2})
    with pytest.raises(ValueError, match="both 'image'; they must be two columns"):
        load_split(str(tmp_path / "saved"), "train", label_column="image")
    with pytest.raises(ValueError, match="1 or more, got 0"):
        load_split("camvid", "train", tmp_path, max_samples=0)


def test_class_names_come_from_one_place():
    assert class_names("camvid")[3] == "road" and class_names("mine", ["a", "b"]) == ["a", "b"]
    for arguments, message in (
        (("camvid", ["a"]), "class_names is only for datasets that are no benchmark"),
        (("camvid", None, "voc"), "labels_as is only for datasets that are no benchmark"),
        (("mine", ["a"], "camvid"), "leave out class_names"),
        (("mine",), "give its class_names, in id order, or labels_as"),
    ):
        with pytest.raises(ValueError, match=message):
            class_names(*arguments)


# The layout check


def test_the_layout_check_looks_at_every_split(tmp_path):
    camvid_folder(tmp_path, "train")
    camvid_folder(tmp_path, "val", labels=[np.full((4, 6), 17, np.uint8)])
    train, val, test = check_layout("camvid", tmp_path)
    assert (train.split, train.expected, train.found, train.labelled, train.problem) == ("train", 367, 3, 3, None)
    assert val.found == 0 and "val/a.png: 24 label pixels lie outside 0..10 (values 17)" in val.problem
    assert test.found == 0 and "has no folder test and no testannot" in test.problem
    assert [check.found for check in check_layout("camvid", tmp_path, decode=False)] == [3, 1, 0]


def test_the_layout_check_sees_sizes_damage_and_missing_labels(tmp_path, monkeypatch):
    camvid_folder(tmp_path, "train")
    camvid_folder(tmp_path, "val")
    Image.new("L", (5, 4)).save(tmp_path / "trainannot" / "a.png")
    (tmp_path / "val" / "a.png").write_bytes(b"no picture")
    train, val, _ = check_layout("camvid", tmp_path)
    assert train.problem.startswith("train/a.png: the image is 4x6 pixels but its label 4x5 (height x width)")
    assert "val/a.png: the image" in val.problem and "damaged" in val.problem
    unlabelled = check_layout("camvid", without_labels(monkeypatch, tmp_path / "other"))[0]
    assert (unlabelled.found, unlabelled.labelled, unlabelled.problem) == (3, 0, None)


def test_the_layout_check_needs_a_folder_but_for_scenes(tmp_path):
    assert [(check.split, check.found, check.problem) for check in check_layout("scenes", None)] == [
        ("train", 400, None),
        ("val", 100, None),
    ]
    with pytest.raises(ValueError, match="give data_dir"):
        check_layout("camvid", None)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        check_layout("camvid", tmp_path / "nowhere")


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the real CamVid is not here")
def test_the_real_camvid_passes_the_layout_check_and_every_label_is_in_range():
    train, val, test = check_layout("camvid", CAMVID)
    assert (train.found, train.problem, val.found, val.problem) == (367, None, 101, None) and test.problem
    for row in load_split("camvid", "val", CAMVID, max_samples=10):
        assert row["image"].size == row["label"].size == (480, 360)
        check_labels(np.asarray(row["label"]), 11, 255, row["name"])
