from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import SegformerImageProcessor

from afdcd_hf.data.transforms import PAPER_SCALES, RandomScaleCropFlip, resize_bilinear, resize_nearest, resized_side
from afdcd_hf.models.image_modes_afdcd import as_rgb

SCALES = [k / 10 for k in range(5, 21)]


@pytest.fixture(scope="module")
def processor():
    return SegformerImageProcessor(do_resize=False, do_reduce_labels=False)


def street(height=30, width=40, seed=0):
    """Draw an image and its label."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), Image.fromarray(rng.integers(0, 11, (height, width), dtype=np.uint8))


class Unchanged:
    """A processor that normalises nothing."""

    def __call__(self, images, return_tensors, do_resize):
        assert images.dtype == torch.uint8 and return_tensors == "pt" and do_resize is False
        return {"pixel_values": images[None].float()}


@pytest.mark.parametrize("crop", [(20, 24), (64, 80)])
def test_samples_equal_those_of_resizing_the_whole_image_then_cropping(processor, crop):
    image, label = street(37, 53)
    transform = pickle.loads(pickle.dumps(RandomScaleCropFlip(processor, crop)))
    assert PAPER_SCALES == tuple(SCALES)
    for seed in range(40):
        sample = transform(image, label, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        scale = PAPER_SCALES[rng.integers(16)]
        size = (round(37 * scale), round(53 * scale))
        top, left = (int(rng.integers(max(side - length, 0) + 1)) for side, length in zip(size, crop, strict=True))
        kept = (slice(top, top + crop[0]), slice(left, left + crop[1]))
        whole = (scale, np.arange(size[0]), np.arange(size[1]))
        resized = torch.from_numpy(resize_bilinear(np.asarray(image), *whole)[kept]).permute(2, 0, 1)
        missing = (0, crop[1] - min(size[1], crop[1]), 0, crop[0] - min(size[0], crop[0]))
        expected = torch.nn.functional.pad(processor(images=resized, return_tensors="pt")["pixel_values"][0], missing)
        nearest = torch.from_numpy(resize_nearest(np.asarray(label), *whole)[kept])
        labels = torch.nn.functional.pad(nearest, missing, value=255)
        if rng.random() < 0.5:
            expected, labels = expected.flip(-1), labels.flip(-1)
        assert torch.equal(sample["labels"], labels.long()) and torch.equal(sample["pixel_values"], expected)
        assert sample["pixel_values"].is_contiguous() and sample["labels"].is_contiguous()  # one layout in a batch


# Resizing


def whole(pixels, scale, resize=resize_bilinear):
    rows, columns = (np.arange(resized_side(side, scale)) for side in pixels.shape[:2])
    return resize(pixels, scale, rows, columns)


def bilinear_by_hand(pixels, scale):
    """Resize each axis by linear interpolation between pixel centres, at (x + 1/2) / scale - 1/2, in floating point."""
    result = pixels.astype(np.float64)
    for axis in (0, 1):
        wanted = (np.arange(resized_side(pixels.shape[axis], scale)) + 0.5) / scale - 0.5
        centres = np.arange(pixels.shape[axis])
        result = np.apply_along_axis(lambda line, x=wanted, c=centres: np.interp(x, c, line), axis, result)
    return result


LINE = [10, 50, 210, 90, 170, 0, 255]
OPENCV = {  # cv2.resize(..., None, fx=scale, fy=scale) of OpenCV 5.0: INTER_LINEAR, INTER_NEAREST
    0.5: ([30, 150, 85, 255], [10, 210, 170, 255]),
    0.7: ([18, 153, 96, 85, 237], [10, 50, 210, 170, 0]),
    0.9: ([12, 77, 177, 121, 85, 156], [10, 50, 210, 90, 170, 0]),
    1.1: ([10, 45, 174, 128, 137, 85, 104, 255], [10, 10, 50, 210, 90, 170, 0, 255]),
    1.3: ([10, 36, 118, 187, 94, 148, 85, 68, 255], [10, 10, 50, 210, 90, 90, 170, 0, 255]),
}


@pytest.mark.parametrize("scale", OPENCV)
def test_sampling_positions_are_opencvs_even_if_the_side_is_rounded(scale):
    linear, nearest = OPENCV[scale]
    pixels = np.broadcast_to(np.uint8(LINE)[None, :, None], (4, 7, 3))
    found = whole(pixels, scale).astype(int)
    assert np.abs(found - np.array(linear)[None, :, None]).max() <= 1
    assert np.abs(whole(pixels.swapaxes(0, 1), scale).astype(int) - np.array(linear)[:, None, None]).max() <= 1
    assert whole(pixels[..., 0], scale, resize_nearest).tolist() == [nearest] * resized_side(4, scale)


def test_the_whole_image_is_bilinear_and_its_parts_are_identical_to_the_bit():
    rng = np.random.default_rng(1)
    for seed in range(100):
        source, scale = rng.integers(1, 80, 2), float(rng.choice(SCALES))
        pixels = np.asarray(street(*source, seed)[0])
        result = whole(pixels, scale)
        assert np.abs(result - bilinear_by_hand(pixels, scale)).max() < 0.75, (source, scale)  # rounded once, 11 bits
        rows, columns = (rng.permutation(side)[: int(rng.integers(1, side + 1))] for side in result.shape[:2])
        part = resize_bilinear(pixels, scale, rows, columns)
        assert np.array_equal(part, result[rows][:, columns]), (source, scale)


# Options that are off by default


def augmented(rng=0, crop=(30, 40), **options):
    """Crop the whole image at scale 1, not normalised; return it and the seed of torchvision's transforms."""
    transform = RandomScaleCropFlip(Unchanged(), crop, (1.0,), 0.0, **options)
    drawn = np.random.default_rng(rng)
    for high in (1, 1, 1):
        drawn.integers(high)
    drawn.random()
    return transform(*street(), np.random.default_rng(rng)), int(drawn.integers(2**63))


@pytest.mark.parametrize("rng", range(2))
def test_colours_change_as_torchvision_changes_them_and_labels_do_not(rng):
    sample, seed = augmented(rng, color_jitter=[0.4, 0.4, 0.4, 0.1], blur_probability=0.5)
    pixels = torch.from_numpy(np.array(street()[0])).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blur = v2.RandomApply([v2.GaussianBlur(5)], 0.5)
        expected = v2.Compose([v2.ColorJitter(0.4, 0.4, 0.4, 0.1), blur])(pixels)
    assert torch.equal(sample["pixel_values"], expected.float()) and not torch.equal(expected, pixels)
    assert torch.equal(sample["labels"], torch.from_numpy(np.array(street()[1])).long())


def test_a_rotation_turns_image_and_label_together_and_leaves_empty_corners_ignored():
    sample, seed = augmented(1, crop=(40, 48), max_rotation=30)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        angle = float(torch.empty(1).uniform_(-30, 30))
    plain = augmented(1, crop=(40, 48))[0]
    bilinear, nearest = v2.InterpolationMode.BILINEAR, v2.InterpolationMode.NEAREST
    turned = v2.functional.rotate(plain["pixel_values"], angle, bilinear, fill=0)
    assert abs(angle) > 3 and torch.equal(sample["pixel_values"], turned) and type(sample["labels"]) is torch.Tensor
    assert torch.equal(sample["labels"], v2.functional.rotate(plain["labels"][None], angle, nearest, fill=255)[0])
    assert (sample["labels"][0, :3] == 255).all() and sample["labels"].dtype == torch.int64


def test_augmentations_depend_only_on_the_generator_and_leave_torchs_unchanged():
    options = {"color_jitter": [0.4, 0.4, 0.4, 0.1], "blur_probability": 0.5, "max_rotation": 10}
    samples = []
    for seed, rng in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        samples.append(augmented(rng, **options)[0]["pixel_values"])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[1], samples[2])


def test_images_of_every_mode_follow_one_rule_and_palette_labels_are_ids():
    image, label = street()
    label.putpalette([value for colour in range(256) for value in (255 - colour, 0, 0)])
    transform = RandomScaleCropFlip(Unchanged(), (30, 40), (1.0,), 0.0)
    for one in (Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257), image.convert("CMYK")):
        sample = transform(one, label, np.random.default_rng(0))
        assert torch.equal(sample["pixel_values"], torch.from_numpy(np.array(as_rgb(one))).permute(2, 0, 1).float())
        assert label.mode == "P" and torch.equal(sample["labels"], torch.from_numpy(np.array(label)).long())


def test_bad_settings_and_mismatched_inputs_are_rejected_by_name(processor):
    for name, values in {
        "crop_size": [(0, 10), (10,), (1.5, 10)],
        "scales": [(), (1.0, 0.0), (float("nan"),)],
        "flip_probability": [1.1],
        "blur_probability": [-1],
        "max_rotation": [float("nan")],
        "color_jitter": [[0.4, 0.4, 0.4], [0.4, 0.4, 0.4, 0.6]],
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                RandomScaleCropFlip(processor, **{"crop_size": (10, 10), name: value})
    with pytest.raises(ValueError, match=r"30x40 pixels but its label 30x39 \(height x width\)"):
        RandomScaleCropFlip(processor, (20, 20))(street()[0], street(30, 39)[1], np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"turned a \(3, 20, 20\) crop into \(3, 19, 20\)"):
        RandomScaleCropFlip(lambda images, **_: {"pixel_values": images[None, :, 1:].float()}, (20, 20), (1.0,))
