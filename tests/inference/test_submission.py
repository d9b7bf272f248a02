"""What `afdcd evaluate --save_predictions` writes: class-id PNGs, and the zip for a test server."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import files_in
from PIL import Image

from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.data.benchmarks.row import Submission
from afdcd_hf.inference.submission import PredictionWriter

IDS = np.random.default_rng(0).permutation(960).reshape(24, 40) % 256


def benchmark_with(label_ids, file_name=lambda name: f"{Path(name).stem}_labelIds.png"):
    return replace(BENCHMARKS["camvid"], submission=Submission(label_ids, file_name))


@pytest.mark.parametrize("benchmark", [None, "camvid"])
def test_without_a_server_train_ids_are_written_into_the_images_sub_folders(tmp_path, benchmark):
    writer = PredictionWriter(tmp_path / "out", benchmark and BENCHMARKS[benchmark])
    writer.prepare()
    writer("val/a.jpg", IDS)
    writer("val/b.v1", IDS + 1)
    assert files_in(tmp_path) == ["out/val/a.png", "out/val/b.v1.png"] and writer.pack() is None
    small, large = (Image.open(tmp_path / "out" / "val" / name) for name in ("a.png", "b.v1.png"))
    assert (small.mode, large.mode) == ("L", "I;16")  # one of the ids is 256
    assert np.array_equal(small, IDS) and np.array_equal(large, IDS + 1)


def test_a_server_gets_its_own_ids_and_names_and_a_zip_of_the_pngs(tmp_path):
    writer = PredictionWriter(tmp_path / "out", benchmark_with({0: 7, 1: 8, 2: 0}))
    writer.prepare()
    for name in ("test/ulm/u.png", "test/berlin/b.png"):
        writer(name, np.array([[0, 1], [2, 3]]))
    (tmp_path / "out" / ".12.part").write_text("not to be sent")
    assert writer.pack() == tmp_path / "out.zip"
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["b_labelIds.png", "u_labelIds.png"] and archive.testzip() is None
        with archive.open("b_labelIds.png") as file:
            assert np.asarray(Image.open(file)).tolist() == [[7, 8], [0, 3]]


def test_folders_with_files_and_existing_zips_are_refused_before_anything_is_computed(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x.png").write_text("mine")
    (tmp_path / "new.zip").write_text("of last week")
    for name, message in (("full", "full is not empty"), ("full/x.png", "is a file"), ("new", "new.zip exists")):
        with pytest.raises(FileExistsError, match=message):
            PredictionWriter(tmp_path / name, benchmark_with({})).prepare()
    assert not (tmp_path / "new").exists()
    for name in ("full", "new"):
        PredictionWriter(tmp_path / name, benchmark_with({}), overwrite=True).prepare()


def test_no_prediction_replaces_another_or_leaves_the_folder(tmp_path):
    writer = PredictionWriter(tmp_path / "out")
    writer("a.png", IDS)
    with pytest.raises(ValueError, match=r"'a\.jpg' and another one have the same file"):
        writer("a.jpg", IDS)
    with pytest.raises(FileExistsError, match=r"a\.png exists"):
        PredictionWriter(tmp_path / "out")("a.png", IDS)
    PredictionWriter(tmp_path / "out", overwrite=True)("a.png", IDS[::-1])
    assert np.array_equal(Image.open(tmp_path / "out" / "a.png"), IDS[::-1])
    for name in ("../a.png", "/a.png", "x/../../a.png"):
        with pytest.raises(ValueError, match="outside"):
            writer(name, IDS)
    for ids in ({0: -1}, {0: 70000}):
        with pytest.raises(ValueError, match="0 to 65535"):
            PredictionWriter(tmp_path / "out", benchmark_with(ids))("b", np.array([[0, 1]]))
    assert files_in(tmp_path) == ["out/a.png"]
