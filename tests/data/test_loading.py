"""Datasets by name: benchmarks, folders, Parquet files, the Hub; their options, splits and columns."""

from __future__ import annotations

import itertools
import pickle
import shutil
from dataclasses import replace
from unittest.mock import Mock

import datasets
import numpy as np
import paths
import pytest
from miniatures import camvid_folder
from PIL import Image
from stored_images import ADE20K_MAP, as_arrays, ids, png, raw_dataset
from torch.utils.data import DataLoader

from afdcd_hf.data import loading
from afdcd_hf.data.benchmarks import BENCHMARKS, get_benchmark
from afdcd_hf.data.checks import check_labels
from afdcd_hf.data.loading import check_layout, class_names, load_benchmark, load_split
from afdcd_hf.data.scenes import generate_scene

CAMVID = paths.CAMVID


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


@pytest.fixture
def unlabelled(tmp_path, monkeypatch):
    """CamVid with its train split published without labels."""
    camvid = get_benchmark("camvid")
    monkeypatch.setitem(BENCHMARKS, "camvid", replace(camvid, files=replace(camvid.files, unlabelled=("train",))))
    shutil.rmtree(camvid_folder(tmp_path / "unlabelled") / "trainannot")
    return tmp_path / "unlabelled"


# Benchmarks


def test_rows_are_rgb_images_and_remapped_labels_with_a_name_in_every_view(tmp_path, caplog):
    dataset = load_benchmark("camvid", "train", str(camvid_folder(tmp_path)))
    assert "camvid train has 3 images, not 367 as published" in caplog.text
    assert dataset.column_names == ["image", "label", "name"] and len(dataset) == 3
    row = dataset[1]
    assert row["image"].mode == "RGB" and row["image"].size == (6, 4) and row["label"].mode == "L"
    assert ids(row["label"])[0] == [255, 1, 1, 1, 1, 1] and row["name"] == "train/b.png"
    for row in dataset.shuffle(seed=0).select([0, 2]):
        label = ids(row["label"])[0]
        assert label[0] == 255 and label[1] == np.array(row["image"])[0, 0, 0]
    assert [ids(label)[0][0] for label in (*dataset[:2]["label"], dataset["label"][2])] == [255] * 3
    assert dataset.select_columns("name")[2] == {"name": "train/c.png"}
    wider = dataset.map(lambda row: {"width": row["image"].width})
    assert wider[2]["width"] == 6 and ids(wider[2]["label"])[0][:2] == [255, 2]
    loader = DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=as_arrays)
    rows = [row for batch in loader for row in batch]
    assert rows == as_arrays(dataset) == as_arrays(pickle.loads(pickle.dumps(dataset)))


def test_rows_of_an_unlabelled_split_have_no_label_and_map_keeps_a_photographs_pixels(unlabelled):
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(unlabelled / "train" / "a.png", format="JPEG")
    dataset = load_benchmark("camvid", "train", unlabelled)
    assert dataset[1]["image"].size == (6, 4) and list(dataset["label"][:2]) == [None, None]
    row = dataset.map(lambda row: row)[0]
    assert row["label"] is None
    assert np.array_equal(np.asarray(row["image"]), np.asarray(dataset[0]["image"]))  # no second JPEG compression


def test_scenes_are_reproducible_splits_share_none_and_only_requested_ones_are_drawn(monkeypatch):
    monkeypatch.setattr(loading, "generate_scene", drawing := Mock(wraps=generate_scene))

    def pixels_of(split, count):
        rows = load_split("scenes", split, max_samples=count)
        assert [row["name"] for row in rows] == [f"scenes/{split}/{index:06d}" for index in range(count)]
        assert all(row["image"].size == row["label"].size == (192, 96) and row["label"].mode == "L" for row in rows)
        return [row["image"].tobytes() for row in rows]

    many = pixels_of("train", 4)
    assert pixels_of("train", 2) == many[:2] and len({*many, *pixels_of("val", 4)}) == 8
    assert drawing.call_count <= 10


@pytest.mark.skipif(not CAMVID.is_dir(), reason="the real CamVid is not here")
def test_the_real_camvid_loads_with_labels_in_range_and_no_warning(caplog):
    train, val, test = check_layout("camvid", CAMVID)
    assert (train.found, train.problem, val.found, val.problem) == (367, None, 101, None)
    assert "no folder test " in test.problem
    for row in load_split("camvid", "val", CAMVID, max_samples=10):
        label = np.asarray(row["label"])
        assert row["image"].size == (480, 360) and label.shape == (360, 480)
        check_labels(label, 11, 255, row["name"])
        assert (label[:60] != 3).all() and (label[300:] == 3).mean() > 0.1  # the road is below, not above
    assert not caplog.records


# Options


def test_options_that_do_not_apply_are_rejected_not_dropped(tmp_path):
    camvid_folder(tmp_path)
    raw_dataset().save_to_disk(tmp_path / "saved")
    raw_dataset().to_parquet(tmp_path / "saved.parquet")
    for folder in ("images", "labels"):
        (tmp_path / "pairs" / folder / "train").mkdir(parents=True)
    saved, pairs = str(tmp_path / "saved"), str(tmp_path / "pairs")
    mine, stream = ("mine", "train"), {"streaming": True}
    for load, arguments, options, message in (
        (load_benchmark, ("camvit",), {}, "Unknown benchmark 'camvit'. Close: camvid. Known: ade20k,"),
        (load_benchmark, ("camvid", "trainval", tmp_path), {}, "has no split 'trainval'; it has train, val, test"),
        (load_benchmark, ("camvid", "train"), {}, "give data_dir, a folder with train/ and trainannot/"),
        (load_benchmark, ("scenes",), {"list_file": "x"}, "is generated and reads no files: leave out data_dir"),
        (load_benchmark, ("scenes",), {"max_samples": 0}, "1 or more, got 0"),
        (load_split, ("camvid", "train", tmp_path), {"label_map": {}}, "label_map cannot be given for the benchmark"),
        (load_split, mine, {"max_samples": 0}, "1 or more, got 0"),
        (load_split, mine, {"list_file": "x.txt"}, r"list_file='x\.txt' is only for benchmarks"),
        (load_split, (saved, "train", "sub"), {"config": "small"}, "data_dir and config cannot .* by save_to_disk"),
        (load_split, (str(tmp_path), "train"), {"revision": "v1"}, "revision cannot be given for the folder"),
        (load_split, mine, {"labels_as": "camvid", "label_map": {1: 2}}, "own map; leave out label_map"),
        (load_split, mine, {"label_column": "image"}, "both 'image'; they must be two columns"),
        (load_split, (f"{saved}.parquet", "train[:50%]"), stream, "A stream cannot be sliced as in 'train"),
        (load_split, (pairs, "train"), {"image_column": "photo"}, "image_column cannot be given for .*, a folder of"),
        (load_split, (pairs, "train"), stream, "streaming cannot be given for .*, a folder of images and labels"),
        (load_split, ("camvid", "train", tmp_path), stream, "streaming cannot be given for the benchmark camvid"),
        (class_names, ("camvid", ["a"]), {}, "have their own class names; another .*, as 'camvid', needs either"),
        (class_names, ("mine", ["a"], "camvid"), {}, "needs either class_names, in id order, or labels_as"),
        (class_names, ("mine", ["a", "b", "a"]), {}, "class_names has a more than once"),
        (class_names, ("mine",), {}, "needs either class_names, in id order, or labels_as"),
    ):
        with pytest.raises(ValueError, match=message):
            load(*arguments, **options)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder; camvid needs"):
        load_benchmark("camvid", "train", tmp_path / "nowhere")


# The layout check


def test_the_layout_check_covers_every_split_and_its_first_pair(tmp_path, unlabelled):
    camvid_folder(tmp_path, "train")
    camvid_folder(tmp_path, "val", labels=[np.full((4, 6), 17, np.uint8)])
    train, val, test = check_layout("camvid", tmp_path)
    assert (train.split, train.expected, train.found, train.problem) == ("train", 367, 3, None)
    assert val.found == 0 and "val/a.png: 24 label pixels lie outside 0..10 (values 17)" in val.problem
    assert test.found == 0 and "has no folder test and no testannot" in test.problem
    scenes = [(check.split, check.found, check.problem) for check in check_layout("scenes", None)]
    assert scenes == [("train", 400, None), ("val", 100, None)]
    Image.new("L", (5, 4)).save(tmp_path / "trainannot" / "a.png")
    (tmp_path / "val" / "a.png").write_bytes(b"no image")
    train, val, _ = check_layout("camvid", tmp_path)
    assert train.problem.startswith("train/a.png: the image is 4x6 pixels but its label 4x5 (height x width)")
    assert "val/a.png: the image" in val.problem and "damaged" in val.problem
    assert check_layout("camvid", unlabelled)[0].found == 3


# Other datasets: files, splits, columns


def test_a_parquet_folder_with_splits_other_column_names_and_raw_values(tmp_path):
    for split, labels in (("train", ((1, 0), (2, 150))), ("validation", ((3, 3),))):
        raw = raw_dataset(labels=labels, scene_id=[7] * len(labels))
        raw = raw.rename_columns({"image": "photo", "label": "annotation"}).rename_column("scene_id", "label")
        raw.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    choice = {"image_column": "photo", "label_column": "annotation"}
    as_json = {str(value): train_id for value, train_id in ADE20K_MAP.items()}
    dataset = load_split(str(tmp_path), "train", max_samples=9, **choice, label_map=as_json)
    assert dataset.column_names == ["image", "label", "name"] and dataset["name"][:] == ["0.png", "1.png"]
    assert [ids(row["label"]) for row in dataset] == [[[0, 255]], [[1, 149]]]
    counts = {"train[:50%]": 1, "validation": 1, "val": 1, "train+val": 3}
    assert {split: len(load_split(str(tmp_path), split, **choice)) for split in counts} == counts
    for split, options, message in (
        ("test", choice, r"has no split 'test'; it has train, validation\."),
        ("train", {}, r"column 'image' is missing\. Choose image_column among photo, annotation, label;"),
        ("train", {"image_column": "photo"}, r"labels of .* must be images, but column 'label' holds Value\('int64'\)"),
    ):
        with pytest.raises(ValueError, match=message):
            load_split(str(tmp_path), split, **options)


def test_single_parquet_files_and_saved_datasets_are_the_train_split_or_have_several(tmp_path):
    raw_dataset(paths=False).to_parquet(tmp_path / "mine.parquet")
    raw_dataset().save_to_disk(tmp_path / "one")
    both = {"train": raw_dataset(), "val": raw_dataset(labels=((9, 9),), name=["mine"])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "several")
    datasets.DatasetDict({"train": raw_dataset(labels=())}).save_to_disk(tmp_path / "empty")
    dataset = load_split(str(tmp_path / "mine.parquet"), "train")
    assert dataset["name"][:] == ["train/000000", "train/000001"] and ids(dataset[1]["label"]) == [[2, 150]]
    assert len(load_split(str(tmp_path / "one"), "train")) == 2
    (row,) = load_split(str(tmp_path / "several"), "validation")
    assert row["name"] == "mine" and ids(row["label"]) == [[9, 9]]
    assert len(load_split(str(tmp_path / "one"), "train[:50%]")) == 1
    for name in ("mine.parquet", "one"):
        with pytest.raises(ValueError, match="has no split 'val'; it has train"):  # never another split in its place
            load_split(str(tmp_path / name), "val")
    raw_dataset(labels=()).to_parquet(tmp_path / "none.parquet")
    for name in ("empty", "none.parquet"):
        with pytest.raises(ValueError, match=f"{name}' (cannot be read|is empty)"):
            load_split(str(tmp_path / name), "train")


@pytest.mark.parametrize(("form", "kind"), [("images/{}", "labels"), ("{}/images", "masks")])
def test_images_and_labels_in_separate_folders_are_paired_by_file_name(tmp_path, form, kind):
    for split, folder, index in itertools.product(("train", "validation"), ("images", kind), range(3)):
        place = tmp_path / form.format(split).replace("images", folder)
        place.mkdir(parents=True, exist_ok=True)
        pixels = Image.new("RGB", (2, 1), (index, 0, 0)) if folder == "images" else Image.new("L", (2, 1), 1)
        pixels.save(place / f"{index}.{'tif' if folder == kind and index == 1 else 'png'}")
    dataset = load_split(str(tmp_path), "train", label_map={1: 7})
    assert ids(dataset[2]["label"]) == [[7, 7]] and np.asarray(dataset[2]["image"])[0, 0].tolist() == [2, 0, 0]
    assert dataset["name"][2] == f"{form.format('train')}/2.png"
    assert len(load_split(str(tmp_path), "val")) == len(load_split(str(tmp_path), "validation")) == 3
    names = load_split(str(tmp_path), "train[1:]+val[:1]", label_map={1: 7})["name"][:]
    assert names == [*(f"{form.format('train')}/{index}.png" for index in (1, 2)), f"{form.format('validation')}/0.png"]
    (place / "0.png").unlink()
    for split, options, message in (
        ("test", {}, "has no folder .* needed for .*'s split test"),
        ("train", {"revision": "v1"}, "revision cannot be given for .*, a folder of images and labels"),
        ("val", {}, r"1 in .* without label \(0\.png\)"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_split(str(tmp_path), split, **options)
    for folder in ("images", kind):
        (tmp_path / "flat" / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"flat has images and labels, but no folder for each split: move the files"):
        load_split(str(tmp_path / "flat"), "train")


def test_unlabelled_images_load_from_every_kind_of_dataset(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (2, 1)).save(tmp_path / "photos" / f"{name}.jpg")
    raw_dataset().to_parquet(tmp_path / "mine.parquet")
    for rows, count in (
        (load_split("camvid", "train", camvid_folder(tmp_path / "camvid"), labelled=False), 3),
        (load_split(str(tmp_path / "photos"), "train", labelled=False), 2),
        (load_split(str(tmp_path / "mine.parquet"), "train", labelled=False), 2),
    ):
        assert len(rows) == count and set(rows[1]) == {"image", "name"} and rows[1]["image"].mode == "RGB"


# Other datasets: labels


@pytest.mark.parametrize("form", ["saved with paths", "parquet of images"])
def test_labels_are_mapped_exactly_once_whatever_map_returns(tmp_path, form):
    values, path = ((1, 2), (0, 1), (150, 0)), tmp_path / "ade"
    if form == "parquet of images":
        labels = [Image.fromarray(np.uint8([pair])) for pair in values]
        images = {"image": [Image.new("RGB", (2, 1))] * 3, "label": labels}
        path = tmp_path / "ade.parquet"
        datasets.Dataset.from_dict(images).to_parquet(path)
    else:
        raw_dataset(labels=values).save_to_disk(path)
    dataset = load_split(str(path), "train", **({"labels_as": "ade20k"} if "of" in form else {"label_map": ADE20K_MAP}))
    returned = dataset.map(lambda row: {"label": row["label"]})
    views = [dataset, dataset.map(lambda row: {"width": 2}), returned, returned.map(lambda row: row)]
    views += [dataset.map(lambda row: row, batched=True), pickle.loads(pickle.dumps(dataset))]
    for view in views:
        assert [ids(label) for label in view[:]["label"]] == [[[0, 1]], [[255, 0]], [[149, 255]]]
    changed = returned.map(lambda row: {"label": row["label"].point(lambda value: value + 10)})
    assert ids(changed[0]["label"]) == [[10, 11]] and dataset[0]["image"].mode == "RGB"
    assert class_names("copy", labels_as="ade20k") == class_names("ade20k") and class_names("mine", ["a"]) == ["a"]


def test_missing_labels_stay_missing(tmp_path):
    raw_dataset(paths=False, labels=((1, 2), None)).save_to_disk(tmp_path / "ade")
    dataset = load_split(str(tmp_path / "ade"), "train", label_map=ADE20K_MAP)
    for view in (dataset, dataset.map(lambda row: row)):
        assert view[1]["label"] is None and ids(view[0]["label"]) == [[0, 1]]
    assert dataset["name"][1] == "train/000001"


def test_saved_benchmarks_hold_the_files_values_or_the_result_of_map(tmp_path):
    dataset = load_benchmark("camvid", "train", camvid_folder(tmp_path / "camvid"))
    expected = as_arrays(dataset)
    dataset.with_format(None).save_to_disk(tmp_path / "raw")
    dataset.map(lambda row: {"label": row["label"]}).with_format(None).save_to_disk(tmp_path / "mapped")
    dataset.to_parquet(tmp_path / "raw.parquet")
    assert as_arrays(load_split(str(tmp_path / "raw.parquet"), "train", label_map={11: 255})) == expected
    for path in (tmp_path / "camvid").rglob("*.png"):
        path.unlink()  # save_to_disk has copied their content
    assert as_arrays(load_split(str(tmp_path / "raw"), "train", label_map={"11": 255})) == expected
    assert as_arrays(load_split(str(tmp_path / "mapped"), "train")) == expected
    assert 11 in np.asarray(load_split(str(tmp_path / "raw"), "train")[0]["label"])


# Errors, and the Hub


def test_unknown_and_unreadable_datasets_give_one_line_errors_that_name_them(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty").mkdir()
    for label in ("cat", "dog"):  # a classification dataset
        (tmp_path / "pets" / "train" / label).mkdir(parents=True)
        (tmp_path / "pets" / "train" / label / "a.png").write_bytes(png(np.zeros((1, 2, 3), np.uint8)))
    no_hub_id = r"a local folder, a \.parquet file nor a Hub id"
    for name, message in {
        "nobody/nothing": r"'nobody/nothing' is neither a benchmark \(.*camvid.*\), .* or the Hub cannot be reached",
        "camvit": "'camvit' is neither a benchmark .* Close: camvid",
        str(tmp_path / "a.zip"): no_hub_id,
        "a/b/c": no_hub_id,
        str(tmp_path / "empty"): "empty' cannot be read: .* Expected Parquet files, images with a",
        str(tmp_path / "mine.parquet"): r"mine\.parquet' cannot be read: .*",
        str(tmp_path / "pets"): "'label' holds ClassLabel.* columns image_file_name and label_file_name",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_split(name, "train")
        assert "\n" not in str(caught.value)


def test_a_hub_dataset_is_loaded_at_its_revision_and_streamed(tmp_path, monkeypatch):
    """Load from a Hub whose only dataset, someone/ade, is a local folder."""
    raw_dataset().to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    builder_of, asked = datasets.load_dataset_builder, []

    def load_dataset_builder(name, **options):
        asked.append((name, options))
        return builder_of(str(tmp_path / "hub"), **{key: value for key, value in options.items() if key != "revision"})

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    info = "huggingface_hub.HfApi.dataset_info"
    monkeypatch.setattr(info, lambda api, name, **options: asked.append((name, options)))
    with pytest.raises(ValueError, match="'someone/ade' has no split 'val'; it has train"):
        load_split("someone/ade", "val")
    for streaming in (False, True):
        (one, other) = load_split("someone/ade", "train", revision="v2", label_map=ADE20K_MAP, streaming=streaming)
        assert ids(one["label"]) == [[0, 255]] and ids(other["label"]) == [[1, 149]]
    assert asked[-2:] == [("someone/ade", {"revision": "v2", "timeout": 10}), ("someone/ade", {"revision": "v2"})]
