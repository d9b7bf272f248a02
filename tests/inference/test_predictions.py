"""`afdcd predict`: what it writes for a user's pictures of all kinds, and what it answers to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import segmenter

from afdcd_hf import AfDcdImageProcessor
from afdcd_hf.charts.label_maps import distinct_palette, draw_overlay, oklab
from afdcd_hf.data.benchmarks import BENCHMARKS
from afdcd_hf.inference import predictions
from afdcd_hf.inference.images import open_rgb
from afdcd_hf.inference.onnx_segmenter import load_segmenter
from afdcd_hf.inference.predictions import class_legend, predict_images
from afdcd_hf.inference.pseudo_labels import write_pseudo_labels
from afdcd_hf.inference.segment import Predictor, make_sample, segment_image
from afdcd_hf.inference.settings import InferenceSettings

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)  # predictions of more than one class
NAMES = ["sky", "wall", "floor", "lamp"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder with four classes."""
    folder = tmp_path_factory.mktemp("model")
    named = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    network = segmenter(**named)
    with torch.no_grad():  # so that all classes occur
        network.head.classifier.weight.mul_(100)
    network.save_pretrained(folder)
    AfDcdImageProcessor().save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    return picture(tmp_path / "photo.png")


def picture(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def run(model, inputs, output, **options):
    return predict_images(model, inputs, output, device="cpu", progress=False, **options)


# predict: what is written


def test_ids_colours_overlay_and_legend_of_a_picture(model, photo, tmp_path):
    (done,) = run(model, [photo], tmp_path / "out")
    assert files_in(tmp_path / "out") == ["classes.json", "color/photo.png", "ids/photo.png", "overlay/photo.png"]
    assert done.image == photo and done.ids == tmp_path / "out" / "ids" / "photo.png"
    network, processor = load_segmenter(str(model))
    expected = segment_image(network, processor, Image.open(photo))
    ids = read(done.ids)
    assert len(np.unique(expected)) > 1
    assert Image.open(done.ids).mode == "L" and ids.dtype == np.uint8 and np.array_equal(ids, expected)
    legend = json.loads((tmp_path / "out" / "classes.json").read_text())
    assert [legend[str(index)]["name"] for index in range(4)] == NAMES and len(legend) == 4
    colors = np.array([legend[str(index)]["color"] for index in range(4)])
    assert Image.open(done.color).mode == "RGB" and np.array_equal(read(done.color), colors[ids])
    inside = np.zeros(ids.shape, bool)  # pixels without another class to the right or below have no line through them
    inside[:-1, :-1] = (ids[:-1, :-1] == ids[:-1, 1:]) & (ids[:-1, :-1] == ids[1:, :-1])
    half = (PIXELS.astype(float) + colors[ids]) / 2
    assert inside.any() and np.abs(read(done.overlay)[inside] - half[inside]).max() <= 1


def test_a_model_of_more_than_256_classes_gets_16_bits_and_all_its_colours(tmp_path, photo, monkeypatch):
    segmenter(num_labels=300).save_pretrained(tmp_path / "model")
    AfDcdImageProcessor().save_pretrained(tmp_path / "model")
    label_map = torch.tensor([[0, 255], [256, 299]]).repeat_interleave(12, 0).repeat_interleave(20, 1)
    for name, shown in (("out", label_map), ("low", label_map % 200)):
        monkeypatch.setattr(Predictor, "label_maps", lambda self, batches, shown=shown: [(batches[0][0], shown)])
        (done,) = run(tmp_path / "model", [photo], tmp_path / name)
        # 16 bits whatever classes occur in this image; 255 is a class here
        assert Image.open(done.ids).mode == "I;16" and np.array_equal(read(done.ids), shown)
        assert np.array_equal(read(done.color), distinct_palette(300)[shown])


def test_settings_reach_the_network(model, photo, tmp_path):
    settings = InferenceSettings(scales=(1.0, 1.5), flip=True, window=(16, 16), stride=(8, 8))
    (done,) = run(model, [photo], tmp_path / "out", settings=settings)
    network, processor = load_segmenter(str(model))
    plain = segment_image(network, processor, Image.open(photo))
    assert np.array_equal(read(done.ids), segment_image(network, processor, Image.open(photo), settings))
    assert not np.array_equal(read(done.ids), plain)


def test_folders_keep_their_sub_folders_and_hidden_or_other_files_are_passed_over(model, tmp_path):
    day = tmp_path / "day"
    for name in ("b.JPG", "a/x.png", "a/y.tif", "z.webp", "q.bmp", "p.jpeg", ".hidden.png", ".git/w.png"):
        picture(day / name)
    (day / "notes.txt").write_text("no picture")
    single = picture(tmp_path / "frame.0001.png")
    done = run(model, [day, single], tmp_path / "out")
    expected = ["a/x.png", "a/y.png", "b.png", "p.png", "q.png", "z.png", "frame.0001.png"]
    assert [one.ids.relative_to(tmp_path / "out" / "ids").as_posix() for one in done] == expected
    assert files_in(tmp_path / "out" / "overlay") == sorted(expected)


def test_two_names_that_differ_only_after_a_dot_stay_apart(model, tmp_path):
    for index in (1, 2):
        picture(tmp_path / "photo.png").rename(tmp_path / f"frame.000{index}")
    done = run(model, [tmp_path / "frame.0001", tmp_path / "frame.0002"], tmp_path / "out")
    assert [one.ids.name for one in done] == ["frame.0001.png", "frame.0002.png"]


def test_a_picture_named_twice_is_segmented_once(model, photo, tmp_path):
    assert len(run(model, [photo, photo.parent / "." / photo.name, str(photo)], tmp_path / "out")) == 1


def test_an_output_folder_inside_the_input_folder_is_not_searched_the_next_time(model, photo):
    folder = photo.parent
    assert len(run(model, [folder], folder)) == 1
    assert [one.image for one in run(model, [folder], folder, overwrite=True)] == [photo]


# predict: pictures of all kinds


def test_the_label_map_lies_upright_as_viewers_show_the_photo(model, tmp_path):
    upright = picture(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side; to be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(PIXELS)).save(tmp_path / "phone.png", exif=exif)
    first, second = run(model, [upright, tmp_path / "phone.png"], tmp_path / "out")
    assert read(second.ids).shape == (24, 40)
    assert np.array_equal(read(second.ids), read(first.ids))
    assert np.array_equal(read(second.overlay), read(first.overlay))


GREY = PIXELS[..., 0]
AS_GREY = np.repeat(GREY[..., None], 3, axis=2)
KINDS = {
    "L": (Image.fromarray(GREY), AS_GREY),
    "1": (Image.fromarray(GREY > 127), np.where(AS_GREY > 127, 255, 0)),
    "RGBA": (Image.fromarray(np.dstack([PIXELS, 255 - GREY])), PIXELS),
    "LA": (Image.fromarray(np.dstack([GREY, 255 - GREY])), AS_GREY),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), AS_GREY),
    "CMYK": (Image.new("CMYK", (40, 24), (0, 255, 255, 0)), np.broadcast_to([255, 0, 0], (24, 40, 3))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_all_kinds_become_rgb(tmp_path, kind):
    stored, expected = KINDS[kind]
    assert stored.mode == kind
    path = tmp_path / ("x.tif" if kind == "CMYK" else "x.png")
    stored.save(path)
    opened = open_rgb(path)
    assert opened.mode == "RGB" and np.array_equal(np.asarray(opened), expected)


@pytest.mark.filterwarnings("error")
def test_palette_pictures_take_their_colours_even_with_transparency(tmp_path):
    stored = Image.fromarray(GREY % 3).convert("P")
    stored.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    stored.save(tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    expected = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])[GREY % 3]
    assert np.array_equal(np.asarray(open_rgb(tmp_path / "x.png")), expected)


@pytest.mark.parametrize("values", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32)])
def test_pixels_whose_range_is_unknown_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(OSError, match=r"x\.tif: .*save it with 8 or 16 bits"):
        open_rgb(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="^mine: mode .*save it with 8 or 16 bits"):
        make_sample(AfDcdImageProcessor(), Image.fromarray(values), "mine")  # the entrance of Python


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2)])
def test_tiny_pictures_are_segmented(model, tmp_path, size):
    (done,) = run(model, [picture(tmp_path / "x.png", PIXELS[: size[0], :1].repeat(size[1], 1))], tmp_path / "out")
    assert read(done.ids).shape == size and read(done.overlay).shape == (*size, 3)


def test_pictures_that_cannot_be_read_are_listed_at_the_end_and_stop_no_other(model, tmp_path):
    folder = tmp_path / "in"
    picture(folder / "a.png")
    whole = picture(folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    (folder / "c.jpg").write_text("no picture")
    picture(folder / "d.png")
    with pytest.raises(OSError, match="2 of 4 images could not be read") as error:
        run(model, [folder], tmp_path / "out")
    assert str(folder / "b.png") in str(error.value) and f"{folder / 'c.jpg'} cannot be read: not an image" in str(
        error.value
    )
    assert files_in(tmp_path / "out" / "ids") == ["a.png", "d.png"]


# predict: mistakes, told before anything is computed


@pytest.fixture
def untouched(monkeypatch):
    """Fails a test whose mistake is noticed only after the model was loaded."""
    monkeypatch.setattr(predictions, "load_segmenter", lambda *_: pytest.fail("the model was loaded"))


def test_pictures_that_would_share_a_file_are_named(untouched, tmp_path):
    first, second = picture(tmp_path / "in" / "x.jpg"), picture(tmp_path / "in" / "x.png")
    with pytest.raises(ValueError, match="rename one") as error:
        run("model", [tmp_path / "in"], tmp_path / "out")
    assert str(first) in str(error.value) and str(second) in str(error.value)
    with pytest.raises(ValueError, match="would both be written"):
        run("model", [first, picture(tmp_path / "other" / "x.jpg")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ids", "color", "overlay"])
def test_an_existing_file_is_named_and_kept(untouched, photo, tmp_path, name):
    mine = picture(tmp_path / "out" / name / "photo.png")
    before = mine.read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite") as error:
        run("model", [photo], tmp_path / "out")
    assert str(mine) in str(error.value) and mine.read_bytes() == before


def test_overwriting_replaces_and_another_picture_is_added_without(model, photo, tmp_path):
    out = tmp_path / "out"
    picture(out / "ids" / "photo.png")
    (done,) = run(model, [photo], out, overwrite=True)
    assert Image.open(done.ids).mode == "L"
    run(model, [picture(tmp_path / "second.png")], out)
    assert files_in(out / "ids") == ["photo.png", "second.png"]


def test_predictions_of_another_model_are_not_mixed_in(model, photo, tmp_path):
    run(model, [photo], tmp_path / "out")
    segmenter(num_labels=5).save_pretrained(tmp_path / "other")
    AfDcdImageProcessor().save_pretrained(tmp_path / "other")
    second = picture(tmp_path / "second.png")
    with pytest.raises(FileExistsError, match="another model's"):
        run(tmp_path / "other", [second], tmp_path / "out")
    assert files_in(tmp_path / "out" / "ids") == ["photo.png"]


def test_a_picture_is_never_written_over_by_its_own_prediction(untouched, tmp_path):
    mine = picture(tmp_path / "out" / "ids" / "x.png")
    with pytest.raises(ValueError, match="would be written over"):
        run("model", [mine], tmp_path / "out", overwrite=True)


def test_missing_inputs_empty_folders_and_bad_options_are_answered(untouched, photo, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run("model", [photo, tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"empty holds no image.*\.jpg"):
        run("model", [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(ValueError, match="nothing to segment"):
        run("model", [], tmp_path / "out")
    with pytest.raises(ValueError, match="'camvit'.*camvid"):
        run("model", [photo], tmp_path / "out", dataset="camvit")
    with pytest.raises(ValueError, match="overlay_opacity.*1.5"):
        run("model", [photo], tmp_path / "out", overlay_opacity=1.5)
    with pytest.raises(FileExistsError, match="is a file"):
        run("model", [photo], photo)
    assert not (tmp_path / "out").exists()


def test_a_benchmark_of_another_number_of_classes_is_refused(model, photo, tmp_path):
    with pytest.raises(ValueError, match="4 classes and camvid 11"):
        run(model, [photo], tmp_path / "out", dataset="camvid")


def test_weights_that_are_not_finite_give_no_images(model, photo, tmp_path):
    network, processor = load_segmenter(str(model))
    with torch.no_grad():
        network.head.classifier.weight.view(-1)[0] = float("nan")
    network.save_pretrained(tmp_path / "bad")
    processor.save_pretrained(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"photo\.png: the model's scores are not finite"):
        run(tmp_path / "bad", [photo], tmp_path / "out")
    assert files_in(tmp_path / "out") == []


# Pseudo-labels


def test_predictions_become_a_data_set_in_which_uncertain_pixels_are_ignored(model, tmp_path):
    from afdcd_hf.data.loading import load_split

    upright = picture(tmp_path / "in" / "a" / "x.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(PIXELS)).save(tmp_path / "in" / "y.png", exif=exif)
    (tmp_path / "in" / "z.png").write_text("no image")
    with pytest.raises(OSError, match="1 of 3 images could not be read"):
        write_pseudo_labels(model, [tmp_path / "in"], tmp_path / "out", confidence=0.6, device="cpu", progress=False)
    rows = load_split(str(tmp_path / "out"), "train")
    assert len(rows) == 2 and json.loads((tmp_path / "out" / "classes.json").read_text()) == NAMES
    network, processor = load_segmenter(str(model))
    for row in rows:
        sample = make_sample(processor, row["image"])
        with torch.no_grad():
            logits = network.eval()(pixel_values=sample.pixel_values[None]).logits
        size, align = sample.size, network.config.align_corners
        scores = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=align).softmax(1)[0]
        expected = np.where(scores.amax(0) < 0.6, 255, scores.argmax(0))
        assert 0 < (expected == 255).mean() < 1 and np.array_equal(np.asarray(row["label"]), expected)
    assert (tmp_path / "out" / "train" / "images" / "a" / "x.jpg").read_bytes() == upright.read_bytes()
    assert np.array_equal(read(tmp_path / "out" / "train" / "images" / "y.png"), PIXELS)  # upright


def test_pseudo_labels_go_to_a_new_folder_only(untouched, photo, tmp_path):
    with pytest.raises(FileExistsError, match="is not empty"):
        write_pseudo_labels("model", [photo], photo.parent)
    with pytest.raises(ValueError, match="confidence is a probability from 0 to 1, not 90"):
        write_pseudo_labels("model", [photo], tmp_path / "out", confidence=90)


# Colours


def test_colours_are_those_of_the_benchmark_with_the_models_classes():
    camvid = BENCHMARKS["camvid"]
    spelled = {index: name.title().replace(" ", "_") for index, name in enumerate(camvid.classes)}
    names, colors = class_legend(spelled)
    assert names == list(spelled.values()) and np.array_equal(colors, camvid.palette)
    other_order = dict(enumerate(reversed(camvid.classes)))
    assert np.array_equal(class_legend(other_order)[1], distinct_palette(11))


def test_a_benchmark_that_is_asked_for_gives_colours_and_names_where_the_model_has_none():
    camvid = BENCHMARKS["camvid"]
    names, colors = class_legend({index: f"LABEL_{index}" for index in range(11)}, camvid)
    assert names == list(camvid.classes) and np.array_equal(colors, camvid.palette)
    own = {index: f"class {index}" for index in range(11)}
    assert class_legend(own, camvid)[0] == list(own.values())


def test_generated_colours_are_distinct_and_neither_black_white_nor_grey():
    colors = distinct_palette(300)
    assert colors.shape == (300, 3) and colors.dtype == np.uint8
    seen = oklab(np.vstack([colors, [[0, 0, 0], [255, 255, 255]]]).astype(np.uint8))
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + np.eye(302)
    assert distance.min() > 0.045  # measured 0.048
    assert distance[:19, :19].min() > 0.14  # CamVid's closest two are 0.10 apart
    assert np.hypot(seen[:300, 1], seen[:300, 2]).min() > 0.02
    assert np.array_equal(distinct_palette(20), colors[:20])  # a class keeps its colour when classes are added


def test_oklab_gives_the_published_values_of_red_and_white():
    lightness, green_red, blue_yellow = oklab(np.array([255, 0, 0], np.uint8))
    assert (lightness, green_red, blue_yellow) == pytest.approx((0.62796, 0.22486, 0.12585), abs=1e-4)
    assert oklab(np.array([255, 255, 255], np.uint8)) == pytest.approx((1, 0, 0), abs=1e-4)


@pytest.mark.parametrize("number", [0, -1, 5000])
def test_impossible_palettes_are_refused(number):
    with pytest.raises(ValueError, match="1 to 4096"):
        distinct_palette(number)


def test_an_overlay_of_opacity_zero_is_the_picture_with_a_white_line_between_classes():
    label_map = np.zeros((24, 40), np.uint8)
    label_map[:, 10:] = 1
    drawn = draw_overlay(Image.fromarray(PIXELS), label_map, distinct_palette(2), 0.0)
    expected = PIXELS.copy()
    expected[:, 9] = 255
    assert np.array_equal(drawn, expected)


def test_lines_are_wider_in_larger_pictures_and_centred():
    label_map = np.zeros((1600, 1700), np.uint8)
    label_map[800:] = 1
    drawn = draw_overlay(Image.new("RGB", (1700, 1600)), label_map, distinct_palette(2), 0.0)
    assert np.flatnonzero(drawn[:, 0, 0]).tolist() == [798, 799, 800, 801]
