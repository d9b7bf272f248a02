from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from transformers import SegformerImageProcessor

from afdcd_hf.data.resizing import resize_bilinear, resize_nearest
from afdcd_hf.data.transforms import PAPER_SCALES, RandomScaleCropFlip
from afdcd_hf.models.image_modes_afdcd import as_rgb

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def processor():
    return SegformerImageProcessor(do_resize=False, do_reduce_labels=False)


def street(height=30, width=40, seed=0):
    """Random image and label."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels), Image.fromarray(rng.integers(0, 11, (height, width), dtype=np.uint8))


def normalised(pixels):
    return torch.from_numpy(((pixels / 255 - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)


def test_without_scale_crop_and_flip_the_image_is_only_normalised(processor):
    image, label = street()
    sample = RandomScaleCropFlip(processor, (30, 40), (1.0,), 0.0)(image, label, np.random.default_rng(0))
    torch.testing.assert_close(sample["pixel_values"], normalised(np.asarray(image)), atol=1e-5, rtol=0)
    assert torch.equal(sample["labels"], torch.from_numpy(np.array(label)).long())
    assert sample["pixel_values"].dtype == torch.float32 and sample["labels"].dtype == torch.int64


def test_a_small_image_is_padded_at_the_right_and_the_bottom(processor):
    image, label = street()
    sample = RandomScaleCropFlip(processor, (50, 64), (1.0,), 0.0)(image, label, np.random.default_rng(0))
    assert sample["pixel_values"].shape == (3, 50, 64) and sample["labels"].shape == (50, 64)
    assert (sample["pixel_values"][:, 30:] == 0).all() and (sample["pixel_values"][:, :, 40:] == 0).all()
    assert (sample["labels"][30:] == 255).all() and (sample["labels"][:, 40:] == 255).all()
    assert torch.equal(sample["labels"][:30, :40], torch.from_numpy(np.array(label)).long())
    torch.testing.assert_close(sample["pixel_values"][:, :30, :40], normalised(np.asarray(image)), atol=1e-5, rtol=0)


def test_the_flip_comes_after_the_padding_and_takes_the_label_along(processor):
    image, label = street()
    plain, flipped = (
        RandomScaleCropFlip(processor, (20, 64), (1.0,), probability)(image, label, np.random.default_rng(3))
        for probability in (0.0, 1.0)
    )
    assert (flipped["labels"][:, :24] == 255).all()
    for key in plain:
        assert torch.equal(flipped[key], plain[key].flip(-1))


def coordinates(height, width):
    """Image and label that both hold the pixel's position, so that a crop shows where it comes from."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, rows], -1)), Image.fromarray(rows * width + columns)


class Unchanged:
    """A processor that normalises nothing."""

    def __call__(self, images, return_tensors, do_resize):
        assert images.dtype == torch.uint8 and return_tensors == "pt" and do_resize is False
        return {"pixel_values": images[None].float()}


def test_crops_are_contiguous_aligned_and_equally_likely_at_every_position():
    image, label = coordinates(4, 5)
    transform = RandomScaleCropFlip(Unchanged(), (3, 3), (1.0,), 0.0)
    times = np.zeros((2, 3), int)
    rng = np.random.default_rng(0)
    for _ in range(600):
        sample = transform(image, label, rng)
        y, x = (int(value) for value in sample["pixel_values"][:2, 0, 0])
        assert torch.equal(sample["labels"], torch.from_numpy(np.array(label))[y : y + 3, x : x + 3].long())
        assert torch.equal(sample["labels"], (sample["pixel_values"][0] * 5 + sample["pixel_values"][1]).long())
        times[y, x] += 1
    assert times.min() > 60 and times.max() < 140


def test_scales_and_flips_occur_as_often_as_asked():
    image, label = coordinates(4, 4)
    transform = RandomScaleCropFlip(Unchanged(), (8, 8), (0.5, 1.0, 2.0), 0.25)
    rng = np.random.default_rng(0)
    widths, flips = [], 0
    for _ in range(600):
        kept = transform(image, label, rng)["labels"][0] != 255
        widths.append(int(kept.sum()))
        flips += int(not kept[0])  # padding moved to the left; not visible at scale 2
    assert all(150 < widths.count(width) < 250 for width in (2, 4, 8))
    assert 60 < flips < 140  # a quarter of 400


def test_the_paper_scales_go_from_a_half_to_two_in_tenths():
    assert PAPER_SCALES == tuple(k / 10 for k in range(5, 21))


def test_the_same_generator_state_gives_the_same_sample(processor):
    image, label = street()
    transform = RandomScaleCropFlip(processor, (24, 24))
    first, second, other = (transform(image, label, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["pixel_values"], other["pixel_values"])


def test_results_are_contiguous_so_that_batches_have_one_layout(processor):
    image, label = street()
    for scale, crop in ((1.0, (30, 40)), (1.5, (20, 20)), (0.5, (64, 64))):
        sample = RandomScaleCropFlip(processor, crop, (scale,), 0.0)(image, label, np.random.default_rng(0))
        assert sample["pixel_values"].is_contiguous() and sample["labels"].is_contiguous()


def test_grey_images_and_palette_labels_are_read_as_colours_and_ids(processor):
    label = Image.new("P", (6, 4), 7)
    label.putpalette([value for colour in range(256) for value in (255 - colour, 0, 0)])
    sample = RandomScaleCropFlip(processor, (4, 6), (1.0,))(Image.new("L", (6, 4), 9), label, np.random.default_rng(0))
    assert (sample["labels"] == 7).all()
    torch.testing.assert_close(sample["pixel_values"], normalised(np.full((4, 6, 3), 9)), atol=1e-5, rtol=0)


def test_a_tiny_image_keeps_at_least_a_pixel(processor):
    image, label = street(1, 1)
    sample = RandomScaleCropFlip(processor, (2, 2), (0.1,), 0.0)(image, label, np.random.default_rng(0))
    assert (sample["labels"] != 255).sum() == 1


def test_image_and_label_of_different_size_are_refused(processor):
    with pytest.raises(ValueError, match=r"30x40 pixels but its label 30x39 \(height x width\)"):
        RandomScaleCropFlip(processor, (20, 20))(street()[0], street(30, 39)[1], np.random.default_rng(0))


def test_a_processor_that_changes_the_size_is_refused():
    def cropping(images, return_tensors, do_resize):
        return {"pixel_values": images[None, :, 1:].float()}

    with pytest.raises(ValueError, match=r"turned a \(3, 20, 20\) crop into \(3, 19, 20\)"):
        RandomScaleCropFlip(cropping, (20, 20), (1.0,))


@pytest.mark.parametrize("crop", [(20, 24), (64, 80)])
def test_samples_are_those_of_resizing_all_of_the_image_then_cropping(processor, crop):
    image, label = street(37, 53)
    transform = RandomScaleCropFlip(processor, crop)
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


# What is off by default


def augmented(rng=0, crop=(30, 40), **options):
    """A crop of the whole image at scale 1, not normalised, and the seed that torchvision's transforms get."""
    transform = RandomScaleCropFlip(Unchanged(), crop, (1.0,), 0.0, **options)
    drawn = np.random.default_rng(rng)
    for high in (1, 1, 1):
        drawn.integers(high)
    drawn.random()
    return transform(*street(), np.random.default_rng(rng)), int(drawn.integers(2**63))


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"color_jitter": [0.4, 0.4, 0.4, 0.1]}, v2.ColorJitter(0.4, 0.4, 0.4, 0.1)),
        ({"blur_probability": 1.0}, v2.GaussianBlur(5)),
        ({"color_jitter": [0.2, 0, 0, 0], "blur_probability": 0.5},
         v2.Compose([v2.ColorJitter(0.2, 0, 0, 0), v2.RandomApply([v2.GaussianBlur(5)], 0.5)])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rng", range(3))
def test_colours_change_as_torchvision_changes_them_and_labels_do_not(options, change, rng):
    sample, seed = augmented(rng, **options)
    pixels = torch.from_numpy(np.array(street()[0])).permute(2, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if "blur_probability" in options and len(options) == 1:
            torch.rand(1)  # whether to blur at all
        expected = change(pixels)
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


def test_augmentations_depend_on_the_generator_alone_and_leave_torch_s_as_it_is():
    options = {"color_jitter": [0.4, 0.4, 0.4, 0.1], "blur_probability": 0.5, "max_rotation": 10}
    samples = []
    for seed, rng in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        samples.append(augmented(rng, **options)[0]["pixel_values"])
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(samples[0], samples[1]) and not torch.equal(samples[1], samples[2])


@pytest.mark.parametrize("mode", ["I;16", "L", "RGBA", "CMYK"])
def test_images_of_every_mode_are_read_by_the_one_rule(mode):
    image, label = street()
    image = (
        Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    )
    transform = RandomScaleCropFlip(Unchanged(), (30, 40), (1.0,), 0.0)
    pixels = transform(image, label, np.random.default_rng(0))["pixel_values"]
    assert torch.equal(pixels, torch.from_numpy(np.array(as_rgb(image))).permute(2, 0, 1).float())
    assert mode != "I;16" or torch.equal(pixels[2], torch.from_numpy(np.array(street()[0])[..., 0]).float())
    with pytest.raises(ValueError, match="mode F: its pixels are floating-point"):
        transform(label.convert("F"), label, np.random.default_rng(0))


def test_the_transform_survives_pickling(processor):
    image, label = street()
    transform = RandomScaleCropFlip(processor, (24, 24))
    first, second = (
        t(image, label, np.random.default_rng(1)) for t in (transform, pickle.loads(pickle.dumps(transform)))
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "bad",
    [
        {"crop_size": (0, 10)},
        {"crop_size": (10,)},
        {"crop_size": (1.5, 10)},
        {"scales": ()},
        {"scales": (1.0, 0.0)},
        {"scales": (float("nan"),)},
        {"flip_probability": 1.1},
        {"blur_probability": -1},
        {"max_rotation": float("nan")},
        {"color_jitter": [0.4, 0.4, 0.4]},
        {"color_jitter": [0.4, 0.4, 0.4, 0.6]},
        {"color_jitter": [0.4, 0.4, "0.4", 0.1]},
    ],
)
def test_bad_settings_are_refused_by_name(processor, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RandomScaleCropFlip(processor, **{"crop_size": (10, 10), **bad})
