from __future__ import annotations

import io

import numpy as np
import pytest
from miniatures import camvid_folder
from PIL import Image
from stored_pictures import ids, png, stored

from afdcd_hf.data.decoding import DecodedRows
from afdcd_hf.data.loading import load_benchmark
from afdcd_hf.data.samples import check_labels


def decoded(content, label_map=None, path="x.png"):
    return DecodedRows.with_map(label_map or {})({"label": [stored(content, path)]})["label"][0]


# Labels and images of every kind


def test_labels_of_every_integer_mode_hold_the_ids_of_their_files():
    buffer = io.BytesIO()
    Image.fromarray(np.int32([[0, 7, 70000]])).save(buffer, format="TIFF")
    assert ids(decoded(png(np.uint8([[0, 7, 200]])))) == [[0, 7, 200]]
    assert ids(decoded(png(np.array([[False, True]])))) == [[0, 1]]
    small = decoded(png(np.uint16([[0, 7, 255]])))
    assert small.mode == "L" and ids(small) == [[0, 7, 255]]
    large = decoded(png(np.uint16([[0, 7, 300]])))
    assert large.mode == "I" and ids(large) == [[0, 7, 300]]
    assert ids(decoded(buffer.getvalue())) == [[0, 7, 70000]]


def test_big_endian_16_bit_labels_are_read():
    buffer = io.BytesIO()
    Image.frombytes("I;16B", (2, 1), np.array([300, 5], ">u2").tobytes()).save(buffer, format="TIFF")
    assert Image.open(buffer).mode == "I;16B"
    assert ids(decoded(buffer.getvalue(), {300: 4})) == [[4, 5]]


def test_palette_labels_hold_indices_and_their_colours_do_not_matter():
    picture = Image.fromarray(np.uint8([[5, 11]])).convert("P")
    picture.putdata([5, 11])
    picture.putpalette([200] * 768)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    assert ids(decoded(buffer.getvalue(), {11: 255})) == [[5, 255]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_values_are_mapped_alike_in_8_16_and_32_bits(dtype):
    values, label_map = np.arange(256).reshape(8, 32), {v: (v * 7 + 3) % 200 for v in range(0, 256, 3)}
    buffer = io.BytesIO()
    Image.fromarray(values.astype(dtype)).save(buffer, format="TIFF")
    label = decoded(buffer.getvalue(), label_map)
    assert label.mode == "L" and ids(label) == [[label_map.get(v, v) for v in row] for row in values.tolist()]


def test_a_map_reaches_16_bit_values_and_may_need_16_bits_itself():
    assert ids(decoded(png(np.uint16([[26001, 4, 65535]])), {26001: 13, 65535: 255})) == [[13, 4, 255]]
    large = decoded(png(np.uint8([[1, 2]])), {1: 300})
    assert large.mode == "I" and ids(large) == [[300, 2]]


def test_values_beyond_8_bits_are_reported_and_not_wrapped():
    label = decoded(png(np.uint16([[0, 256, 256]])))
    with pytest.raises(ValueError, match=r"x\.png: 2 label pixels lie outside 0\.\.18 \(values 256\)"):
        check_labels(np.asarray(label), 19, 255, "x.png")


def test_an_opaque_alpha_channel_is_dropped_and_any_other_refused():
    opaque, clear = (np.dstack([np.uint8([[3, 4]]), np.uint8([[255, alpha]])]) for alpha in (255, 0))
    assert ids(decoded(png(opaque))) == [[3, 4]]
    with pytest.raises(ValueError, match="image mode is LA"):
        decoded(png(clear))


def test_colours_and_jpegs_are_refused_as_labels_with_the_file(tmp_path):
    camvid_folder(tmp_path)
    colours, lossy = tmp_path / "trainannot" / "a.png", tmp_path / "trainannot" / "b.png"
    Image.new("RGB", (6, 4)).save(colours)
    Image.new("L", (6, 4)).save(lossy, format="JPEG")
    dataset = load_benchmark("camvid", "train", tmp_path)
    with pytest.raises(
        ValueError, match=rf"train/a\.png: the label's image mode is RGB, .* colour-coded .*\({colours}\)"
    ):
        dataset[0]
    with pytest.raises(ValueError, match=rf"train/b\.png: the label \({lossy}\) is a JPEG, which changes class ids"):
        dataset[1]
    with pytest.raises(ValueError, match=rf"the label {colours}: the label's image mode is RGB"):
        dataset.select_columns("label")[0]


def test_images_of_more_than_8_bits_are_refused_instead_of_clipped():
    with pytest.raises(ValueError, match=r"a: the image \(x\.png\) has mode I;16"):
        DecodedRows()({"image": [stored(png(np.uint16([[300]])), "x.png")], "name": ["a"]})


def test_orientation_tags_are_obeyed_in_image_and_label():
    tag = Image.Exif()
    tag[0x0112] = 6  # to be turned clockwise for viewing
    files = []
    for kind, pixels in (("JPEG", np.zeros((8, 16, 3), np.uint8)), ("PNG", np.uint8([[1, 2, 3, 4]] * 2))):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=kind, exif=tag)
        files.append(stored(buffer.getvalue()))
    rows = DecodedRows()({"image": files[:1], "label": files[1:]})
    assert rows["image"][0].size == (8, 16)
    assert ids(rows["label"][0]) == [[value, value] for value in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"road": 0}, "the key 'road'"),
        ({7: -1}, "the value -1"),
        ({7: None}, "the value None"),
        ({7: 1.5}, "the value 1.5"),
        ({70000: 1}, "the key 70000; class ids are whole numbers from 0 to 65535"),
        ({7: 1, "7": 2}, "more than one entry for 7"),
    ],
)
def test_label_maps_that_mean_nothing_are_refused(label_map, message):
    with pytest.raises(ValueError, match=message):
        DecodedRows.with_map(label_map)


# Damaged files


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_truncated_image_names_its_file(tmp_path, suffix):
    camvid_folder(tmp_path, image_suffix=suffix, size=(64, 64))
    path = tmp_path / "train" / f"b{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    dataset = load_benchmark("camvid", "train", tmp_path)
    with pytest.raises(
        OSError, match=rf"train/b{suffix}: the image \({path}\) cannot be read: .* damaged or "
    ) as caught:
        np.asarray(dataset[1]["image"])  # PNGs are decoded only now
    assert "\n" not in str(caught.value)
    assert dataset[0]["name"] == f"train/a{suffix}"


def test_labels_that_are_truncated_empty_or_gone_name_their_file(tmp_path):
    folder = camvid_folder(tmp_path, size=(64, 64)) / "trainannot"
    (folder / "a.png").write_bytes(png(np.random.default_rng(0).integers(0, 11, (64, 64), np.uint8))[:-200])
    (folder / "b.png").write_bytes(b"")
    dataset = load_benchmark("camvid", "train", tmp_path)
    (folder / "c.png").unlink()
    for index, reason in enumerate(
        (".*", "no picture. The file is damaged", "No such file or directory. Put the file")
    ):
        with pytest.raises(OSError, match=rf"the label \({folder}/{'abc'[index]}\.png\) cannot be read: {reason}"):
            dataset[index]
