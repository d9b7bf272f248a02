"""`afdcd predict`: its output for users' images of all kinds, and its answers to mistakes."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import files_in
from PIL import Image
from tiny import saved, segmenter

from afdcd_hf.charts.label_maps import distinct_palette, oklab
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.data.benchmarks.row import Submission
from afdcd_hf.data.loading import load_split
from afdcd_hf.inference import predictions
from afdcd_hf.inference.files import PredictionWriter
from afdcd_hf.inference.graphs import load_segmenter
from afdcd_hf.inference.predictions import class_legend, draw_predictions, predict_images, write_pseudo_labels
from afdcd_hf.inference.segment import InferenceSettings, Predictor, make_sample, segment_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)  # predictions of more than one class
NAMES = ["sky", "wall", "floor", "lamp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with four classes."""
    made = segmenter(id2label=dict(enumerate(NAMES)), label2id={name: index for index, name in enumerate(NAMES)})
    with torch.no_grad():  # so that all classes occur
        made.head.classifier.weight.mul_(100)
    return saved(tmp_path_factory.mktemp("model"), made)


def image_file(path: Path, pixels: np.ndarray = PIXELS, turned: bool = False) -> Path:
    """Save an image; `turned` stores it on its side, as phones do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.fromarray(np.rot90(pixels) if turned else pixels).save(path, exif=exif)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    return image_file(tmp_path / "photo.png")


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def run(model, inputs, output, **options):
    return predict_images(model, inputs, output, device="cpu", progress=False, **options)


# Output


def test_ids_colours_overlay_and_legend_of_an_image(model, photo, tmp_path):
    settings = InferenceSettings(scales=(1.0, 1.5), flip=True, window=(16, 16), stride=(8, 8))
    done = run(model, [photo], tmp_path / "out", settings=settings)[photo]
    assert files_in(tmp_path / "out") == ["classes.json", "color/photo.png", "ids/photo.png", "overlay/photo.png"]
    made, processor = load_segmenter(str(model))
    expected = segment_image(made, processor, Image.open(photo), settings)
    ids = read(done["ids"])
    assert len(np.unique(expected)) > 1 and (expected != segment_image(made, processor, Image.open(photo))).any()
    assert ids.dtype == np.uint8 and np.array_equal(ids, expected)
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [legend[str(index)]["name"] for index in range(4)] == NAMES and len(legend) == 4
    colors = np.array([legend[str(index)]["color"] for index in range(4)])
    assert Image.open(done["color"]).mode == "RGB" and np.array_equal(read(done["color"]), colors[ids])
    inside = np.zeros(ids.shape, bool)  # pixels without another class to the right or below have no line through them
    inside[:-1, :-1] = (ids[:-1, :-1] == ids[:-1, 1:]) & (ids[:-1, :-1] == ids[1:, :-1])
    half = (PIXELS.astype(float) + colors[ids]) / 2
    assert inside.any() and np.abs(read(done["overlay"])[inside] - half[inside]).max() <= 1


def test_a_model_of_more_than_256_classes_gets_16_bits_and_all_its_colours(tmp_path, photo, monkeypatch):
    large = saved(tmp_path / "model", segmenter(num_labels=300))
    label_map = torch.tensor([[0, 255], [256, 299]]).repeat_interleave(12, 0).repeat_interleave(20, 1)
    for name, shown in (("out", label_map), ("low", label_map % 200)):
        monkeypatch.setattr(Predictor, "label_maps", lambda self, batches, shown=shown: [(batches[0][0], shown)])
        done = run(large, [photo], tmp_path / name)[photo]
        # 16 bits whatever classes occur in this image; 255 is a class here
        assert Image.open(done["ids"]).mode == "I;16" and np.array_equal(read(done["ids"]), shown)
        assert np.array_equal(read(done["color"]), distinct_palette(300)[shown])


def test_images_are_found_and_their_predictions_named(model, tmp_path):
    day = tmp_path / "day"
    for name in ("b.JPG", "a/x.png", "a/y.tif", "z.webp", "q.bmp", "p.jpeg", ".hidden.png", ".git/w.png"):
        image_file(day / name)
    (day / "notes.txt").write_text("no image")
    frames = [image_file(tmp_path / "photo.png").rename(tmp_path / f"frame.000{index}") for index in (1, 2)]
    done = run(model, [day, *frames, frames[0]], day)
    expected = ["a/x.png", "a/y.png", "b.png", "p.png", "q.png", "z.png", "frame.0001.png", "frame.0002.png"]
    assert [one["ids"].relative_to(day / "ids").as_posix() for one in done.values()] == expected
    assert files_in(day / "overlay") == sorted(expected)
    # an output folder inside the input folder is skipped the next time
    assert list(run(model, [day], day, overwrite=True)) == list(done)[:6]


def test_turned_deep_tiny_and_damaged_images(model, tmp_path):
    folder = tmp_path / "in"
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(image_file(folder / "g.tif"))
    image_file(folder / "a.png")
    image_file(folder / "b.png", turned=True)
    image_file(folder / "c.png", PIXELS[:1, :1])
    whole = image_file(folder / "d.png").read_bytes()
    (folder / "d.png").write_bytes(whole[: len(whole) // 2])
    (folder / "e.jpg").write_text("no image")
    image_file(folder / "f.png")
    with pytest.raises(OSError, match="3 of 7 images could not be read") as error:
        run(model, [folder], tmp_path / "out")
    message = str(error.value)
    assert str(folder / "d.png") in message and f"{folder / 'e.jpg'} cannot be read: not an image" in message
    assert "g.tif: mode I: its values 70000 to 70000 exceed 16 bits; save it with 8 or 16 bits" in message
    assert files_in(tmp_path / "out" / "ids") == ["a.png", "b.png", "c.png", "f.png"]  # the others are not stopped
    for kind in ("ids", "overlay"):  # upright, as viewers show it
        assert np.array_equal(read(tmp_path / "out" / kind / "a.png"), read(tmp_path / "out" / kind / "b.png"))
    assert read(tmp_path / "out" / "ids" / "c.png").shape == (1, 1)


# Mistakes, reported before anything is computed


def test_mistakes_are_reported_before_the_model_is_loaded_and_nothing_is_overwritten(photo, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "load_segmenter", lambda *_: pytest.fail("the model was loaded"))
    out, both = tmp_path / "out", image_file(tmp_path / "in" / "x.jpg").parent
    other = image_file(tmp_path / "other" / "x.jpg")
    image_file(both / "x.png")
    mine = image_file(tmp_path / "full" / "overlay" / "photo.png")
    (tmp_path / "empty").mkdir()
    for inputs, output, options, error, message in (
        ([both], out, {}, ValueError, r"x\.jpg and .*x\.png would both be written to x\.png: rename one"),
        ([both / "x.jpg", other], out, {}, ValueError, "would both be written"),
        ([photo, tmp_path / "nowhere"], out, {}, FileNotFoundError, "nowhere"),
        ([tmp_path / "empty"], out, {}, FileNotFoundError, r"empty holds no image.*\.jpg"),
        ([], out, {}, ValueError, "nothing to segment"),
        ([photo], out, {"dataset": "camvit"}, ValueError, "'camvit'.*camvid"),
        ([photo], photo, {}, FileExistsError, "is a file"),
        ([photo], tmp_path / "full", {}, FileExistsError, f"{mine} exists.*--overwrite"),
        ([mine], tmp_path / "full", {"overwrite": True}, ValueError, "would be overwritten"),
    ):
        with pytest.raises(error, match=message):
            run("model", inputs, output, **options)
    assert not out.exists() and np.array_equal(read(mine), PIXELS)
    with pytest.raises(FileExistsError, match="is not empty"):
        write_pseudo_labels("model", [photo], photo.parent)
    with pytest.raises(ValueError, match="confidence is a probability from 0 to 1, not 90"):
        write_pseudo_labels("model", [photo], out, confidence=90)


def test_another_image_is_added_but_another_models_predictions_are_rejected(model, photo, tmp_path):
    out, second = tmp_path / "out", image_file(tmp_path / "second.png")
    image_file(out / "ids" / "photo.png")
    assert Image.open(run(model, [photo], out, overwrite=True)[photo]["ids"]).mode == "L"
    other = saved(tmp_path / "other", segmenter(num_labels=5))
    with pytest.raises(FileExistsError, match="another model's"):
        run(other, [second], out)
    with pytest.raises(ValueError, match="4 classes, but camvid has 11"):
        run(model, [second], out, dataset="camvid")
    run(model, [second], out)
    assert files_in(out / "ids") == ["photo.png", "second.png"]


# Pseudo-labels


def test_predictions_become_a_dataset_with_uncertain_pixels_ignored(model, tmp_path):
    upright = image_file(tmp_path / "in" / "a" / "x.jpg")
    image_file(tmp_path / "in" / "y.png", turned=True)
    (tmp_path / "in" / "z.png").write_text("no image")
    with pytest.raises(OSError, match="1 of 3 images could not be read"):
        write_pseudo_labels(model, [tmp_path / "in"], tmp_path / "out", confidence=0.6, device="cpu", progress=False)
    rows = load_split(str(tmp_path / "out"), "train")
    assert len(rows) == 2 and json.loads((tmp_path / "out" / "classes.json").read_text()) == NAMES
    made, processor = load_segmenter(str(model))
    for row in rows:
        sample = make_sample(processor, row["image"])
        with torch.no_grad():
            logits = made.eval()(pixel_values=sample.pixel_values[None]).logits
        size, align = sample.size, made.config.align_corners
        scores = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=align).softmax(1)[0]
        expected = np.where(scores.amax(0) < 0.6, 255, scores.argmax(0))
        assert 0 < (expected == 255).mean() < 1 and np.array_equal(np.asarray(row["label"]), expected)
    assert (tmp_path / "out" / "train" / "images" / "a" / "x.jpg").read_bytes() == upright.read_bytes()
    assert np.array_equal(np.asarray(rows[1]["image"]), PIXELS)  # upright


# Colours


def test_names_and_colours_are_a_benchmarks_if_they_fit():
    camvid = BENCHMARKS["camvid"]
    spelled = {index: name.title().replace(" ", "_") for index, name in enumerate(camvid.classes)}
    unnamed = {index: f"LABEL_{index}" for index in range(11)}
    own = dict(enumerate(reversed(camvid.classes)))
    for id2label, benchmark, names, colors in (
        (spelled, None, list(spelled.values()), camvid.palette),
        (unnamed, camvid, list(camvid.classes), camvid.palette),
        (own, camvid, list(own.values()), camvid.palette),
        (own, None, list(own.values()), distinct_palette(11)),
    ):
        found = class_legend(id2label, benchmark)
        assert found[0] == names and np.array_equal(found[1], colors)


def test_generated_colours_are_distinct_and_neither_black_white_nor_grey_in_oklab():
    colors = distinct_palette(300)
    assert colors.shape == (300, 3) and colors.dtype == np.uint8
    seen = oklab(np.vstack([colors, [[0, 0, 0], [255, 255, 255]]]).astype(np.uint8))
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(302)
    assert distance.min() > 0.045  # measured 0.048
    assert distance[:19, :19].min() > 0.14  # CamVid's closest two are 0.10 apart
    assert np.hypot(seen[:300, 1], seen[:300, 2]).min() > 0.02
    assert np.array_equal(distinct_palette(20), colors[:20])  # a class keeps its colour when classes are added
    published = {(255, 0, 0): (0.62796, 0.22486, 0.12585), (255, 255, 255): (1, 0, 0)}
    for color, expected in published.items():
        assert oklab(np.array(color, np.uint8)) == pytest.approx(expected, abs=1e-4)


def test_predictions_appear_beside_a_users_own_labels_with_errors_below(model, tmp_path, monkeypatch):
    seen = segment_image(*load_segmenter(str(model)), PIXELS)
    with pytest.raises(ValueError, match=r"The image is a ndarray \(24, 40\) uint8; give a PIL image"):
        segment_image(*load_segmenter(str(model)), PIXELS[..., 0])
    label, folder = seen.copy(), tmp_path / "data"
    label[:, 0], label[:12, 1] = (seen[:, 0] + 1) % 4, 255
    image_file(folder / "images" / "val" / "a.png")
    image_file(folder / "labels" / "val" / "a.png", np.where(label < 255, label + 10, label))
    monkeypatch.setattr(predictions, "plot_predictions", lambda *args, notes, unlined: (*args, notes, unlined))
    data = {"dataset": str(folder), "label_map": {10: 0, 11: 1, 12: 2, 13: 3}}
    drawn = draw_predictions({"mine": model}, tmp_path / "x.png", indices=[0], errors=True, **data)
    columns, colors, names, path, notes, unlined = drawn
    assert unlined == [4]  # correct
    assert names == [*NAMES, "correct"] and colors[:4].tolist() == distinct_palette(4).tolist()
    assert path == tmp_path / "x.png" and notes == {"image": "data val"}
    assert list(columns) == ["image", "truth", "mine"] and all(len(cells) == 2 for cells in columns.values())
    assert np.array_equal(columns["truth"][0], label) and np.array_equal(columns["mine"][0], seen)
    errors = np.full((24, 40), 4)
    errors[:, 0], errors[:12, 1] = seen[:, 0], 255
    assert np.array_equal(columns["mine"][1], errors)
    assert columns["image"][1] == "" and columns["truth"][1].endswith("mine: 2.5 %")  # 24 of 948
    with pytest.raises(ValueError, match="The model has 4 classes, but scenes has 8"):
        draw_predictions({"mine": model}, tmp_path / "x.png", dataset="scenes", indices=[0])


# What `afdcd evaluate --save_predictions` writes: class-id PNGs, and the zip for a test server


IDS = np.random.default_rng(0).permutation(960).reshape(24, 40) % 256


def writer_to(folder, label_ids=None, **options):
    """Make a writer, for a test server only if class ids for one are given."""
    server = None if label_ids is None else Submission(label_ids, lambda name: f"{Path(name).stem}_labelIds.png")
    writer = PredictionWriter(folder, replace(BENCHMARKS["camvid"], submission=server), **options)
    writer.prepare()
    return writer


def test_train_ids_keep_the_images_subfolders_and_a_server_gets_its_own_ids_names_and_a_zip(tmp_path):
    writer = writer_to(tmp_path / "out")
    writer("val/a.jpg", IDS)
    writer("val/b.v1", IDS + 1)
    assert files_in(tmp_path) == ["out/val/a.png", "out/val/b.v1.png"] and writer.pack([]) is None
    small, large = (Image.open(tmp_path / "out" / "val" / name) for name in ("a.png", "b.v1.png"))
    assert (small.mode, large.mode) == ("L", "I;16")  # one of the ids is 256
    assert np.array_equal(small, IDS) and np.array_equal(large, IDS + 1)
    writer = writer_to(tmp_path / "sent", {0: 7, 1: 8, 2: 0})
    for name in ("test/ulm/u.png", "test/berlin/b.png"):
        writer(name, np.array([[0, 1], [2, 3]]))
    image_file(tmp_path / "sent" / "of_an_earlier_call.png")
    assert writer.pack(writer.written) == tmp_path / "sent.zip"
    with zipfile.ZipFile(tmp_path / "sent.zip") as archive:
        assert archive.namelist() == ["b_labelIds.png", "u_labelIds.png"] and archive.testzip() is None
        with archive.open("b_labelIds.png") as file:
            assert np.asarray(Image.open(file)).tolist() == [[7, 8], [0, 3]]


def test_predictions_never_replace_files_or_leave_the_folder(tmp_path):
    mine = image_file(tmp_path / "full" / "x.png")
    (tmp_path / "new.zip").write_text("of last week")
    for name, message in (("full", "x.png exists"), ("full/x.png", "is a file"), ("new", "new.zip exists")):
        with pytest.raises(FileExistsError, match=message):
            writer_to(tmp_path / name, {})
    with pytest.raises(FileExistsError, match=r"x\.png exists"):
        PredictionWriter(tmp_path / "full")("x.png", IDS)
    assert np.array_equal(read(mine), PIXELS) and not (tmp_path / "new").exists()
    writer = writer_to(tmp_path / "full", overwrite=True)
    writer("x.png", IDS)
    assert np.array_equal(read(mine), IDS)
    for name, message in (("x.jpg", "would go to the same file"), ("../a", "outside"), ("/a.png", "outside")):
        with pytest.raises(ValueError, match=message):
            writer(name, IDS)
    assert files_in(tmp_path) == ["full/x.png", "new.zip"]
