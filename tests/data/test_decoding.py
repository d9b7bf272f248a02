"""Labels and images of every file type, read as stored; damaged files are named, never read silently."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
from miniatures import camvid_folder
from PIL import Image
from stored_images import grey_png, ids, png, stored

from afdcd_hf.data.decoding import DecodedRows, open_image
from afdcd_hf.data.loading import load_benchmark


def decoded(content, label_map=None):
    return DecodedRows.with_map(label_map or {})({"label": [stored(content, "x.png")]})["label"][0]


def image_of(content):
    return DecodedRows()({"image": [stored(content, "x.png")], "name": ["a"]})["image"][0]


def file_of(image, kind="TIFF", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


# Labels and images of every kind


def test_labels_of_every_integer_mode_hold_the_mapped_ids_of_their_files():
    for content, label_map, mode, expected in (
        (png(np.uint16([[0, 7, 255]])), {7: 8, 255: 9}, "L", [0, 8, 9]),
        (png(np.uint16([[0, 7, 300]])), {7: 8}, "I", [0, 8, 300]),
        (file_of(Image.fromarray(np.int32([[0, 7, 70000]]))), {0: 1}, "I", [1, 7, 70000]),
        (file_of(Image.frombytes("I;16B", (2, 1), np.array([300, 5], ">u2").tobytes())), {}, "I", [300, 5]),
        (png(np.uint16([[26001, 4, 65535]])), {26001: 13, 65535: 255}, "L", [13, 4, 255]),
        (png(np.uint8([[1, 2]])), {1: 300}, "I", [300, 2]),
        (png(np.dstack([np.uint8([[3, 4]]), np.uint8([[255, 255]])])), {}, "L", [3, 4]),  # an opaque alpha channel
    ):
        label = decoded(content, label_map)
        assert label.mode == mode and ids(label) == [expected]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["grey", "palette", "grey palette"])
def test_pngs_of_few_bits_keep_their_stored_values(bits, kind):
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 11), dtype=np.uint8)
    greys = np.linspace(0, 255, 2**bits).astype(np.uint8).repeat(3).tobytes()  # what a viewer would show
    palette = {"grey": b"", "palette": bytes(range(3, 3 + 3 * min(2**bits, 64))), "grey palette": greys}[kind]
    content = grey_png(values, bits, 3 if palette else 0, palette)
    assert ids(decoded(content)) == values.tolist()
    assert ids(decoded(content, {1: 7}))[0] == [7 if value == 1 else value for value in values[0].tolist()]


def tiff(photometric, bits, data):
    """A TIFF of 4x1 pixels with the tags that matter."""
    tags = {256: 4, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_files_that_pillow_rescales_are_read_as_stored_and_inverted_ones_rejected():
    assert ids(decoded(tiff(1, 4, bytes([0x01, 0x2F])))) == [[0, 1, 2, 15]]
    assert ids(decoded(tiff(1, 8, bytes([0, 1, 2, 255])))) == [[0, 1, 2, 255]]
    with pytest.raises(ValueError, match=r"x\.png is a TIFF whose values Pillow changes .*; save it as PNG"):
        decoded(tiff(0, 8, bytes([0, 1, 2, 255])))
    assert ids(decoded(b"P5 2 1 255\n\x00\x03")) == [[0, 3]]
    for changed in (b"P5 2 1 3\n\x00\x03", b"P5 # of 3\n 2 1 255\n\x00\x03", b"P4 2 1\n\x80"):
        with pytest.raises(ValueError, match="is a PPM whose values Pillow changes"):
            decoded(changed)


def test_invalid_label_maps_are_rejected():
    for label_map, message in (
        ({"road": 0}, "the key 'road'"),
        ({7: 1.5}, "the value 1.5"),
        ({70000: 1}, "the key 70000; class ids are whole numbers from 0 to 65535"),
        ({7: 1, "7": 2}, "more than one entry for a value: 7, '7'"),
    ):
        with pytest.raises(ValueError, match=message):
            DecodedRows.with_map(label_map)


def test_labels_without_class_ids_and_images_without_colours_are_rejected():
    for content, message in (
        (png(np.dstack([np.uint8([[3, 4]]), np.uint8([[255, 0]])])), "the label x.png: the label's image mode is LA"),
        (png(np.zeros((4, 6, 3), np.uint8)), "the label x.png: the label's image mode is RGB, .* colour-coded"),
        (file_of(Image.new("L", (6, 4)), "JPEG"), "the label x.png is a JPEG, which can change"),
    ):
        with pytest.raises(ValueError, match=message):
            decoded(content)
    with pytest.raises(ValueError, match=r"a: the image \(x\.png\) has mode F: its pixels are floating-point"):
        image_of(file_of(Image.fromarray(np.float32([[0.5]]))))


def test_orientation_tags_apply_to_image_and_label():
    tag = Image.Exif()
    tag[0x0112] = 6  # to be rotated clockwise for viewing
    image = file_of(Image.fromarray(np.zeros((8, 16, 3), np.uint8)), "JPEG", exif=tag)
    label = file_of(Image.fromarray(np.uint8([[1, 2, 3, 4]] * 2)), "PNG", exif=tag)
    rows = DecodedRows()({"image": [stored(image)], "label": [stored(label)]})
    assert rows["image"][0].size == (8, 16)
    assert ids(rows["label"][0]) == [[value, value] for value in (1, 2, 3, 4)]


# Damaged files


def test_a_flipped_bit_in_a_png_never_changes_a_pixel_silently():
    values = np.random.default_rng(0).integers(0, 11, (12, 20), np.uint8)
    content, found = png(values), 0
    for position in range(8, len(content)):
        broken = bytearray(content)
        broken[position] ^= 1 << position % 8
        try:
            assert ids(decoded(bytes(broken))) == values.tolist()
        except OSError as error:
            assert "the label x.png cannot be read: " in str(error) and "The file is damaged" in str(error)
            found += 1
    assert found > len(content) - 20  # the last bytes mark the end of the file
    assert ids(decoded(content + b"what some tools append")) == values.tolist()


def test_an_image_with_too_many_pixels_is_reported_as_too_large_not_as_damaged(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    large = grey_png(np.zeros((20, 20), np.uint8), 8)
    with pytest.raises(OSError, match=r"\(400 pixels\) exceeds limit of 200 pixels.*MAX_IMAGE_PIXELS") as caught:
        open_image(large, "x")
    assert "damaged" not in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_devices_and_folders_are_rejected_as_images(tmp_path, make):
    make(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a\.png\) cannot be read: It is a folder, a pipe or a device, not a"):
        DecodedRows()({"label": [stored(None, str(tmp_path / "a.png"))], "name": ["train/a.png"]})


def test_images_and_labels_that_are_truncated_empty_or_gone_name_their_file(tmp_path):
    labels = camvid_folder(tmp_path, image_suffix=".jpg", size=(64, 64), stems="abcd") / "trainannot"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "train" / "d.jpg").write_bytes(file_of(Image.fromarray(noise), "JPEG")[:-1000])
    (labels / "a.png").write_bytes(png(noise[..., 0])[:-200])
    (labels / "b.png").write_bytes(b"")
    dataset = load_benchmark("camvid", "train", tmp_path)
    (labels / "c.png").unlink()
    for row, (file, reason) in enumerate(
        {
            f"label \\({labels}/a.png": "Truncated File Read",
            f"label \\({labels}/b.png": "not an image. The file is damaged",
            f"label \\({labels}/c.png": "No such file or directory. Put the file",
            f"image \\({tmp_path}/train/d.jpg": ".* damaged or incomplete: copy",
        }.items()
    ):
        with pytest.raises(OSError, match=rf"train/.\.jpg: the {file}\) cannot be read: {reason}") as caught:
            dataset[row]
        assert "\n" not in str(caught.value)
