from __future__ import annotations

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from afdcd_hf.data.decoding import DecodedRows
from afdcd_hf.data.resizing import resize_bilinear
from afdcd_hf.data.unread_png import UnreadPng, with_rows_read

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(picture, **options):
    buffer = io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def interlaced_png(pixels):
    """What Pillow cannot write: seven passes over the image, each of every so many columns and rows."""
    height, width, _ = pixels.shape
    passes = [pixels[y::down, x::across] for x, y, across, down in ADAM7]
    lines = b"".join(b"\0" + row.tobytes() for part in passes for row in part if row.size)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def image_of(content, path="a.png"):
    """The image as `load_benchmark` hands it out."""
    return DecodedRows()({"image": [{"bytes": content, "path": path}], "name": ["train/a.png"]})["image"][0]


def resized(image, rows, columns):
    return resize_bilinear(image, (52, 39), rows, columns)


def test_only_the_rows_needed_are_decoded():
    pixels = noise(40, 30)
    image = image_of(png(pixels)[: -len(png(pixels)) // 4])  # without its last quarter
    read = with_rows_read(image, 20)
    assert read.size == image.size and np.array_equal(np.asarray(read)[:20], pixels[:20])
    assert image.tile  # still unread, and good for other rows
    assert np.array_equal(np.asarray(with_rows_read(image, 25))[:25], pixels[:25])


@pytest.mark.parametrize("count", [39, 40])
def test_damage_in_the_rows_needed_names_the_file_and_its_role(count):
    content = png(noise(40, 30))
    image = image_of(content[: -len(content) // 4], "/data/a.png")
    with pytest.raises(OSError, match=r"^train/a\.png: the image \(/data/a\.png\) cannot be read: .*truncated"):
        with_rows_read(image, count).load()


def test_a_crop_is_that_of_the_decoded_image():
    pixels, rows, columns = noise(40, 30), np.arange(3, 21), np.arange(5, 18)
    image = image_of(png(pixels))
    for _ in range(2):
        assert np.array_equal(resized(image, rows, columns), resized(Image.fromarray(pixels), rows, columns))
    assert image.tile
    image.load()
    assert with_rows_read(image, 3) is image


def test_a_pickled_image_is_decoded_first():
    pixels = noise(40, 30)
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(image_of(png(pixels))))), pixels)


def test_an_interlaced_image_is_read_as_a_whole():
    pixels, rows, columns = noise(40, 30), np.arange(3, 9), np.arange(5, 18)
    image = image_of(interlaced_png(pixels))
    assert image.info["interlace"] == 1 and with_rows_read(image, 9) is image
    assert np.array_equal(resized(image, rows, columns), resized(Image.fromarray(pixels), rows, columns))
    assert np.array_equal(np.asarray(image), pixels)


def test_an_animation_is_read_as_a_whole_and_shows_its_first_frame():
    first, second = (Image.fromarray(noise(8, 8, seed)) for seed in (1, 2))
    image = image_of(png(first, save_all=True, append_images=[second]))
    assert image.is_animated and with_rows_read(image, 3) is image
    assert np.array_equal(np.asarray(image), np.asarray(first))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_pictures_of_other_modes_are_converted_at_once(mode):
    picture = Image.fromarray(noise(8, 8)).convert(mode)
    image = image_of(png(picture))
    assert image.mode == "RGB" and with_rows_read(image, 3) is image
    assert np.array_equal(np.asarray(image), np.asarray(picture.convert("RGB")))


def exif_behind_the_pixels(content, exif):
    return content[:-12] + chunk(b"eXIf", exif) + content[-12:]  # 12: the chunk IEND


def xmp_behind_the_pixels(content, _):
    text = b'<rdf:Description tiff:Orientation="6"/>'
    return content[:-12] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text) + content[-12:]


@pytest.mark.parametrize("put", [exif_behind_the_pixels, xmp_behind_the_pixels, None])
def test_an_image_with_an_orientation_tag_is_turned_wherever_the_tag_stands(put):
    pixels, tag = noise(8, 12), Image.Exif()
    tag[0x0112] = 6  # to be turned clockwise for viewing
    content = put(png(pixels), tag.tobytes()[6:]) if put else png(pixels, exif=tag)
    image = image_of(content)
    assert image.size == (8, 12) and with_rows_read(image, 3) is image
    assert np.array_equal(np.asarray(image), np.rot90(pixels, -1))


def test_a_file_without_pixels_is_named():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
    with pytest.raises(OSError, match=r"train/a\.png: the image \(a\.png\) cannot be read"):
        image_of(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b"")).load()


@pytest.mark.parametrize("format", ["JPEG", "BMP", "WEBP"])
def test_files_of_other_formats_are_decoded_at_once(format):
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(buffer, format)
    image = image_of(buffer.getvalue())
    assert not isinstance(image, UnreadPng) and with_rows_read(image, 3) is image
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(buffer)))
