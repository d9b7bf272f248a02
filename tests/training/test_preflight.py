"""Problems found before the first step: labels, classes, a poor teacher, a full disk, an unwritable folder."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from images import labelled_image
from PIL import Image
from tiny import distilling, pictures, same, segmenter, supervised, weights

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.training.preflight import check_disk_space, check_images, check_writable, checkpoint_bytes, preflight

CLASSES = ["a", "b", "c", "d"]


def check(rows, **options) -> str:
    return check_images("training", rows, AfDcdImageProcessor(), CLASSES, **options)


def with_label(label: np.ndarray | None, index: int = 0) -> dict:
    row = labelled_image(index, 4, 32, 48)
    return {**row, "label": None if label is None else Image.fromarray(label.astype(np.uint8))}


def test_valid_images_are_sampled_evenly_and_summarised_in_one_line():
    rows = [labelled_image(index, 4, 32, 48) for index in range(20)] + [labelled_image(20, 4, 16, 24)]
    line = "checked 16 of 21 training images: 16x24 to 32x48 pixels (height x width), 4 of 4 classes occur"
    assert check(rows) == line


def test_an_invalid_label_raises_an_error_that_names_the_image():
    for label, words in (
        (np.full((32, 48), 33), r"bands_0: 1536 label pixels lie outside 0\.\.3 \(values 33\)"),
        (np.zeros((16, 48)), "bands_0: the image is 32x48 pixels but its label 16x48"),
        (None, "bands_0 has no label"),
    ):
        with pytest.raises(ValueError, match=words):
            check([with_label(label), *pictures(2)], trains=True)


@pytest.mark.parametrize(("score", "near_chance"), [(0.9, False), (0.1, True)])
def test_a_teacher_near_chance_logs_a_warning(tmp_path, caplog, monkeypatch, score, near_chance):
    caplog.set_level(logging.INFO, "afdcd_hf")
    trainer = distilling(tmp_path, eval_dataset=pictures(12))
    found = {"confusion_matrix": np.eye(4), "num_pixels": 4, "num_images": 4, "mean_iou": score}
    monkeypatch.setattr(trainer, "score", lambda *args, **options: found)
    preflight(trainer, CLASSES)
    (line,) = [record for record in caplog.records if "The teacher reaches" in record.getMessage()]
    assert (line.levelno == logging.WARNING) is near_chance
    assert line.args == (100 * score, 4, 100 / 16)  # four classes, equally frequent: 1/4 for one, 0 for three


def test_a_checkpoint_is_as_large_as_estimated(tmp_path):
    for name, make, options in (
        ("averaged", distilling, {"ema_decay": 0.9}),
        ("adam", supervised, {"optim": "adamw_torch"}),
        ("student", distilling, {"save_only_model": True}),
    ):
        student = segmenter(channels=256)  # large, so that names, JSON and random states do not matter
        trainer = make(tmp_path / name, student, max_steps=1, save_strategy="steps", save_steps=1, **options)
        trainer.train()
        written = sum(path.stat().st_size for path in (tmp_path / name / "checkpoint-1").rglob("*") if path.is_file())
        assert checkpoint_bytes(trainer) == pytest.approx(written, rel=0.05), name


def test_too_little_disk_space_is_an_error_and_too_little_for_all_checkpoints_a_warning(tmp_path, monkeypatch, caplog):
    trainer = supervised(tmp_path, save_strategy="steps", save_steps=1)
    one = checkpoint_bytes(trainer)

    def free(number: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=number))

    free(0.9 * one)
    with pytest.raises(OSError, match="but one checkpoint takes 0.. MiB"):
        check_disk_space(trainer, 10)
    free(13 * one)
    check_disk_space(trainer, 10)
    assert "save_total_limit" not in caplog.text
    free(9 * one)
    check_disk_space(trainer, 10)
    assert "save_total_limit" in caplog.text


def test_an_unwritable_folder_raises_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output_dir='.*file/run' cannot be written: Not a directory\. Give another"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path)


def test_preflight_does_not_change_the_run_and_logs_its_plan_and_anything_suspicious(tmp_path, caplog):
    plain = distilling(tmp_path)
    plain.train()
    checked = distilling(tmp_path)
    preflight(checked, CLASSES)
    checked.train()
    assert same(weights(plain.model), weights(checked.model))
    caplog.set_level(logging.INFO, "afdcd_hf")
    preflight(supervised(tmp_path, save_strategy="steps", save_steps=5000, max_steps=2000), CLASSES)
    assert "2000 steps of 4 images: 1000.0 epochs of 8 training images" in caplog.text
    assert "nothing is saved before the end" in caplog.text and "A checkpoint takes" in caplog.text


def halves(first: int, second: int) -> dict:
    label = np.full((32, 48), first)
    label[:, 24:] = second
    return with_label(label)


def test_suspicious_label_values_raise_or_warn(caplog):
    with pytest.raises(ValueError, match="No pixel of the 2 training images checked is labelled: all are 255"):
        check([with_label(np.full((32, 48), 255), index) for index in range(2)])
    with pytest.raises(ValueError, match=r"single class and 255, .* Class 1 \(b\), .* never occurs.*255\": 1"):
        check([halves(0, 255)], trains=True)
    assert not caplog.records
    check([halves(0, 0)], trains=True)
    assert "hold only class 0" in caplog.text
    caplog.clear()
    check([halves(0, 1), halves(2, 255)], trains=True)
    assert "class 3 (d) never occurs, while 255 does" in caplog.text and "label_map" in caplog.text
    caplog.clear()
    check([halves(0, 1), halves(2, 3)], trains=True)
    check([halves(0, 1), halves(2, 2)], trains=True)  # nothing is ignored
    check_images("evaluation", [halves(0, 255)], AfDcdImageProcessor(), CLASSES)  # not trained on
    with pytest.raises(ValueError, match="None of the 2 evaluation images checked has a label to score: is eval_spl"):
        check_images("evaluation", [with_label(None)] * 2, AfDcdImageProcessor(), CLASSES)
    assert not caplog.records


def test_an_ignore_index_that_is_a_class_and_a_student_that_fails_on_an_image_are_found(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="semantic_loss_ignore_index=1 is the id of class 'b', which would never be"):
        preflight(supervised(tmp_path, segmenter(semantic_loss_ignore_index=1)), CLASSES)

    def refuse(pixel_values, labels=None):
        raise RuntimeError("The size of tensor a (3)\nmust match that of tensor b (4)")

    student = segmenter()
    monkeypatch.setattr(student, "forward", refuse)
    with pytest.raises(ValueError, match=r"image of 32x48 pixels \(height x width\), so it .*The size of tensor"):
        preflight(supervised(tmp_path, student), CLASSES)
