"""What `afdcd evaluate --save-predictions` writes: class-id PNGs, and the zip for a test server."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.data.benchmarks.row import Submission
from afdcd_hf.inference.submission import PredictionWriter, submission_writer, zip_predictions

GREY = np.random.default_rng(0).permutation(960).reshape(24, 40).astype(np.uint8)  # all values from 0 to 255


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(GREY).save(path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# The files


def test_the_writer_keeps_train_ids_and_sub_folders(tmp_path):
    writer = PredictionWriter(tmp_path / "out")
    writer.prepare()
    writer("val/a.jpg", GREY.astype(np.int64))
    writer("val/b.v1", GREY.astype(np.int64) + 1)
    assert files_in(tmp_path / "out") == ["val/a.png", "val/b.v1.png"]
    assert read(tmp_path / "out" / "val" / "a.png").dtype == np.uint8
    assert np.array_equal(read(tmp_path / "out" / "val" / "a.png"), GREY)
    assert Image.open(tmp_path / "out" / "val" / "b.v1.png").mode == "I;16"  # one of them is 256
    assert np.array_equal(read(tmp_path / "out" / "val" / "b.v1.png"), GREY.astype(int) + 1)


def test_the_writer_maps_ids_and_names_files_as_the_server_wants(tmp_path):
    wanted = Submission({0: 7, 1: 8, 2: 0}, lambda name: f"{Path(name).stem}_labelIds.png")
    benchmark = replace(BENCHMARKS["camvid"], submission=wanted)
    writer = submission_writer(tmp_path / "out", benchmark)
    writer.prepare()
    writer("leftImg8bit/test/berlin/berlin_000000.png", np.array([[0, 1], [2, 3]]))
    assert files_in(tmp_path / "out") == ["berlin_000000_labelIds.png"]
    assert read(tmp_path / "out" / "berlin_000000_labelIds.png").tolist() == [[7, 8], [0, 3]]


@pytest.mark.parametrize("benchmark", [None, "camvid"])
def test_without_a_server_train_ids_are_written(tmp_path, benchmark):
    writer = submission_writer(tmp_path / "out", benchmark and BENCHMARKS[benchmark])
    writer("a.png", np.array([[0, 10]]))
    assert read(tmp_path / "out" / "a.png").tolist() == [[0, 10]] and writer.archive is None


def test_folders_with_files_and_existing_zips_are_refused_before_anything_is_computed(tmp_path):
    picture(tmp_path / "full" / "x.png")
    with pytest.raises(FileExistsError, match="full is not empty"):
        PredictionWriter(tmp_path / "full").prepare()
    with pytest.raises(FileExistsError, match="is a file"):
        PredictionWriter(tmp_path / "full" / "x.png").prepare()
    PredictionWriter(tmp_path / "full", overwrite=True).prepare()
    benchmark = replace(BENCHMARKS["camvid"], submission=Submission({}, str))
    (tmp_path / "new.zip").write_text("of last week")
    with pytest.raises(FileExistsError, match="new.zip exists"):
        submission_writer(tmp_path / "new", benchmark).prepare()
    assert not (tmp_path / "new").exists()
    submission_writer(tmp_path / "new", benchmark, overwrite=True).prepare()


def test_no_prediction_replaces_another_or_leaves_the_folder(tmp_path):
    writer = PredictionWriter(tmp_path / "out")
    writer("a.png", GREY)
    with pytest.raises(ValueError, match=r"'a\.png' and 'a\.jpg' have the same file"):
        writer("a.jpg", GREY)
    with pytest.raises(FileExistsError, match=r"a\.png exists"):
        PredictionWriter(tmp_path / "out")("a.png", GREY)
    PredictionWriter(tmp_path / "out", overwrite=True)("a.png", GREY[::-1])
    assert np.array_equal(read(tmp_path / "out" / "a.png"), GREY[::-1])
    for name in ("../a.png", "/a.png", "x/../../a.png"):
        with pytest.raises(ValueError, match="outside"):
            writer(name, GREY)
    assert files_in(tmp_path) == ["out/a.png"]


@pytest.mark.parametrize("label_ids", [{0: -1}, {0: 70000}])
def test_ids_that_fit_no_png_are_refused(tmp_path, label_ids):
    with pytest.raises(ValueError, match="0 to 65535"):
        PredictionWriter(tmp_path, label_ids=label_ids)("a", np.array([[0, 1]]))


# The zip


def test_the_zip_holds_the_pngs_in_order_and_is_the_same_every_time(tmp_path):
    for name in ("b.png", "a/x.png"):
        picture(tmp_path / "out" / name)
    for name in (".12.part", "notes.txt"):
        (tmp_path / "out" / name).write_text("not to be sent")
    path = zip_predictions(tmp_path / "out")
    assert path == tmp_path / "out.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["a/x.png", "b.png"] and archive.testzip() is None
        assert archive.read("b.png") == (tmp_path / "out" / "b.png").read_bytes()
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}
    os.utime(tmp_path / "out" / "b.png", (1e9, 1e9))
    before = path.read_bytes()
    assert zip_predictions(tmp_path / "out", overwrite=True).read_bytes() == before


def test_an_existing_zip_is_kept_and_an_empty_folder_gives_none(tmp_path):
    picture(tmp_path / "out" / "a.png")
    (tmp_path / "out.zip").write_text("of last week")
    with pytest.raises(FileExistsError, match="out.zip"):
        zip_predictions(tmp_path / "out")
    assert (tmp_path / "out.zip").read_text() == "of last week"
    zip_predictions(tmp_path / "out", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "out.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no PNG"):
        zip_predictions(tmp_path / "empty")
    assert not (tmp_path / "empty.zip").exists()
