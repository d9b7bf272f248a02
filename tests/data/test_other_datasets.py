from __future__ import annotations

import json
import logging
import pickle

import datasets
import numpy as np
import pytest
from miniatures import camvid_folder
from PIL import Image
from stored_pictures import ADE20K_MAP, as_arrays, ids, png, raw_dataset, stored

from afdcd_hf.data.loading import class_names, load_benchmark, load_split


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets_cache")


# Files, splits, columns


def test_a_parquet_folder_with_splits_columns_of_other_names_and_raw_values(tmp_path):
    for split, labels in (("train", ((1, 0), (2, 150))), ("test", ((3, 3),))):
        raw = raw_dataset(labels=labels, scene_id=[7] * len(labels))
        raw = raw.rename_columns({"image": "photo", "label": "annotation"}).rename_column("scene_id", "label")
        raw.to_parquet(tmp_path / f"{split}-00000-of-00001.parquet")
    choice = {"image_column": "photo", "label_column": "annotation"}
    dataset = load_split(
        str(tmp_path), "train", max_samples=9, **choice, label_map={str(k): v for k, v in ADE20K_MAP.items()}
    )
    assert dataset.column_names == ["image", "label", "name"] and dataset["name"][:] == ["0.png", "1.png"]
    assert [ids(row["label"]) for row in dataset] == [[[0, 255]], [[1, 149]]]
    assert (
        len(load_split(str(tmp_path), "train[:50%]", **choice)) == 1 == len(load_split(str(tmp_path), "test", **choice))
    )
    assert len(load_split(str(tmp_path), "train+test", **choice)) == 3
    with pytest.raises(ValueError, match=r"has no split 'val'; it has train, test\."):
        load_split(str(tmp_path), "val", **choice)
    with pytest.raises(ValueError, match=r"no column 'image'; it has photo, annotation, label\. .*with image_column\."):
        load_split(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"labels of .* must be images, but column 'label' holds Value\('int64'\)"):
        load_split(str(tmp_path), "train", image_column="photo")


def test_a_single_parquet_file_is_the_split_train(tmp_path):
    raw_dataset(paths=False).to_parquet(tmp_path / "mine.parquet")
    dataset = load_split(str(tmp_path / "mine.parquet"), "train")
    assert dataset["name"][:] == ["train/000000", "train/000001"] and ids(dataset[1]["label"]) == [[2, 150]]
    with pytest.raises(ValueError, match="no split 'val'; it has train"):
        load_split(str(tmp_path / "mine.parquet"), "val")


def test_folders_of_save_to_disk_with_one_split_and_with_several(tmp_path):
    raw_dataset().save_to_disk(tmp_path / "one")
    both = {"train": raw_dataset(), "test": raw_dataset(labels=((9, 9),), name=["mine"])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "several")
    assert len(load_split(str(tmp_path / "one"), "train")) == 2
    (row,) = load_split(str(tmp_path / "several"), "test")
    assert row["name"] == "mine" and ids(row["label"]) == [[9, 9]]
    for folder, known in (("one", "train"), ("several", "train, test")):
        with pytest.raises(ValueError, match=f"has no split 'val'; it has {known}"):  # never another split in its place
            load_split(str(tmp_path / folder), "val")


def test_a_folder_of_images_with_a_metadata_file(tmp_path):
    lines = []
    for stem in ("x/a", "y/a"):
        for kind, content in (("images", np.zeros((1, 2, 3), np.uint8)), ("labels", np.uint8([[255, 4]]))):
            path = tmp_path / "train" / kind / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(content))
        lines.append(json.dumps({"image_file_name": f"images/{stem}.png", "label_file_name": f"labels/{stem}.png"}))
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    dataset = load_split(str(tmp_path), "train")
    assert dataset["name"][:] == ["x/a.png", "y/a.png"] and ids(dataset[1]["label"]) == [[255, 4]]


@pytest.mark.parametrize("form", ["images/{}", "{}/images"])
@pytest.mark.parametrize("kind", ["labels", "masks"])
def test_images_and_labels_in_folders_of_their_own_are_paired_by_file_name(tmp_path, form, kind):
    for split, count in (("train", 3), ("validation", 2)):
        for folder, mode in (("images", "RGB"), (kind, "L")):
            place = tmp_path / form.format(split).replace("images", folder)
            place.mkdir(parents=True)
            for index in range(count):
                Image.new(mode, (2, 1), 1 if mode == "L" else (index, 0, 0)).save(place / f"{index}.png")
    dataset = load_split(str(tmp_path), "train", label_map={1: 7})
    assert ids(dataset[2]["label"]) == [[7, 7]] and np.asarray(dataset[2]["image"])[0, 0].tolist() == [2, 0, 0]
    assert dataset["name"][2] == f"{form.format('train')}/2.png"
    assert len(load_split(str(tmp_path), "val")) == len(load_split(str(tmp_path), "validation")) == 2
    with pytest.raises(FileNotFoundError, match="has no folder .* needed for .*'s split test.*found there: train, val"):
        load_split(str(tmp_path), "test")
    with pytest.raises(ValueError, match="revision cannot be given for .*, a folder of images and labels"):
        load_split(str(tmp_path), "train", revision="v1")
    (place / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 in .* without label \(0\.png\)"):
        load_split(str(tmp_path), "val")


def test_val_finds_validation_and_the_other_way_round(tmp_path):
    for split in ("train", "validation"):
        raw_dataset().to_parquet(tmp_path / "parquet" / f"{split}-00000-of-00001.parquet")
    datasets.DatasetDict({"train": raw_dataset(), "val": raw_dataset(labels=((9, 9),))}).save_to_disk(
        tmp_path / "saved"
    )
    assert len(load_split(str(tmp_path / "parquet"), "val[:50%]")) == 1
    assert len(load_split(str(tmp_path / "parquet"), "train+val")) == 4
    assert len(load_split(str(tmp_path / "saved"), "validation")) == 1


def test_a_folder_of_classes_is_no_segmentation_dataset(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "a.png").write_bytes(png(np.zeros((1, 2, 3), np.uint8)))
    with pytest.raises(ValueError, match="'label' holds ClassLabel.* columns image_file_name and label_file_name"):
        load_split(str(tmp_path), "train")


def test_images_without_labels_are_loaded_from_every_kind_of_dataset(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (2, 1)).save(tmp_path / "photos" / f"{name}.jpg")
    camvid = load_split("camvid", "train", camvid_folder(tmp_path / "camvid"), labelled=False)
    raw_dataset().to_parquet(tmp_path / "mine.parquet")
    for rows, count in (
        (camvid, 3),
        (load_split(str(tmp_path / "photos"), "train", labelled=False), 2),
        (load_split(str(tmp_path / "mine.parquet"), "train", labelled=False), 2),
    ):
        assert len(rows) == count and set(rows[1]) == {"image", "name"} and rows[1]["image"].mode == "RGB"


# Labels


def test_labels_as_takes_map_and_classes_of_a_benchmark(tmp_path):
    raw_dataset(labels=((3, 11),)).save_to_disk(tmp_path / "copy")
    assert ids(load_split(str(tmp_path / "copy"), "train", labels_as="camvid")[0]["label"]) == [[3, 255]]
    assert class_names("copy", labels_as="camvid")[3] == "road"
    with pytest.raises(ValueError, match="Unknown benchmark 'camvit'"):
        load_split(str(tmp_path / "copy"), "train", labels_as="camvit")


def test_labels_partly_without_paths_and_partly_without_content_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.uint8([[1]])))
    mixed = [stored(None, str(tmp_path / "a.png")), stored(png(np.uint8([[1]])))]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    both = datasets.Dataset.from_dict({"image": mixed, "label": mixed}, features=features)
    both.to_parquet(tmp_path / "mixed.parquet")
    with pytest.raises(ValueError, match="Some labels of .* are stored as paths and others without"):
        load_split(str(tmp_path / "mixed.parquet"), "train", label_map={1: 0})


@pytest.mark.parametrize("batched", [False, True])
def test_labels_returned_by_a_function_for_map_are_not_mapped_again(tmp_path, batched):
    raw_dataset(labels=((1, 2), (150, 0))).save_to_disk(tmp_path / "ade")
    dataset = load_split(str(tmp_path / "ade"), "train", label_map=ADE20K_MAP)
    assert [ids(row["label"]) for row in dataset] == [[[0, 1]], [[149, 255]]]
    mapped = dataset.map(lambda row: row, batched=batched)
    assert [ids(row["label"]) for row in mapped] == [[[0, 1]], [[149, 255]]]
    changed = mapped.map(lambda row: {"label": row["label"].point(lambda value: value + 10)})
    assert ids(changed[0]["label"]) == [[10, 11]]
    assert ids(mapped.map(lambda row: {"width": row["image"].width})[0]["label"]) == [[0, 1]]


def test_labels_stored_without_paths_are_mapped_once_too(tmp_path):
    raw_dataset(paths=False, labels=((1, 2), None, (150, 0))).save_to_disk(tmp_path / "ade")
    dataset = load_split(str(tmp_path / "ade"), "train", label_map=ADE20K_MAP)
    mapped = dataset.map(lambda row: row)
    for view in (dataset, mapped, mapped.map(lambda row: {"width": 2}), pickle.loads(pickle.dumps(dataset))):
        labels = view[:]["label"]
        assert labels[1] is None and [ids(labels[0]), ids(labels[2])] == [[[0, 1]], [[149, 255]]]
    assert dataset[0]["image"].mode == "RGB" and dataset["name"][2] == "train/000002"


@pytest.mark.parametrize("mapping", [{"label_map": ADE20K_MAP}, {"labels_as": "ade20k"}])
def test_labels_that_a_parquet_file_embeds_are_mapped_once_too(tmp_path, mapping):
    pictures = {
        "image": [Image.new("RGB", (2, 1))] * 3,
        "label": [Image.fromarray(np.uint8([values])) for values in ((1, 2), (0, 1), (150, 0))],
    }
    datasets.Dataset.from_dict(pictures).to_parquet(tmp_path / "ade.parquet")
    dataset = load_split(str(tmp_path / "ade.parquet"), "train", **mapping)
    assert dataset.with_format(None)[0]["label"][:4] == b"\x89PNG"  # the file had no path for any label
    returned = dataset.map(lambda row: {"label": row["label"]})
    for view in (dataset, dataset.map(lambda row: {"width": 2}), returned, returned.map(lambda row: row)):
        assert [ids(row["label"]) for row in view] == [[[0, 1]], [[255, 0]], [[149, 255]]]


def test_saved_benchmarks_hold_the_files_values_or_what_map_returned(tmp_path):
    dataset = load_benchmark("camvid", "train", camvid_folder(tmp_path / "camvid"))
    expected = as_arrays(dataset)
    dataset.with_format(None).save_to_disk(tmp_path / "raw")
    dataset.map(lambda row: {"label": row["label"]}).with_format(None).save_to_disk(tmp_path / "mapped")
    dataset.to_parquet(tmp_path / "raw.parquet")
    assert as_arrays(load_split(str(tmp_path / "raw.parquet"), "train", label_map={11: 255})) == expected
    for path in (tmp_path / "camvid").rglob("*.png"):
        path.unlink()  # save_to_disk has copied what they held
    assert as_arrays(load_split(str(tmp_path / "raw"), "train", label_map={"11": 255})) == expected
    assert as_arrays(load_split(str(tmp_path / "mapped"), "train")) == expected
    assert 11 in np.asarray(load_split(str(tmp_path / "raw"), "train")[0]["label"])


# Unknown datasets and the Hub


@pytest.mark.parametrize("name", ["nobody/nothing", "camvit"])
def test_an_unknown_dataset_offline_fails_at_once_in_one_line(name):
    with pytest.raises(
        ValueError, match=rf"'{name}' is no benchmark \(.*camvid.*\), no folder .*Hub is not reachable"
    ) as caught:
        load_split(name, "train")
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_there_are_not_looked_for_on_the_hub(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"")
    for name in (str(tmp_path / "nowhere"), str(tmp_path / "a.zip"), "a/b/c"):
        with pytest.raises(ValueError, match="no folder and no .parquet file here, and it is no Hub id either"):
            load_split(name, "train")


def test_a_folder_without_data_is_said_to_have_none(tmp_path):
    (tmp_path / "notes.doc").write_text("nothing")
    with pytest.raises(ValueError, match=f"'{tmp_path}' cannot be read: .* Expected are Parquet files, images with a"):
        load_split(str(tmp_path), "train")


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"mine\.parquet' cannot be read: .*") as caught:
        load_split(str(tmp_path / "mine.parquet"), "train")
    assert "\n" not in str(caught.value)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A Hub whose only dataset, someone/ade, lies in a folder."""
    raw_dataset().to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    builder_of, asked = datasets.load_dataset_builder, []

    def load_dataset_builder(name, **options):
        asked.append((name, options))
        return builder_of(str(tmp_path / "hub"), **{key: value for key, value in options.items() if key != "revision"})

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    monkeypatch.setattr(
        "huggingface_hub.HfApi.dataset_info", lambda api, name, **options: asked.append((name, options))
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return asked


def test_downloads_are_announced_once_with_where_they_go(fake_hub, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        with pytest.raises(ValueError, match="'someone/ade' has no split 'val'; it has train"):
            load_split("someone/ade", "val")
        assert not caplog.records  # found out before the download
        dataset = load_split("someone/ade", "train", revision="v2", label_map=ADE20K_MAP)
    assert ids(dataset[1]["label"]) == [[1, 149]]
    assert fake_hub[-2:] == [("someone/ade", {"revision": "v2", "timeout": 10}), ("someone/ade", {"revision": "v2"})]
    assert f"Downloading someone/ade from the Hugging Face Hub; it is kept in {tmp_path / 'cache'}" in caplog.text
    caplog.clear()
    load_split("someone/ade", "train")
    assert "Downloading" not in caplog.text
